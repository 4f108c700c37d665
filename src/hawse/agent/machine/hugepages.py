"""The guest's huge pages: reserve and release pages, and mount hugetlbfs file systems that containers share."""

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
_lock = threading.Lock()


def reserve(*, kib: int, count: int, directory: str = SYSFS) -> None:
    """Reserve ``count`` additional pages of ``kib`` KiB each, all or none; release pages if ``count`` is negative.

    Raises :class:`VmError` with the number of pages that could be reserved.
    """
    pool = f"{directory}/hugepages-{kib}kB"
    if not os.path.isdir(pool):
        raise VmError(
            f"the guest's CPU has no huge pages of {_name(kib)}",
            hint=f"it has {', '.join(_sizes(directory)) or 'none at all'}",
        )
    with _lock:
        before = _persistent(pool)
        _write(pool, before + count)
        reserved = _persistent(pool) - before
        if reserved < count:
            _write(pool, before)
            raise VmError(
                f"the guest has room for {max(reserved, 0)} of {count} huge pages of {_name(kib)}",
                hint="give the VM more memory: set vm.memory_mib in the configuration, or for a pod the annotation "
                "hawse.hugepages to the number of pages that its containers need",
            )


def share(*, name: str, kib: int, mode: int, uid: int, gid: int, run: str) -> None:
    """Mount a hugetlbfs, which containers bind, until the VM ends. An existing one is kept. Raises VmError."""
    target = f"{run}/hugepages/{name}"
    with _lock:
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
    """The specification without limits for page sizes that the guest does not have, whose files crun would not find.

    Engines set a limit of zero for each page size of the host.
    """
    linux = spec.get("linux") or {}
    resources = linux.get("resources") or {}
    limits = resources.get("hugepageLimits")
    if not limits:
        return spec
    known = _sizes(directory)
    resources = {**resources, "hugepageLimits": [limit for limit in limits if limit["pageSize"] in known]}
    return {**spec, "linux": {**linux, "resources": resources}}


def _persistent(pool: str) -> int:
    """The number of reserved pages.

    Surplus pages, whose files outlived their reservation, are not included; nr_hugepages includes them (Linux
    Documentation/admin-guide/mm/hugetlbpage.rst).
    """
    numbers = []
    for name in ("nr_hugepages", "surplus_hugepages"):
        with open(f"{pool}/{name}") as file:
            numbers.append(int(file.read()))
    return numbers[0] - numbers[1]


def _write(pool: str, count: int) -> None:
    with open(f"{pool}/nr_hugepages", "w") as file:
        file.write(str(max(count, 0)))


def _sizes(directory: str) -> list[str]:
    """The sizes, in the specification's format."""
    sizes = [name.removeprefix("hugepages-").removesuffix("kB") for name in sorted(os.listdir(directory))]
    return [_name(int(kib)) for kib in sizes if kib.isdigit()]


def _name(kib: int) -> str:
    for unit in ("GB", "MB"):
        if kib % _UNITS[unit] == 0:
            return f"{kib // _UNITS[unit]}{unit}"
    return f"{kib}KB"
