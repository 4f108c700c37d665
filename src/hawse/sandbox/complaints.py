"""Lines that QEMU writes to stderr while it runs. A guest causes many of them, so their number is limited."""

from __future__ import annotations

import re
from collections.abc import Callable

from hawse.errors import VmError, printable

#: QEMU prefixes its messages with its name and sometimes a time (QEMU util/error-report.c).
_NAME = re.compile(r"^(?:\S+Z )?\S*qemu-system-\S+: ")
_HARDWARE = re.compile(r"hardware error: (.*)")
#: The host refused to map memory of the guest for a device (QEMU hw/vfio/container.c; vfio_dma_map before 9.0).
_NOT_MAPPED = re.compile(r"vfio_(?:container_)?dma_map\(.*\) = -(\d+)")
_ENOMEM, _ENOSPC = 12, 28
_LONGEST, MOST = 1000, 100


class Complaints:
    """``log`` receives each line, :data:`MOST` of them at most; ``fail`` an error for which the VM must end."""

    def __init__(self, log: Callable[[str], object], fail: Callable[[VmError], object]) -> None:
        self._log = log
        self._fail = fail
        self._rest = b""
        self._count = 0
        #: Why QEMU aborts: it prints the reason first, and then the registers of every CPU (QEMU cpu.c, hw_error()).
        self.reason = ""

    def feed(self, piece: bytes) -> None:
        """A piece of QEMU's stderr."""
        *lines, self._rest = (self._rest + piece).split(b"\n")
        self._rest = self._rest[-_LONGEST:]
        for line in lines:
            if text := printable(line[:_LONGEST].decode(errors="replace").strip()):
                self._take(text)

    def _take(self, line: str) -> None:
        if self.reason:
            return  # registers
        if found := _HARDWARE.search(line):
            self.reason = f"hardware error: {found[1]}"
        if (found := _NOT_MAPPED.search(line)) and int(found[1]) in (_ENOMEM, _ENOSPC):
            self._fail(_lost_dma(int(found[1])))
        self._count += 1
        if self._count <= MOST:
            last = " (further messages are in qemu.log only)" if self._count == MOST else ""
            self._log(f"QEMU: {_NAME.sub('', line)}{last}")


def _lost_dma(number: int) -> VmError:
    message = "the host could not map the guest's memory for a device, and DMA of the device would have been lost: "
    if number == _ENOSPC:
        return VmError(
            f"{message}too many mappings",
            hint="raise dma_entry_limit of the module vfio_iommu_type1, or let the program use huge pages",
        )
    return VmError(
        f"{message}too much locked memory", hint="start the engine with LimitMEMLOCK=infinity (RLIMIT_MEMLOCK)"
    )
