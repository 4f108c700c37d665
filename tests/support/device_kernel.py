"""Debian's Linux 6.12 with VFIO's device files, for the lab and for guests.

No Debian kernel has CONFIG_IOMMUFD. IOMMUFD and VFIO are modules, so this builds only those, from Debian's source of
the same version, against Debian's headers and symbol versions, and replaces Debian's VFIO modules by them. The
kernel image and all other modules are those of Debian. This takes half a minute of CPU time. The result is kept in the
cache under a digest of its inputs.

What the built-in code and these modules share does not depend on the options that are added: in include/, these are
read only by linux/vfio.h, whose users are all rebuilt; by linux/iova_bitmap.h and linux/iommufd.h, which declare
functions; and by linux/sched/user.h, for a field that CONFIG_NET adds as well. One thing differs from a kernel that was
built with the options: its IOMMU drivers leave out dirty tracking, so that IOMMU_HWPT_GET_DIRTY_BITMAP finds no page.

``python -m tests.support.device_kernel`` builds it unless the cache has it, and prints the configuration that uses it.
"""

from __future__ import annotations

import functools
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from hawse.errors import HostError
from hawse.vm.image import packages
from hawse.vm.image.build import kernel_packages, unpack_kernel
from hawse.vm.image.packages import Package
from tests.support.caches import CACHE, kept

#: The metapackage of Debian 12's Linux 6.12; its default kernel, 6.1, is older than IOMMUFD. Debian 13's default fits.
_IMAGES = {"bookworm": "linux-image-6.12-amd64"}
_DEFAULT_IMAGE = "linux-image-amd64"
#: Options added to Debian's configuration. IOMMUFD also needs IOMMUFD_DRIVER and INTERVAL_TREE_SPAN_ITER
#: (drivers/iommu/Kconfig, lib/Kconfig), which Debian's kernel lacks, so both are linked into iommufd.ko.
OPTIONS = {"IOMMUFD": "m", "IOMMUFD_DRIVER": "y", "VFIO_DEVICE_CDEV": "y"}
_SOURCES = ("drivers/iommu/iommufd", "drivers/iommu/iommu-priv.h", "drivers/vfio", "lib/interval_tree.c")
_SPAN_BEGIN, _SPAN_END = "#ifdef CONFIG_INTERVAL_TREE_SPAN_ITER\n", "#endif\n"


@dataclass(frozen=True)
class Kernel:
    """Values for image.kernel and image.modules: a bzImage, and its /lib/modules/<release> directory."""

    image: str
    modules: str


@functools.cache
def build() -> Kernel:
    """Build the kernel's modules unless the cache has them for the same inputs.

    Raises :class:`HostError` where packages cannot be fetched, and CalledProcessError where the compiler fails.
    """
    kernel, headers, source = _fetch()

    def make(path: str) -> None:
        _, modules = unpack_kernel([kernel], path)
        with tempfile.TemporaryDirectory(prefix=".kernel-", dir=CACHE) as work:
            _replace(_compile(work, headers, source), modules)

    tree = kept(f"kernel-{digest([kernel, *headers, source])[:16]}", make)
    release = _release(kernel)
    return Kernel(f"{tree}/boot/vmlinuz-{release}", f"{tree}/usr/lib/modules/{release}")


def digest(fetched: Sequence[Package]) -> str:
    """A digest of all inputs: the packages, which name their compiler, and this file."""
    with open(__file__, "rb") as file:
        words = [hashlib.sha256(file.read()).hexdigest()]
    words += [*(f"{package.name} {package.version} {package.sha256}" for package in fetched)]
    return hashlib.sha256("\n".join(words).encode()).hexdigest()


def definitions(options: Mapping[str, str]) -> list[str]:
    """Compiler flags for options of kconfig, as include/generated/autoconf.h defines them."""
    return [f"-DCONFIG_{name}{'_MODULE' if value == 'm' else ''}=1" for name, value in options.items()]


def span_iterator(text: str) -> str:
    """The iterator over spans of lib/interval_tree.c as a separate source; the kernel exports the rest of that file.

    Raises ValueError when ``text`` has no such part.
    """
    _, begin, rest = text.partition(_SPAN_BEGIN)
    part, end, _ = rest.rpartition(_SPAN_END)
    if not begin or not end:
        raise ValueError("lib/interval_tree.c has no part for CONFIG_INTERVAL_TREE_SPAN_ITER")
    return f"#include <linux/interval_tree.h>\n#include <linux/export.h>\n\n{part}"


def _release(kernel: Package) -> str:
    return kernel.name.removeprefix("linux-image-")


def _fetch() -> tuple[Package, list[Package], Package]:
    """The kernel, its headers and its source, of one version: a mirror may offer a newer source than signed kernel."""
    [kernel] = kernel_packages({"kernel_package": _IMAGES.get(_codename(), _DEFAULT_IMAGE)}, CACHE, print)
    release = _release(kernel)
    name = f"linux-source-{'.'.join(release.split('.')[:2])}"
    fetched = packages.fetch([f"linux-headers-{release}", f"{name}={kernel.version}"], cache=CACHE, progress=print)
    headers = [package for package in fetched if package.name.startswith(("linux-headers-", "linux-kbuild-"))]
    [source] = [package for package in fetched if package.name == name]
    return kernel, headers, source


def _codename() -> str:
    with open("/etc/os-release") as file:
        values = dict(line.rstrip("\n").split("=", 1) for line in file if "=" in line)
    return values.get("VERSION_CODENAME", "")


def _compile(work: str, headers: Sequence[Package], source: Package) -> str:
    """Build the modules below ``work``; returns the directory with the modules at the paths of the kernel tree."""
    tree = f"{work}/modules"
    _unpack_source(work, source, tree)
    packages.unpack(headers, work, select=lambda name: name.startswith(("usr/src/", "usr/lib/linux-kbuild-")))
    [common] = [package.name for package in headers if package.name.endswith("-common")]
    [own] = [package.name for package in headers if package.name.endswith("-amd64")]
    # Debian's Makefile includes that of the other package by its absolute path, where it is not installed.
    _write(f"{work}/usr/src/{own}/Makefile", f"include {work}/usr/src/{common}/Makefile\n")
    # Without debug information: BTF of modules takes pahole, and nothing here reads it.
    words = ["CONFIG_DEBUG_INFO=", "CONFIG_DEBUG_INFO_BTF_MODULES="]
    words += [f"CONFIG_{name}={OPTIONS[name]}" for name in ("IOMMUFD", "VFIO_DEVICE_CDEV")]
    print("compiling IOMMUFD and VFIO", flush=True)
    _run("make", "-s", f"-j{os.cpu_count()}", "-C", f"{work}/usr/src/{own}", f"M={tree}", *words, "modules")
    return tree


def _unpack_source(work: str, source: Package, tree: str) -> None:
    """The sources of the modules, with the makefiles that build them out of the kernel's tree."""
    packages.unpack([source], work, select=lambda name: name.endswith(".tar.xz"))
    os.mkdir(tree)
    archive = f"{work}/usr/src/{source.name}.tar.xz"
    members = [f"{source.name}/{path}" for path in _SOURCES]
    _run("tar", "--extract", f"--file={archive}", f"--directory={tree}", "--strip-components=1", *members)
    iommufd = f"{tree}/drivers/iommu/iommufd"
    with open(f"{tree}/lib/interval_tree.c") as file:
        _write(f"{iommufd}/span_iterator.c", span_iterator(file.read()))
    with open(f"{iommufd}/Makefile", "a") as file:
        file.write("iommufd-y += span_iterator.o iova_bitmap.o\n")
    flags = " ".join(definitions(OPTIONS))
    _write(f"{tree}/Kbuild", f"subdir-ccflags-y := {flags}\nobj-m := drivers/iommu/iommufd/ drivers/vfio/\n")


def _replace(built: str, modules: str) -> None:
    """Put the built modules into Debian's modules directory, for every VFIO module there."""
    for path in _modules(built):
        target = f"{modules}/kernel/{path}"
        os.makedirs(os.path.dirname(target), exist_ok=True)
        for suffix in (".xz", ".zst"):
            if os.path.exists(f"{target}{suffix}"):
                os.unlink(f"{target}{suffix}")
        shutil.copyfile(f"{built}/{path}", target)
    # Other modules of Debian that import VFIO's symbols expect other versions of its structures, and would not load.
    left = [path for path in _modules(f"{modules}/kernel/drivers/vfio") if not path.endswith(".ko")]
    if left:
        raise HostError(f"VFIO modules of Debian's that were not rebuilt: {' '.join(left)}")


def _modules(directory: str) -> list[str]:
    """The paths of all modules below a directory, relative to it."""
    return sorted(
        os.path.relpath(f"{parent}/{name}", directory)
        for parent, _, names in os.walk(directory)
        for name in names
        if name.endswith((".ko", ".ko.xz", ".ko.zst"))
    )


def _run(*argv: str) -> None:
    subprocess.run(argv, check=True, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)


def _write(path: str, text: str) -> None:
    with open(path, "w") as file:
        file.write(text)


def main() -> int:
    """Build the kernel unless it is in the cache; print the configuration that uses it."""
    began = time.monotonic()
    kernel = build()
    print(f'[image]\nkernel = "{kernel.image}"\nmodules = "{kernel.modules}"  # {time.monotonic() - began:.0f} s')
    return 0


if __name__ == "__main__":
    sys.exit(main())
