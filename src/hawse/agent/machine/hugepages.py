"""The guest's huge pages: so many more or less of one size, and file systems of them that containers share."""

from __future__ import annotations

import os
import threading

from hawse.errors import VmError
from hawse.linux import mounts

TYPE_CHECKING = False  # typing's import costs a tenth of a second in a guest without KVM
if TYPE_CHECKING:
    from hawse.json_text import Document

SYSFS = "/sys/kernel/mm/hugepages"
_UNITS = {"KB": 1, "MB": 1024, "GB": 1024 * 1024}
_one_at_a_time = threading.Lock()


def reserve(*, kib: int, count: int, directory: str = SYSFS) -> None:
    """Have ``count`` more pages of ``kib`` KiB each, or fewer where it is below zero; all of them or none.

    Raises :class:`VmError` with how many there was room for.
    """
    place = f"{directory}/hugepages-{kib}kB"
    if not os.path.isdir(place):
        raise VmError(
            f"the guest's CPU has no huge pages of {_name(kib)}",
            hint=f"it has {', '.join(_sizes(directory)) or 'none at all'}",
        )
    with _one_at_a_time:
        before = _persistent(place)
        _write(place, before + count)
        got = _persistent(place) - before
        if got < count:
            _write(place, before)
            raise VmError(
                f"the guest has room for {max(got, 0)} of {count} huge pages of {_name(kib)}",
                hint="give the virtual machine more memory: vm.memory_mib in the configuration, or for a pod the "
                "annotation hawse.hugepages, which says how many its containers need",
            )


def share(*, name: str, kib: int, mode: int, uid: int, gid: int, run: str) -> None:
    """Have a file system of such pages for the containers that are bound to it, for as long as the machine runs."""
    target = f"{run}/hugepages/{name}"
    with _one_at_a_time:
        if os.path.exists(target):
            return
        os.makedirs(target)
        try:
            options = f"pagesize={kib}K,mode={mode:o},uid={uid},gid={gid}"
            mounts.mount("hugetlbfs", target, "hugetlbfs", mounts.NOSUID | mounts.NODEV, options)
        except OSError as error:
            os.rmdir(target)
            raise VmError(f"the guest cannot mount huge pages of {_name(kib)}: {error.strerror}") from None


def without_unknown_limits(spec: Document, *, directory: str = SYSFS) -> Document:
    """The specification without limits of sizes that the guest does not have: crun would look for their files.

    Engines set a limit, of zero, for each size that the host has.
    """
    linux = spec.get("linux") or {}
    resources = linux.get("resources") or {}
    limits = resources.get("hugepageLimits")
    if not limits:
        return spec
    known = _sizes(directory)
    resources = {**resources, "hugepageLimits": [limit for limit in limits if limit["pageSize"] in known]}
    return {**spec, "linux": {**linux, "resources": resources}}


def _persistent(place: str) -> int:
    """Pages that were asked for. Those whose files outlived their reservation are surplus, and in the number of all
    pages too (Linux Documentation/admin-guide/mm/hugetlbpage.rst)."""
    numbers = []
    for name in ("nr_hugepages", "surplus_hugepages"):
        with open(f"{place}/{name}") as file:
            numbers.append(int(file.read()))
    return numbers[0] - numbers[1]


def _write(place: str, count: int) -> None:
    with open(f"{place}/nr_hugepages", "w") as file:
        file.write(str(max(count, 0)))


def _sizes(directory: str) -> list[str]:
    """As the specification writes them."""
    found = [name.removeprefix("hugepages-").removesuffix("kB") for name in sorted(os.listdir(directory))]
    return [_name(int(kib)) for kib in found if kib.isdigit()]


def _name(kib: int) -> str:
    for unit in ("GB", "MB"):
        if kib % _UNITS[unit] == 0:
            return f"{kib // _UNITS[unit]}{unit}"
    return f"{kib}KB"
