"""The ports and groups of a VM that its containers have claimed. A port holds one group at a time.

Several containers may claim the same group, as under runc, where the first that opens it gets it: an init container of
a pod has ended, but is not deleted yet, when the next container with the same device is created. A shared group is
plugged once, and unplugged with its last container.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from hawse.errors import StateError
from hawse.plan.model import PlugStep
from hawse.vm.ports import Port


class Claims:
    """The claims of one VM, accessed only in the monitor's event loop. An ``owner`` is a container's id."""

    def __init__(self, ports: Sequence[Port]) -> None:
        self._ports = list(ports)
        self._plugs: dict[str, PlugStep] = {}
        self._owners: dict[str, set[str]] = {}
        self._leaving: set[str] = set()
        self._kept: set[str] = set()  # functions that the guest has not released
        self._reserved: set[str] = set()  # ports of disks and network interfaces

    @property
    def plugs(self) -> list[PlugStep]:
        """All functions that are plugged or being plugged, except those that the guest does not release."""
        return [plug for name, plug in self._plugs.items() if name not in self._kept]

    @property
    def shareable(self) -> list[PlugStep]:
        """The functions that another container can claim as well."""
        return [plug for plug in self.plugs if plug.device not in self._leaving]

    @property
    def spares(self) -> list[Port]:
        """The free ports."""
        taken = self._reserved | {plug.bus for plug in self._plugs.values()}
        return [port for port in self._ports if port.takes_at not in taken]

    def take_port(self) -> Port | None:
        """Reserve a free port for a disk or network interface. Returns None if no port is free."""
        plain = [port for port in self.spares if not port.bridge]
        # The smallest: groups may need large windows and I/O windows.
        port = min(plain, key=lambda port: (port.prefetchable, port.memory, port.io), default=None)
        if port is not None:
            self._reserved.add(port.takes_at)
        return port

    def return_port(self, port: Port) -> None:
        """Release a port of :meth:`take_port`."""
        self._reserved.discard(port.takes_at)

    def claim(self, plugs: Sequence[PlugStep], *, owner: str) -> None:
        """Claim the ports and groups of these functions. If it raises :class:`StateError`, nothing is claimed."""
        new = [plug for plug in plugs if not plug.shared]
        groups = {plug.group for plug in self._plugs.values()}
        for plug in new:
            self._refuse_kept(plug.group)
            if plug.group in groups:
                raise StateError(
                    f"group {plug.group} is attached to the same virtual machine already",
                    hint="try again: the container then shares it",
                )
        present = {plug.device: (plug.group, plug.guest_address) for plug in self.shareable}
        for plug in plugs:
            if plug.shared and present.get(plug.device) != (plug.group, plug.guest_address):
                gone = f"group {plug.group} was detached from the virtual machine meanwhile"
                raise StateError(gone, hint="try again")
        if not {plug.bus for plug in new} <= {port.takes_at for port in self.spares}:
            raise StateError("the port for it was taken meanwhile", hint="try again")
        self._plugs |= {plug.device: plug for plug in new}
        for plug in plugs:
            self._owners.setdefault(plug.device, set()).add(owner)

    @contextmanager
    def exclusive(self, plugs: Sequence[PlugStep], *, owner: str) -> Iterator[list[PlugStep]]:
        """The functions that only this owner has claimed. Others cannot claim them during the block, which unplugs
        them."""
        exclusive = [plug for plug in plugs if self._owners.get(plug.device) == {owner}]
        self._leaving |= {plug.device for plug in exclusive}
        try:
            yield exclusive
        finally:
            self._leaving -= {plug.device for plug in exclusive}

    def release(self, plugs: Sequence[PlugStep], left: Sequence[PlugStep] = (), *, owner: str) -> None:
        """Release the owner's claims on these functions. Functions without an owner are forgotten.

        ``left`` are functions that the guest has not released. The owner keeps them and their ports, and no other
        container can claim them, until a call without them in ``left``. Functions that the owner has not claimed are
        ignored.
        """
        self._kept |= {plug.device for plug in left}
        for plug in plugs:
            owners = self._owners.get(plug.device, set())
            if owner in owners and plug not in left:
                owners.discard(owner)
                if not owners:
                    self._kept.discard(plug.device)
                    del self._plugs[plug.device], self._owners[plug.device]

    def _refuse_kept(self, group: int) -> None:
        for name in self._kept:
            if self._plugs[name].group == group:
                owners = ", ".join(sorted(self._owners[name]))
                raise StateError(
                    f"group {group}: the guest has not released it after container {owners}",
                    hint="try again: each attempt asks the guest again; every device is released when the sandbox's "
                    "virtual machine ends",
                )
