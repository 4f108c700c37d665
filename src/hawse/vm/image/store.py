"""Guest images in the cache: ``<cache>/images/<digest>/`` contains vmlinux, initrd.cpio, manifest.json, and directories
of kernel modules, which guests get through their share.

Every start of a container calls :func:`locate`, which reads a manifest of a kilobyte and the sources of the agent.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field

import hawse
from hawse.cache import results as answers
from hawse.cache import trusted
from hawse.errors import HostError, ImageError
from hawse.json_text import Document, parse
from hawse.vm.image.collect import note_use

_PACKAGE = os.path.dirname(os.path.abspath(hawse.__file__))
#: The parts of hawse that run in the guest.
GUEST_SOURCES = (
    "__init__.py",
    "errors.py",
    "json_text.py",
    "linux/__init__.py",
    "linux/libc.py",
    "linux/mounts.py",
    "linux/netlink.py",
    "oci/__init__.py",
    "oci/document.py",
    "vfio/__init__.py",
    "vfio/sysfs.py",
)
GUEST_PACKAGES = ("agent", "link")
FILES = ("vmlinux", "initrd.cpio")
#: The directory of modules for devices that drivers of the guest kernel use. Guests get it through their share.
DRIVERS = "drivers"
#: The directory of modules that the guest kernel may request. Guests get it through their share.
MODULES = "modules"
#: The directories next to the image's files.
BESIDE = (DRIVERS, MODULES)
_BUILD = "build it with `hawse image build`"


@dataclass(frozen=True)
class Image:
    """A usable image.

    ``size``: bytes of both files. ``release``: the kernel's. ``drivers``, ``modules``: the directories of modules.
    ``beside``: bytes in these two directories. ``fresh``: this call has built it.
    """

    digest: str
    kernel: str
    initrd: str
    release: str
    size: int
    build_seconds: float
    drivers: str
    modules: str
    beside: int
    fresh: bool = field(default=False, compare=False)


def recipe_directory() -> str:
    """The directory of recipe.toml and init: in the installed package, or next to src/ in a checkout."""
    installed = os.path.join(_PACKAGE, "guest")
    return installed if os.path.isdir(installed) else os.path.join(_PACKAGE, "..", "..", "guest")


def guest_sources() -> list[tuple[str, str]]:
    """(path below hawse/, absolute path) of every source that goes into the guest, sorted."""
    names = list(GUEST_SOURCES)
    for package in GUEST_PACKAGES:
        for directory, _, files in os.walk(f"{_PACKAGE}/{package}"):
            below = os.path.relpath(directory, _PACKAGE)
            names += [f"{below}/{name}" for name in files if name.endswith(".py")]
    return [(name, f"{_PACKAGE}/{name}") for name in sorted(names)]


def sources_digest(kernel: str, modules: str, extra: Sequence[str] = ()) -> str:
    """The digest of an image's inputs except Debian packages: hawse's files and, if configured, the user's own kernel.

    ``extra``: the names of modules that an administrator has added (image.extra_modules).
    """
    digest = hashlib.sha256()
    digest.update(_joined(extra).encode())
    recipe = recipe_directory()
    for name, path in [("recipe", f"{recipe}/recipe.toml"), ("init", f"{recipe}/init"), *guest_sources()]:
        with open(path, "rb") as file:
            content = file.read()
        digest.update(f"{name}\0{len(content)}\0".encode() + content)
    for path in (kernel, modules):
        try:
            digest.update(json.dumps(answers.file_key(path) if path else []).encode())
        except OSError as error:
            raise ImageError(
                f"guest image: {path}: {error.strerror}", hint="check image.kernel and image.modules"
            ) from None
    return digest.hexdigest()


def locate(
    *, cache: str, kernel: str = "", modules: str = "", extra: Sequence[str] = (), hash_files: bool = False
) -> Image:
    """The image to boot.

    ``hash_files``: see :func:`read`. Raises :class:`ImageError` if the image is missing, stale or damaged, with a
    remedy, and :class:`HostError` if another user can write to it: such a user could run code in every guest.
    """
    sources = sources_digest(kernel, modules, extra)
    _check_directory(cache, "images")
    try:
        with open(_pointer(cache, sources)) as file:
            digest = file.read(65).strip()
    except FileNotFoundError:
        which = f" with image.extra_modules {_joined(extra)}" if extra else ""
        others = ": those in it are of another version of hawse or another [image] section" if _has_any(cache) else ""
        raise ImageError(f"there is no guest image{which} in {cache}{others}", hint=_BUILD) from None
    note_use(_pointer(cache, sources))
    _check_directory(cache, "images", digest)
    image = read(f"{cache}/images/{digest}", hash_files=hash_files)
    if _manifest(f"{cache}/images/{digest}")["sources"] != sources:
        raise ImageError(
            f"the guest image {digest[:12]} is stale: it was built by another version of hawse or its recipe",
            hint=_BUILD,
        )
    return image


def read(directory: str, *, hash_files: bool = False) -> Image:
    """Check the files of the image in ``directory``; returns the image.

    ``hash_files``: read the files even if a record shows that they were correct with their present size and times.
    Raises :class:`ImageError` that names the damaged file.
    """
    manifest = _manifest(directory)
    trusted.check_file(f"{directory}/manifest.json")
    for name in FILES:
        _check(directory, name, manifest["files"][name], hash_files=hash_files)
    for name in BESIDE:
        _check_tree(directory, name, manifest["beside"][name], hash_files=hash_files)
    return Image(
        digest=manifest["digest"],
        kernel=f"{directory}/vmlinux",
        initrd=f"{directory}/initrd.cpio",
        release=manifest["release"],
        size=sum(entry["size"] for entry in manifest["files"].values()),
        build_seconds=manifest["build_seconds"],
        drivers=f"{directory}/{DRIVERS}",
        modules=f"{directory}/{MODULES}",
        beside=sum(entry["size"] for entry in manifest["beside"].values()),
    )


def current_path(cache: str, kernel: str = "", modules: str = "", extra: Sequence[str] = ()) -> str:
    """The file that names the digest of the image in use, one for each content of :func:`sources_digest`.

    Installations of the same version share an image, wherever their files are: a wheel, a checkout, another Python.
    Raises :class:`ImageError`.
    """
    return _pointer(cache, sources_digest(kernel, modules, extra))


def confirmed(cache: str, kernel: str = "", modules: str = "", extra: Sequence[str] = ()) -> float:
    """The time at which `hawse image build` last built the current image or found its packages unchanged, in seconds
    since 1970. Raises OSError if no image exists, and :class:`ImageError`."""
    return os.stat(current_path(cache, kernel, modules, extra)).st_mtime


def packages(image: Image) -> dict[str, str]:
    """The versions of the packages that the image was built from, by name. Raises :class:`ImageError`."""
    return dict(_manifest(os.path.dirname(image.kernel)).get("packages", {}))


def file_digest(path: str) -> str:
    """sha256 of a file, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def module_name(path: str) -> str:
    """The name of the module in a file: vfio_pci for kernel/drivers/vfio/pci/vfio-pci.ko."""
    return os.path.basename(path).partition(".ko")[0].replace("-", "_")


def tree_digest(directory: str) -> tuple[int, str]:
    """The size of all files below a directory in bytes, and the sha256 of their paths and contents."""
    size, digest = 0, hashlib.sha256()
    for parent, directories, names in os.walk(directory):
        directories.sort()
        for name in sorted(names):
            path = f"{parent}/{name}"
            size += os.stat(path).st_size
            digest.update(f"{os.path.relpath(path, directory)}\0{file_digest(path)}\n".encode())
    return size, digest.hexdigest()


def _pointer(cache: str, sources: str) -> str:
    return f"{cache}/images/current-{sources[:16]}"


def _has_any(cache: str) -> bool:
    try:
        return any(name.startswith("current-") for name in os.listdir(f"{cache}/images"))
    except OSError:
        return False


def _joined(extra: Sequence[str]) -> str:
    """The names of modules in canonical order and spelling."""
    return ",".join(sorted({module_name(name) for name in extra}))


def _check_directory(cache: str, *below: str) -> None:
    try:
        trusted.check(cache, *below)
    except HostError as error:
        raise HostError(f"the guest image is not used: {error.message}", hint=error.hint) from None


def _manifest(directory: str) -> Document:
    try:
        with open(f"{directory}/manifest.json", "rb") as file:
            manifest = parse(file.read(1024 * 1024))
        manifest["sources"], manifest["digest"], manifest["release"], manifest["build_seconds"]
        for name in FILES:
            manifest["files"][name]["size"], manifest["files"][name]["sha256"]
        for name in BESIDE:
            manifest["beside"][name]["size"], manifest["beside"][name]["sha256"]
    except FileNotFoundError:
        raise ImageError(f"the guest image in {directory} was removed", hint=_BUILD) from None
    except (OSError, ValueError, KeyError, TypeError):
        raise ImageError(f"the guest image is damaged: {directory}/manifest.json", hint=_BUILD) from None
    return dict(manifest)


def _check(directory: str, name: str, expected: Document, *, hash_files: bool) -> None:
    path = f"{directory}/{name}"
    try:
        trusted.check_file(path)
        status = os.stat(path)
    except OSError as error:
        raise ImageError(f"the guest image is damaged: {path}: {error.strerror}", hint=_BUILD) from None
    if status.st_size != expected["size"]:
        raise ImageError(
            f"the guest image is damaged: {path} has {status.st_size} bytes, not {expected['size']}", hint=_BUILD
        )
    # Hash the file only once for each size, time and inode: reading 60 MB at every start would take too long.
    key = [*answers.file_key(path), status.st_ino, expected["sha256"]]
    if hash_files or answers.read(f"{path}.checked", key) is None:
        if file_digest(path) != expected["sha256"]:
            with suppress(OSError):
                os.unlink(f"{path}.checked")  # so that no later start relies on it
            raise ImageError(f"the guest image is damaged: {path} was altered", hint=_BUILD)
        answers.write(f"{path}.checked", key, True)


def _check_tree(directory: str, name: str, expected: Document, *, hash_files: bool) -> None:
    """A directory beside the image. Its files are compared only for ``hash_files``: only root could have altered them,
    and they run nowhere but in guests."""
    path = f"{directory}/{name}"
    if not os.path.isdir(path) or (hash_files and tree_digest(path) != (expected["size"], expected["sha256"])):
        what = "was altered" if os.path.isdir(path) else "is missing"
        raise ImageError(f"the guest image is damaged: {path} {what}", hint=_BUILD)
