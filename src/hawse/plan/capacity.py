"""The capacity of a running VM: commands call ``room`` for it before a container joins or a device is added."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from hawse.errors import ConfigError, DeviceError
from hawse.plan.model import DiskPlan, PlugStep
from hawse.vm.ports import Port
from hawse.vm.size import STEP_MIB, needed_mib, usable_mib

_MIB = 1024 * 1024
_HUGEPAGES = "hawse.hugepages"


def serves(plugged: DiskPlan, requested: DiskPlan) -> bool:
    """Whether a plugged disk is the requested one, and is writable if the request needs that."""
    same = (plugged.major, plugged.minor) == (requested.major, requested.minor)
    return same and plugged.writable >= requested.writable


class Room(msgspec.Struct, frozen=True, kw_only=True):
    """The capacity of a running VM.

    ``spares`` are the free ports. ``disks`` and ``plugs`` are the disks and functions that containers already use, and
    ``native`` those groups that drivers of the guest kernel use. ``label`` is the SELinux label of the VM's programs on
    the host. ``hugepages_mib`` is the memory that is reserved for huge pages of its containers. ``overlays`` are the
    keys of the overlays that its containers use.
    """

    spares: list[Port]
    disks: list[DiskPlan] = []
    plugs: list[PlugStep] = []
    native: list[int] = []
    memory_mib: int = 0
    label: str = ""
    hugepages_mib: int = 0
    overlays: list[str] = []

    def shared(self, groups: Sequence[int], *, native: bool) -> list[PlugStep]:
        """The functions of these groups that are already plugged: the new container shares them.

        ``native``: drivers of the guest kernel use the devices of the new container. Raises :class:`ConfigError` if
        another container uses the group in the other mode.
        """
        plugs = [msgspec.structs.replace(plug, shared=True) for plug in self.plugs if plug.group in groups]
        for plug in plugs:
            if (plug.group in self.native) != native:
                how = "used by a driver of the guest kernel" if plug.group in self.native else "a VFIO device"
                raise ConfigError(
                    f"annotations: hawse.device-mode: group {plug.group} is {how} in another container of the pod",
                    hint="containers that share a device must use the same mode",
                )
        return plugs

    def check_disks(self, disks: Sequence[DiskPlan], *, groups: int) -> None:
        """Raise :class:`DeviceError` if too few ports are free for these disks and for ``groups`` new groups."""
        new = [disk for disk in disks if not any(serves(plugged, disk) for plugged in self.disks)]
        free = len([port for port in self.spares if not port.bridge]) - groups
        if len(new) > free:
            raise DeviceError(
                f"linux.devices: {len(new)} block device{' needs a port' if len(new) == 1 else 's need ports'}, and "
                f"the virtual machine has {max(free, 0)} free",
                hint="delete another container of the pod, or pass fewer block devices to it",
            )

    def check_memory(
        self, name: str, limit: int, *, hugepages_mib: int = 0, host_mib: int, pod: bool = True
    ) -> list[str]:
        """Check whether the VM has the memory for a container's ``limit`` in bytes. Returns warnings.

        ``name`` names the limit in messages. ``hugepages_mib`` is the container's memory in huge pages that is not
        reserved yet. A limit above the host's memory counts as no limit, as when a VM is created. Raises
        :class:`ConfigError` if the host allows a larger VM. If the VM is already as large as the host allows, it only
        warns: few programs reach such a limit.
        """
        huge = self.hugepages_mib + hugepages_mib
        left = usable_mib(self.memory_mib) - huge
        if limit <= max(left, 0) * _MIB or limit >= host_mib * _MIB:
            return []
        beside = f" besides {huge} MiB of huge pages" if huge else ""
        text = (
            f"{name}: {-(-limit // _MIB)} MiB are more than the virtual machine has for a container{beside}: "
            f"{max(left, 0)} MiB of {self.memory_mib} MiB"
        )
        if self.memory_mib + STEP_MIB > host_mib:
            return [f"{text} [lower the limit: this host does not have more memory for the VM]"]
        least = needed_mib(-(-limit // _MIB) + huge)
        if not pod:
            raise ConfigError(
                text,
                hint=f"set vm.memory_mib in the configuration to {least} or more, and create the container again: the "
                "memory of a running virtual machine cannot grow",
            )
        raise ConfigError(
            text,
            hint="the size of a pod's virtual machine follows the sum of its containers' limits, which kubelets from "
            "1.23 on pass"
            + (f", and the annotation {_HUGEPAGES} of the pod for its huge pages" if huge else "")
            + f". Otherwise set vm.memory_mib in the configuration to {least} or more",
        )

    def warnings(self, *, label: str) -> list[str]:
        """Warnings about fields of a container's specification that a running VM cannot apply any more."""
        texts = []
        if label and label != self.label:
            texts.append(
                f"process.selinuxLabel: {label[:200]} differs from the label of the pod's running virtual "
                f"machine: {self.label or 'none'} [set the label of the pod, not of one of its containers]"
            )
        return texts
