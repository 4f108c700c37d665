"""What those who join a sandbox, or give it more devices, are told of its machine, which runs: the call ``room``."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from hawse.errors import ConfigError, DeviceError
from hawse.plan.model import DiskPlan, PlugStep
from hawse.vm.ports import Port
from hawse.vm.size import STEP_MIB, needed_mib, usable_mib

_MIB = 1024 * 1024
_HUGEPAGES = "hawse.hugepages"


def serves(there: DiskPlan, wanted: DiskPlan) -> bool:
    """Whether a disk that is plugged is the wanted one, and can be written to if that is to be."""
    return (there.major, there.minor) == (wanted.major, wanted.minor) and there.writable >= wanted.writable


class Room(msgspec.Struct, frozen=True, kw_only=True):
    """``spares`` are the free ports. ``disks`` and ``plugs`` are disks and functions that other containers have, and
    ``native`` the groups among them that the guest's own drivers have. ``label`` is what the machine's programs have on
    the host, and ``hugepages_mib`` what its containers have of its memory as huge pages. ``overlays`` are the keys of
    those that its containers have."""

    spares: list[Port]
    disks: list[DiskPlan] = []
    plugs: list[PlugStep] = []
    native: list[int] = []
    memory_mib: int = 0
    label: str = ""
    hugepages_mib: int = 0
    overlays: list[str] = []

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
                f"linux.devices: ports are needed for {len(new)} block device{'' if len(new) == 1 else 's'}, and "
                f"{max(free, 0)} of the machine's are free",
                hint="delete another container of the pod, or have fewer block devices in it",
            )

    def check_memory(
        self, name: str, limit: int, *, hugepages_mib: int = 0, host_mib: int, pod: bool = True
    ) -> list[str]:
        """Whether the machine can give a container its limit, in bytes, of what ``name`` calls; what to warn of.

        ``hugepages_mib``: what it has of huge pages beside those that are reserved already. A limit that no host could
        give is none, as where the machine is made. Raises :class:`ConfigError` where a larger machine could be had, and
        only warns where this one is as large as the host allows: there the limit is one that few programs reach.
        """
        huge = self.hugepages_mib + hugepages_mib
        left = usable_mib(self.memory_mib) - huge
        if limit <= max(left, 0) * _MIB or limit >= host_mib * _MIB:
            return []
        beside = f" beside {huge} MiB of huge pages" if huge else ""
        text = (
            f"{name}: {-(-limit // _MIB)} MiB are more than the virtual machine has for a container{beside}: "
            f"{max(left, 0)} MiB of {self.memory_mib} MiB"
        )
        if self.memory_mib + STEP_MIB > host_mib:
            return [f"{text} [this host has no more memory for it: lower the limit]"]
        least = needed_mib(-(-limit // _MIB) + huge)
        if not pod:
            raise ConfigError(
                text,
                hint=f"set vm.memory_mib in the configuration to {least} or more, and create the container again: the "
                "memory of a running virtual machine cannot grow",
            )
        raise ConfigError(
            text,
            hint="a pod's virtual machine is as large as the engine says that the limits of its containers come to: a "
            "kubelet from 1.23 on says it"
            + (f", and the annotation {_HUGEPAGES} on the pod its huge pages" if huge else "")
            + f". Else set vm.memory_mib in the configuration to {least} or more",
        )

    def warnings(self, *, label: str) -> list[str]:
        """What of a container's specification this machine cannot follow any more."""
        found = []
        if label and label != self.label:
            found.append(
                f"process.selinuxLabel: {label[:200]} is another than the virtual machine of the pod was started "
                f"with, {self.label or 'none'} [give the pod the label, not one of its containers]"
            )
        return found
