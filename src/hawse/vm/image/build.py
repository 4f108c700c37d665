"""Build the guest image: a kernel and an initial ramfs from Debian packages, the same bytes for the same inputs."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import stat
import tempfile
import time
import tomllib
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace

from hawse.cache import trusted
from hawse.cache.results import locked
from hawse.errors import ImageError
from hawse.json_text import Document
from hawse.link import agreed
from hawse.linux.files import replace_file
from hawse.vm.image import collect, packages
from hawse.vm.image.cpio import write_archive
from hawse.vm.image.file_tree import add_programs, add_python
from hawse.vm.image.lock import open_lock
from hawse.vm.image.modules import add_autoload, add_drivers, add_kernel_modules
from hawse.vm.image.packages import Package, Progress
from hawse.vm.image.store import (
    BESIDE,
    DRIVERS,
    FILES,
    MODULES,
    Image,
    current_path,
    file_digest,
    guest_sources,
    read,
    recipe_directory,
    sources_digest,
    tree_digest,
)
from hawse.vm.image.vmlinux import bootable

_NODES = (("dev/console", stat.S_IFCHR | 0o600, 5, 1), ("dev/null", stat.S_IFCHR | 0o666, 1, 3))

#: Paths in the guest: the modules that the agent loads, and the agent's link to the directory MODULES in the share.
#: busybox's modprobe reads /lib/modules/<release> and no other directory.
_AGENT_MODULES = "usr/lib/hawse/modules"
_SHARED_MODULES = f"{agreed.RUN}/modules"


def build(*, cache: str, progress: Progress, kernel: str = "", modules: str = "", extra: Sequence[str] = ()) -> Image:
    """Build the image and make it the current one; an image that was built from the same inputs is used again.

    ``kernel`` and ``modules``: a bzImage or vmlinux and its /lib/modules/<release> directory, instead of Debian's.
    ``extra``: names of modules to store next to the image, in addition to the recipe's.
    Raises :class:`HostError` where packages cannot be fetched and for a cache that other users may write to, and
    :class:`ImageError` where the packages or the kernel lack something.
    """
    if bool(kernel) != bool(modules):
        raise ImageError("image.kernel and image.modules go together", hint="set both, or neither")
    began = time.monotonic()
    with open(f"{recipe_directory()}/recipe.toml", "rb") as file:
        recipe = tomllib.load(file)
    sources = sources_digest(kernel, modules, extra)
    images = trusted.make(cache, "images")
    with trusted.ordinary_umask(), locked(f"{images}/lock"):
        userland = packages.fetch(recipe["packages"], cache=cache, progress=progress)
        kernels = [] if kernel else kernel_packages(recipe, cache, progress)
        digest = _digest(sources, [*userland, *kernels])
        final = f"{images}/{digest}"
        try:
            image = read(final)
        except ImageError:
            if os.path.lexists(final):
                collect.set_aside(images, digest)  # sandboxes may run with the damaged one
            with tempfile.TemporaryDirectory(prefix=".building-", dir=images) as work:
                files_of_kernel = (kernel, modules)
                if kernels:
                    progress(f"unpacking {kernels[0].name}")
                    files_of_kernel = unpack_kernel(kernels, f"{work}/kernel")
                _build(work, recipe, userland, *files_of_kernel, extra, progress)
                manifest = {
                    "digest": digest,
                    "sources": sources,
                    **_contents(work),
                    "build_seconds": round(time.monotonic() - began, 1),
                    "packages": {package.name: package.version for package in [*userland, *kernels]},
                }
                replace_file(f"{work}/out/manifest.json", json.dumps(manifest, indent=1).encode())
                os.rename(f"{work}/out", final)
            image = replace(read(final), fresh=True)
        os.close(open_lock(final))  # for starts that cannot write to the cache
        pointer = current_path(cache, kernel, modules, extra)
        with suppress(OSError), open(pointer) as file:
            if (before := file.read(65).strip()) != digest:
                collect.note_replaced(images, before)
        replace_file(pointer, digest.encode())
        if removed := collect.collect(images, keep=pointer, warn=progress):
            progress(f"removed {len(removed)} images that nothing uses")
    return image


def _contents(work: str) -> dict[str, object]:
    """What the manifest says about the files of a built image."""
    with open(f"{work}/release") as file:
        release = file.read()
    paths = {name: f"{work}/out/{name}" for name in FILES}
    return {
        "release": release,
        "files": {name: {"size": os.stat(path).st_size, "sha256": file_digest(path)} for name, path in paths.items()},
        "beside": {
            name: dict(zip(("size", "sha256"), tree_digest(f"{work}/out/{name}"), strict=True)) for name in BESIDE
        },
    }


def _build(
    work: str,
    recipe: Document,
    userland: tuple[Package, ...],
    kernel: str,
    modules: str,
    extra: Sequence[str],
    progress: Progress,
) -> None:
    full, tree = f"{work}/full", f"{work}/tree"
    progress(f"unpacking {len(userland)} packages")
    packages.unpack(userland, full, select=_useful)
    release = os.path.basename(os.path.normpath(modules))
    packages.unpack((), tree)
    for directory in recipe["directories"]:
        os.makedirs(f"{tree}/{directory}", exist_ok=True)
    progress("choosing programs and libraries")
    add_programs(full, tree, recipe["programs"], recipe["links"])
    add_python(full, tree, guest_sources(), recipe["python_modules"])
    progress("choosing kernel modules")
    add_kernel_modules(full, tree, modules, release, recipe["modules"], place=_AGENT_MODULES)
    os.mkdir(f"{work}/out")
    add_drivers(full, f"{work}/out/{DRIVERS}", release, recipe["drivers"])
    add_autoload(full, f"{work}/out/{MODULES}", release, recipe["autoload"], extra)
    os.makedirs(f"{tree}/usr/lib/modules")
    os.symlink(_SHARED_MODULES, f"{tree}/usr/lib/modules/{release}")
    shutil.copyfile(f"{recipe_directory()}/init", f"{tree}/init")
    os.chmod(f"{tree}/init", 0o755)
    progress("writing the kernel and the initial ramfs")
    with open(kernel, "rb") as source, open(f"{work}/out/vmlinux", "wb") as target:
        target.write(bootable(source.read()))
    with open(f"{work}/out/initrd.cpio", "wb") as target:
        write_archive(tree, target, nodes=_NODES)
    replace_file(f"{work}/release", release.encode())


def unpack_kernel(kernels: Sequence[Package], into: str) -> tuple[str, str]:
    """Unpack a kernel package; returns the paths of its bzImage and of its modules."""
    prefixes = ("boot/", "usr/lib/modules/")
    packages.unpack(kernels, into, select=lambda name: f"{name}/".startswith(prefixes))
    release = os.listdir(f"{into}/usr/lib/modules")[0]
    return f"{into}/boot/vmlinuz-{release}", f"{into}/usr/lib/modules/{release}"


def kernel_packages(recipe: Document, cache: str, progress: Progress) -> list[Package]:
    """The package that contains the kernel, among those that the recipe's kernel_package depends on."""
    fetched = packages.fetch([recipe["kernel_package"]], cache=cache, progress=progress)
    kernels = [p for p in fetched if p.name.startswith("linux-image-") and p.name != recipe["kernel_package"]]
    if len(kernels) != 1:
        raise ImageError(
            f"guest image: the package {recipe['kernel_package']} depends on {len(kernels)} kernels, not on one"
        )
    return kernels


def _useful(name: str) -> bool:
    return not name.startswith(("usr/share/", "var/", "usr/include/"))


def _digest(sources: str, fetched: list[Package]) -> str:
    lines = [f"{package.name} {package.version} {package.sha256}" for package in fetched]
    return hashlib.sha256("\n".join([sources, *lines]).encode()).hexdigest()
