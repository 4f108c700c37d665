"""Log the lines that QEMU writes to stderr while it runs. A guest can cause many, so their number is limited."""

from __future__ import annotations

import re
from collections.abc import Callable

from hawse.errors import VmError, printable

#: QEMU prefixes its messages with its name and sometimes a time (QEMU util/error-report.c).
_NAME = re.compile(r"^(?:\S+Z )?\S*qemu-system-\S+: ")
_HARDWARE = re.compile(r"hardware error: (.*)")
#: The host refused to map memory of the guest for a device (QEMU hw/vfio/container.c; vfio_dma_map before 9.0). The
#: arguments are QEMU's container, the IOVA, the size and the address in QEMU's process.
_NOT_MAPPED = re.compile(r"vfio_(?:container_)?dma_map\(\w+, 0x([0-9a-f]{1,16}), .*\) = -(\d+)")
_ENOMEM, _EINVAL, _ENOSPC = 12, 22, 28
#: A function of the host, or a port above it, reported an uncorrectable error by PCI Express AER (QEMU hw/vfio/pci.c,
#: vfio_err_notifier_handler(); Linux drivers/pci/pcie/err.c, pcie_do_recovery()).
_DEVICE_ERROR = re.compile(r"vfio_err_notifier_handler\(([0-9a-fA-F:.]{1,32})\)")
#: KVM cannot continue the VM; the CPU's registers follow (QEMU accel/kvm/kvm-all.c, target/i386/kvm/kvm.c).
_KVM = re.compile(r"(KVM internal error.*|KVM: (?:entry failed|unknown exit).*|error: kvm run failed.*)")
#: Run states in which QEMU has stopped a VM without a command, and does not exit (QEMU qapi/run-state.json, RunState).
STOPPED_FOR_GOOD = frozenset({"internal-error", "io-error", "guest-panicked", "watchdog"})
_LONGEST, MOST = 1000, 100


class QemuWarnings:
    """``log`` receives at most :data:`MOST` lines; ``fail`` receives an error for which the VM must end.

    ``address_bits``: the width of the VM's IOMMU.
    """

    def __init__(
        self, log: Callable[[str], object], fail: Callable[[VmError], object], *, address_bits: int = 48
    ) -> None:
        self._log = log
        self._fail = fail
        self._address_bits = address_bits
        self._rest = b""
        self._count = 0
        #: Why QEMU aborts or stops the VM: it prints the reason first, and then the registers of every CPU (QEMU cpu.c,
        #: hw_error()).
        self.reason = ""
        self._broken_device = ""

    def feed(self, piece: bytes) -> None:
        """Read a part of QEMU's stderr."""
        *lines, self._rest = (self._rest + piece).split(b"\n")
        self._rest = self._rest[-_LONGEST:]
        for line in lines:
            if text := printable(line[:_LONGEST].decode(errors="replace").strip()):
                self._take(text)

    def stop_error(self, status: str) -> VmError:
        """Why QEMU has stopped the VM. ``status``: the run state."""
        if self._broken_device:
            return VmError(
                f"QEMU stopped the virtual machine: {self._broken_device}, or a port above it, reported an "
                "uncorrectable error",
                hint="the host's kernel log contains the PCI Express error (AER); reset the device, or replace it",
            )
        if self.reason:
            return VmError(
                f"the host's KVM cannot continue the virtual machine: {self.reason}",
                hint='frequent with nested virtualization: run on another host, or without KVM (vm.accel = "tcg")',
            )
        return VmError(f"QEMU stopped the virtual machine: {status}", hint="qemu.log contains QEMU's messages")

    def _take(self, line: str) -> None:
        if device_error := _DEVICE_ERROR.search(line):
            self._broken_device = device_error[1]
        if refused := _NOT_MAPPED.search(line):
            self._check_mapping(int(refused[1], 16), int(refused[2]))
        if self.reason:
            return  # registers
        if hardware_error := _HARDWARE.search(line):
            self.reason = f"hardware error: {hardware_error[1]}"
        if stopped := _KVM.search(line):
            self.reason = stopped[1]
        self._count += 1
        if self._count <= MOST:
            last = " (further messages are in qemu.log only)" if self._count == MOST else ""
            self._log(f"QEMU: {_NAME.sub('', line)}{last}")

    def _check_mapping(self, iova: int, number: int) -> None:
        """End the VM if the guest requested this mapping, since DMA through it would be lost.

        Other errors concern BARs, which QEMU maps for transfers between devices: the address exceeds the width of the
        host's IOMMU, or the IOMMU cannot map it. Many hosts do not support such transfers, and QEMU continues as well.
        """
        if number in (_ENOMEM, _ENOSPC) or (number == _EINVAL and iova >> self._address_bits == 0):
            self._fail(_lost_dma(iova, number))


def _lost_dma(iova: int, number: int) -> VmError:
    message = "the host could not map the guest's memory for a device, and DMA of the device would have been lost: "
    if number == _ENOSPC:
        return VmError(
            f"{message}too many mappings",
            hint="raise dma_entry_limit of the module vfio_iommu_type1, or let the program use huge pages",
        )
    if number == _EINVAL:
        return VmError(
            f"{message}the host's IOMMU does not translate the IOVA {iova:#x}",
            hint="let the program use other IOVAs; /sys/kernel/iommu_groups/GROUP/reserved_regions on the host lists "
            "those that no device can use",
        )
    return VmError(
        f"{message}too much locked memory", hint="start the engine with LimitMEMLOCK=infinity (RLIMIT_MEMLOCK)"
    )
