"""What those who join a sandbox, or give it more devices, are told of its machine, which runs: the call ``room``."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from hawse.errors import ConfigError, DeviceError
from hawse.sandbox.plan import DiskPlan, PlugStep
from hawse.vm.ports import Port

_MIB = 1024 * 1024


def serves(there: DiskPlan, wanted: DiskPlan) -> bool:
    """Whether a disk that is plugged is the wanted one, and can be written to if that is to be."""
    return (there.major, there.minor) == (wanted.major, wanted.minor) and there.writable >= wanted.writable


class Room(msgspec.Struct, frozen=True, kw_only=True):
    """``spares`` are the free ports. ``disks`` and ``plugs`` are disks and functions that other containers have, and
    ``native`` the groups among them that the guest's own drivers have. ``label`` is what the machine's programs have on
    the host."""

    spares: list[Port]
    disks: list[DiskPlan] = []
    plugs: list[PlugStep] = []
    native: list[int] = []
    memory_mib: int = 0
    label: str = ""

    def shared(self, groups: Sequence[int], *, native: bool) -> list[PlugStep]:
        """The functions of those of the groups that are there already: who comes later has them, too.

        ``native``: the container leaves its devices to the guest's own drivers. Raises :class:`ConfigError` where
        another has the group otherwise.
        """
        found = [msgspec.structs.replace(plug, shared=True) for plug in self.plugs if plug.group in groups]
        for plug in found:
            if (plug.group in self.native) != native:
                how = "left to the guest's own driver" if plug.group in self.native else "a VFIO device"
                raise ConfigError(
                    f"annotations: hawse.device-mode: group {plug.group} is {how} in another container of the pod",
                    hint="containers that share a device have it in one mode",
                )
        return found

    def check_disks(self, disks: Sequence[DiskPlan], *, groups: int) -> None:
        """Raise :class:`DeviceError` where there are too few ports for these disks, beside those for new groups."""
        new = [disk for disk in disks if not any(serves(there, disk) for there in self.disks)]
        free = len([port for port in self.spares if not port.bridge]) - groups
        if len(new) > free:
            raise DeviceError(
                f"linux.devices: block devices need {len(new)} ports, and {max(free, 0)} of the machine's are free",
                hint="delete another container of the pod, or have fewer block devices in it",
            )

    def warnings(self, *, memory: int, label: str, host_mib: int) -> list[str]:
        """What of a container's specification this machine cannot follow any more.

        ``memory`` is its limit in bytes. One that no host could give is none, as where the machine is made.
        """
        found = []
        if self.memory_mib * _MIB < memory < host_mib * _MIB:
            found.append(
                f"linux.resources.memory.limit: {memory // _MIB} MiB are more than the virtual machine of the pod has, "
                f"{self.memory_mib} MiB [a machine is as large as its sandbox's annotations say that the pod is, or "
                "vm.memory_mib in the configuration]"
            )
        if label and label != self.label:
            found.append(
                f"process.selinuxLabel: {label[:200]} is another than the virtual machine of the pod was started "
                f"with, {self.label or 'none'} [give the pod the label, not one of its containers]"
            )
        return found
