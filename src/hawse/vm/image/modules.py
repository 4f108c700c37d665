"""Choose the kernel modules of an image: those in its initial ramfs, and those in directories next to it."""

from __future__ import annotations

import gzip
import lzma
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterable, Mapping, Sequence
from fnmatch import fnmatchcase

from hawse.errors import ImageError
from hawse.vm.image.file_tree import chroot, inside
from hawse.vm.image.store import module_name

#: The dependencies of each module, by its path in the kernel's module directory: modules.dep (depmod(8)).
Needs = Mapping[str, Sequence[str]]
_APT_HELPER = "/usr/lib/apt/apt-helper"


def add_kernel_modules(
    full: str, tree: str, modules: str, release: str, names: Sequence[str], *, place: str = ""
) -> None:
    """Copy the named modules of the directory ``modules`` with their dependencies, and write their modules.dep.

    ``place`` is their directory in ``tree``, by default modprobe's. depmod runs in ``full``, which contains kmod; the
    image does not need it. Raises :class:`ImageError` for a name that is missing.
    """
    work, target = inside(full, f"usr/lib/modules/{release}"), f"{tree}/{place or f'usr/lib/modules/{release}'}"
    os.makedirs(work)
    os.makedirs(target)  # a kernel may have everything built in
    for table in ("modules.order", "modules.builtin", "modules.builtin.modinfo"):
        if os.path.exists(f"{modules}/{table}"):
            shutil.copyfile(f"{modules}/{table}", f"{work}/{table}")
    shutil.copytree(f"{modules}/kernel", f"{work}/kernel")
    chroot(full, "/usr/sbin/depmod", release)
    needs = _dependencies(work)
    chosen, missing = find(names, needs, _builtin(work))
    if missing:
        raise ImageError(
            f"guest image: the kernel in {work} has no module {missing[0]}",
            hint="build it as a module or into the kernel",
        )
    _copy_with_needs(work, target, chosen, needs)


def add_drivers(full: str, target: str, release: str, names: Sequence[str]) -> None:
    """Copy those of the named modules that the kernel has, and their dependencies; write modules.dep and modules.alias.

    Call it after :func:`add_kernel_modules`, which runs depmod.
    """
    work = f"{full}/usr/lib/modules/{release}"
    needs = _dependencies(work)
    chosen, _ = find(names, needs, ())
    os.makedirs(target)
    _copy_with_needs(work, target, chosen, needs)
    drivers = {module_name(path) for path in chosen}
    _copy_aliases(work, target, lambda line: " pci:" in line and line.split()[-1] in drivers)


def add_autoload(full: str, target: str, release: str, patterns: Sequence[str], extra: Sequence[str]) -> None:
    """Create the directory that the guest's modprobe reads: modules, modules.dep, modules.alias and modules.builtin.

    ``patterns`` match paths below "kernel" in the module directory, without the suffix. A pattern without a match is
    not an error, since kernels differ. ``extra`` are names from image.extra_modules: each must exist.
    Call it after :func:`add_kernel_modules`. Raises :class:`ImageError` for a name that is missing.
    """
    work = f"{full}/usr/lib/modules/{release}"
    needs = _dependencies(work)
    listed, missing = find(extra, needs, _builtin(work))
    if missing:
        raise ImageError(
            f"guest image: image.extra_modules: the kernel {release} has no module {', '.join(missing)}",
            hint="correct the name, or set image.kernel and image.modules to a kernel that has it",
        )
    os.makedirs(target)
    chosen = [*matching(patterns, needs), *listed]
    names = {module_name(path) for path in _copy_with_needs(work, target, chosen, needs)}
    # Aliases of PCI devices are for a program that watches for hardware. The kernel itself never requests one.
    _copy_aliases(work, target, lambda line: " pci:" not in line and line.split()[-1] in names)
    shutil.copyfile(f"{work}/modules.builtin", f"{target}/modules.builtin")


def matching(patterns: Sequence[str], paths: Iterable[str]) -> list[str]:
    """The paths (kernel/net/sctp/sctp.ko.xz) that match a pattern ("net/sctp/*"), sorted. ``*`` matches slashes too."""
    stems = {path: re.sub(r"\.ko(\.\w+)?$", "", path).removeprefix("kernel/") for path in paths}
    return sorted(path for path, stem in stems.items() if any(fnmatchcase(stem, pattern) for pattern in patterns))


def find(names: Sequence[str], paths: Iterable[str], builtin: Iterable[str]) -> tuple[list[str], list[str]]:
    """The paths of the named modules, in the order of the names, and the names that the kernel does not have at all."""
    by_name = {module_name(path): path for path in paths}
    spelled = {module_name(name): name for name in names}
    inside_kernel = set(builtin)
    chosen = [by_name[name] for name in spelled if name in by_name]
    return chosen, [spelling for name, spelling in spelled.items() if name not in by_name and name not in inside_kernel]


def _dependencies(directory: str) -> dict[str, list[str]]:
    needs: dict[str, list[str]] = {}
    with open(f"{directory}/modules.dep") as file:
        for line in file:
            path, _, others = line.partition(":")
            needs[path] = others.split()
    return needs


def _builtin(directory: str) -> set[str]:
    with open(f"{directory}/modules.builtin") as file:
        return {module_name(line.strip()) for line in file}


def _copy_with_needs(work: str, target: str, chosen: Sequence[str], needs: Needs) -> list[str]:
    """Copy modules with all their dependencies, and write their modules.dep; returns their paths in ``work``."""
    paths = sorted({*chosen, *(other for path in chosen for other in needs[path])})
    kept = {path: _copy_module(f"{work}/{path}", target, path) for path in paths}
    with open(f"{target}/modules.dep", "w") as file:
        for path in paths:
            file.write(f"{kept[path]}: {' '.join(kept[other] for other in needs.get(path, []))}\n")
    return paths


def _copy_aliases(work: str, target: str, select: Callable[[str], bool]) -> None:
    with open(f"{work}/modules.alias") as aliases, open(f"{target}/modules.alias", "w") as file:
        file.writelines(line for line in aliases if line.startswith("alias ") and select(line))


def _copy_module(source: str, target: str, path: str) -> str:
    """Copy one module, decompressed, since busybox's modprobe does not support all these formats.

    Returns its path in ``target``.
    """
    name, suffix = os.path.splitext(path)
    unpack = {".xz": lzma.decompress, ".gz": gzip.decompress}.get(suffix)
    if suffix == ".zst":
        path, content = name, _read_zstd(source)
    else:
        with open(source, "rb") as packed:
            content = packed.read()
        if unpack is not None:
            path, content = name, unpack(content)
    os.makedirs(os.path.dirname(f"{target}/{path}"), exist_ok=True)
    with open(f"{target}/{path}", "wb") as file:
        file.write(content)
    return path


def _read_zstd(path: str) -> bytes:
    """Decompress a file with apt-helper, which the build needs anyway: Python before 3.14 has no zstd."""
    try:
        return subprocess.run([_APT_HELPER, "cat-file", path], capture_output=True, check=True).stdout
    except OSError as error:
        reason = f"{_APT_HELPER}: {error.strerror}"
    except subprocess.CalledProcessError as error:
        reason = error.stderr.decode(errors="replace")[-2000:].strip()
    raise ImageError(
        f"guest image: cannot decompress {path}: {reason}", hint="decompress the modules of image.modules with zstd -d"
    )
