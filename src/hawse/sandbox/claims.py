"""What of a machine is given to its containers: ports and groups, each to one at a time."""

from __future__ import annotations

from collections.abc import Sequence

from hawse.errors import StateError
from hawse.sandbox.plan import PlugStep
from hawse.vm.ports import Port


class Claims:
    """One for a machine; only read and changed in the monitor's event loop."""

    def __init__(self, ports: Sequence[Port]) -> None:
        self._ports = list(ports)
        self._plugs: dict[str, PlugStep] = {}
        self._lost: set[str] = set()  # ports that are others', or whose function the guest does not let go

    @property
    def plugs(self) -> list[PlugStep]:
        """All functions that are plugged, or are being plugged."""
        return list(self._plugs.values())

    @property
    def spares(self) -> list[Port]:
        """The ports that are free."""
        taken = self._lost | {plug.bus for plug in self._plugs.values()}
        return [port for port in self._ports if port.takes_at not in taken]

    def take_port(self) -> Port | None:
        """A port that is free, and from now on something else's; None when there is none."""
        port = next((port for port in self.spares if not port.bridge), None)
        if port is not None:
            self._lost.add(port.takes_at)
        return port

    def claim(self, plugs: Sequence[PlugStep]) -> None:
        """Take ports and groups for these functions. Raises :class:`StateError`, with nothing taken."""
        groups = {plug.group for plug in self._plugs.values()}
        for plug in plugs:
            if plug.group in groups:
                raise StateError(f"group {plug.group} is attached to the same virtual machine already")
        if not {plug.bus for plug in plugs} <= {port.takes_at for port in self.spares}:
            raise StateError("the port for it was taken meanwhile", hint="try again")
        self._plugs |= {plug.device: plug for plug in plugs}

    def release(self, plugs: Sequence[PlugStep], left: Sequence[PlugStep] = ()) -> None:
        """Functions are gone; the ports of those that the guest does not let go are lost.

        What was claimed anew since, by the same name, is another's.
        """
        for plug in plugs:
            if self._plugs.get(plug.device) is plug:
                del self._plugs[plug.device]
        self._lost |= {plug.bus for plug in left}
