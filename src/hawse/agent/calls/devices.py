"""Calls for devices: bind a function that the host plugs, report its numbers in the guest, change a container's
nodes."""

from __future__ import annotations

from hawse.agent.calls.guest import Guest
from hawse.agent.calls.registry import Containers
from hawse.agent.container.running_nodes import LiveNode
from hawse.agent.devices import hardware
from hawse.agent.machine.boot import DISK_MODULES, VFIO_MODULES
from hawse.agent.system import trace

TYPE_CHECKING = False  # typing's import costs a tenth of a second in a guest without KVM
if TYPE_CHECKING:
    from hawse.json_text import Document


class DeviceCalls:
    """Carries out the calls for devices. Modules for disks and guest drivers are imported when needed."""

    def __init__(self, guest: Guest, containers: Containers) -> None:
        self._guest = guest
        self._containers = containers

    def bind_vfio(self, *, address: str, seconds: float) -> dict[str, object]:
        """Wait for a function and bind it to vfio-pci. Returns its group, the node's numbers, and its device file."""
        guest = self._guest
        with trace.span(f"VFIO modules loaded for {address}"):
            guest.load(VFIO_MODULES)
        return hardware.bind_vfio(guest.uevents, address, seconds=seconds, root=guest.root)

    def rescan_bridge(self, *, address: str) -> None:
        """Remove the bridge of a function and rescan, so that the bridge's windows fit all devices behind it."""
        with trace.span(f"bridge of {address} rescanned"):
            hardware.rescan_bridge(address, root=self._guest.root)

    def bind_disk(self, *, address: str, seconds: float) -> dict[str, int]:
        """Wait for a virtio-blk function and its disk. Returns the numbers of the disk's node."""
        from hawse.agent.devices import disks

        guest = self._guest
        guest.load(DISK_MODULES)
        with trace.span(f"disk at {address} ready"):
            return disks.bind_disk(guest.uevents, address, seconds=seconds, root=guest.root)

    def misc_numbers(self, *, names: list[str]) -> list[dict[str, int] | None]:
        """The numbers of misc devices, None for each that the guest kernel does not have."""
        from hawse.agent.devices import misc_devices

        return [misc_devices.misc_numbers(name, root=self._guest.root) for name in names]

    def bind_native(self, *, address: str, container: str, seconds: float) -> Document:
        """Wait for a function and bind it to a guest driver, whose module is in the container's share."""
        from hawse.agent.devices import guest_drivers

        guest = self._guest
        drivers = f"{guest.share}/{container}/drivers"
        return guest_drivers.bind_native(guest.uevents, address, drivers=drivers, seconds=seconds, root=guest.root)

    def add_nodes(self, *, container: str, nodes: list[Document], devices: list[Document]) -> None:
        """Create nodes in a running container, with modes and owners, and replace its device map."""
        self._containers.find(container).nodes.add([LiveNode(**node) for node in nodes], devices)

    def remove_nodes(
        self, *, container: str, nodes: list[Document], group: int | None, force: bool, seconds: float,
        devices: list[Document],
    ) -> None:  # fmt: skip
        """Remove nodes from a container. The group must not be in use, unless it is None; ``force`` kills its users."""
        owner = self._containers.find(container)
        self._end_users(group, force=force, seconds=seconds)
        owner.nodes.remove([LiveNode(**node) for node in nodes], devices)
        # A process that has opened the group since the first check would block the guest's only hotplug queue.
        self._end_users(group, force=force, seconds=seconds)

    def _end_users(self, group: int | None, *, force: bool, seconds: float) -> None:
        if group is not None:
            hardware.end_users(self._guest.uevents, group, force=force, seconds=seconds, root=self._guest.root)
