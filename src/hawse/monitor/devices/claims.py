"""What of a machine is given to its containers: each port to one group at a time, and a group to who asks for it.

A group may be several containers', as under runc, where the first that opens it has it: an init container of a pod has
ended, and is still there, when the next one with the same device is made. What they share is plugged once, and goes
with the last of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from hawse.errors import StateError
from hawse.plan.model import PlugStep
from hawse.vm.ports import Port


class Claims:
    """One for a machine; only read and changed in the monitor's event loop. An ``owner`` is a container's id."""

    def __init__(self, ports: Sequence[Port]) -> None:
        self._ports = list(ports)
        self._plugs: dict[str, PlugStep] = {}
        self._owners: dict[str, set[str]] = {}
        self._leaving: set[str] = set()
        self._kept: set[str] = set()  # functions that the guest has not released
        self._lost: set[str] = set()  # ports that are something else's

    @property
    def plugs(self) -> list[PlugStep]:
        """All functions that are plugged, or are being plugged; without those that the guest does not release."""
        return [plug for name, plug in self._plugs.items() if name not in self._kept]

    @property
    def to_share(self) -> list[PlugStep]:
        """Those that another container can have, too."""
        return [plug for plug in self.plugs if plug.device not in self._leaving]

    @property
    def spares(self) -> list[Port]:
        """The ports that are free."""
        taken = self._lost | {plug.bus for plug in self._plugs.values()}
        return [port for port in self._ports if port.takes_at not in taken]

    def take_port(self) -> Port | None:
        """A port that is free, and from now on something else's; None when there is none."""
        plain = [port for port in self.spares if not port.bridge]
        # Large windows and those of I/O are worth keeping for groups.
        port = min(plain, key=lambda port: (port.prefetchable, port.memory, port.io), default=None)
        if port is not None:
            self._lost.add(port.takes_at)
        return port

    def return_port(self, port: Port) -> None:
        """A port of :meth:`take_port` is free again."""
        self._lost.discard(port.takes_at)

    def claim(self, plugs: Sequence[PlugStep], *, owner: str) -> None:
        """Take ports and groups for these functions. Raises :class:`StateError`, with nothing taken."""
        new = [plug for plug in plugs if not plug.shared]
        groups = {plug.group for plug in self._plugs.values()}
        for plug in new:
            self._refuse_kept(plug.group)
            if plug.group in groups:
                raise StateError(
                    f"group {plug.group} is attached to the same virtual machine already",
                    hint="try again: what came meanwhile is shared then",
                )
        there = {plug.device: (plug.group, plug.guest_address) for plug in self.to_share}
        for plug in plugs:
            if plug.shared and there.get(plug.device) != (plug.group, plug.guest_address):
                gone = f"group {plug.group} was detached from the virtual machine meanwhile"
                raise StateError(gone, hint="try again")
        if not {plug.bus for plug in new} <= {port.takes_at for port in self.spares}:
            raise StateError("the port for it was taken meanwhile", hint="try again")
        self._plugs |= {plug.device: plug for plug in new}
        for plug in plugs:
            self._owners.setdefault(plug.device, set()).add(owner)

    @contextmanager
    def alone(self, plugs: Sequence[PlugStep], *, owner: str) -> Iterator[list[PlugStep]]:
        """Those of the functions that nobody else has, nor can have during the block, which unplugs them."""
        found = [plug for plug in plugs if self._owners.get(plug.device) == {owner}]
        self._leaving |= {plug.device for plug in found}
        try:
            yield found
        finally:
            self._leaving -= {plug.device for plug in found}

    def release(self, plugs: Sequence[PlugStep], left: Sequence[PlugStep] = (), *, owner: str) -> None:
        """Functions are gone, as far as nobody else has them.

        ``left``: those that the guest has not released. They and their ports stay the owner's, and nobody else can have
        them, until they are released without being in ``left``. What is not the owner's any more stays as it is.
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
                    hint="try again: each attempt asks the guest again; the end of the sandbox's virtual machine gives "
                    "every device back",
                )
