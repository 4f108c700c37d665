"""A VM's network interfaces: pass taps to QEMU, plug the devices, and configure the interfaces in the guest."""

from __future__ import annotations

import asyncio
import os
from contextlib import suppress
from typing import TYPE_CHECKING

from hawse.errors import DeviceError, VmError
from hawse.json_text import Document
from hawse.monitor.agent.calls import ConfigureNetwork
from hawse.monitor.network.host_network import Network
from hawse.monitor.network.rx_filters import RxFilters
from hawse.notes import Notes, warning
from hawse.vm.arguments import plug_interface
from hawse.vm.ports import FUNCTIONS, Port, place_interfaces

if TYPE_CHECKING:
    from hawse.monitor.agent.guest_link import GuestLink
    from hawse.monitor.devices.claims import Claims
    from hawse.plan.model import SandboxPlan
    from hawse.vm.qmp import Events, Qmp

_QMP_SECONDS = 30.0
_MARGIN = 5.0
_VHOST = "/dev/vhost-net"


class Nics:
    """The network interfaces of a sandbox. ``state_entries`` describes each, for the container's state."""

    def __init__(self, plan: SandboxPlan, network: Network, claims: Claims, *, vhost: str = _VHOST) -> None:
        """``vhost`` is the device file of vhost-net, with which the host kernel moves packets for a VM under KVM."""
        self.network = network
        self.state_entries: list[Document] = []
        self._seconds = plan.machine.device_seconds
        self._vhost = vhost if plan.machine.shape.accel == "kvm" else ""
        self._free: Port | None = plan.network_port
        self._claims = claims
        self._filters = RxFilters()
        self._count = 0
        self._incomplete = False

    async def plug(self, qmp: Qmp, link: GuestLink) -> Notes:
        """Plug the interfaces that :meth:`Network.look` found, and configure them in the guest.

        Returns notes to log. Raises HawseError.
        """
        if self._incomplete:
            raise VmError("the network of the virtual machine is in an unknown state", hint="delete the container")
        tap_helper = self.network.take_joining()
        if tap_helper is None:
            return []
        self._incomplete = True
        joined, warnings = await asyncio.to_thread(tap_helper.wait)
        addresses: dict[int, str] = {}
        try:
            ports = [] if self._free is None else [self._free]
            while len(ports) * FUNCTIONS < len(joined) and (port := self._claims.take_port()) is not None:
                ports.append(port)
            if joined:
                self._free = None
                warnings += self._apply_filters(qmp)
            with qmp.listen("DEVICE_DELETED") as events:
                for number, port, function in place_interfaces(len(joined), ports):
                    interface, tap = joined[number]
                    name = f"net{self._count + number}"
                    self._filters.add(
                        f"nic-{name}", index=interface["index"], name=interface["name"], mac=interface["mac"]
                    )
                    alone = len(joined) == 1
                    await self._plug(qmp, name, interface["mac"], port, function, tap, alone=alone)
                    addresses[number] = f"0000:{port.bus:02x}:00.{function}"
                self._count += len(joined)
                interfaces = [self._for_guest(joined[n][0], address) for n, address in sorted(addresses.items())]
                await self._configure(link, interfaces, events)
        finally:
            for _, tap in joined:
                os.close(tap)
        self._incomplete = False
        return [warning(text) for text in warnings]

    def end(self) -> None:
        """Restore the receive filters of the host's interfaces."""
        self._filters.end()

    def _apply_filters(self, qmp: Qmp) -> list[str]:
        """Apply the guest's receive filters to the host's interfaces. Returns warnings."""
        if self.network.packets is None:
            return [
                "the host kernel has no packet sockets (CONFIG_PACKET): interfaces that filter addresses (macvlans and "
                "NICs) do not receive the multicast groups that the container joins"
            ]
        self._filters.begin(qmp, self.network.packets)
        return []

    async def _plug(self, qmp: Qmp, name: str, mac: str, port: Port, function: int, tap: int, *, alone: bool) -> None:
        vhost = None
        if self._vhost:
            with suppress(OSError):  # missing or not permitted: QEMU moves the packets itself
                vhost = os.open(self._vhost, os.O_RDWR | os.O_CLOEXEC)
        try:
            await qmp.give(tap, name, timeout=_QMP_SECONDS)
            if vhost is not None:
                await qmp.give(vhost, f"{name}-vhost", timeout=_QMP_SECONDS)
            for command, arguments in plug_interface(name, mac, port, function, alone=alone, vhost=vhost is not None):
                await qmp.execute(command, arguments, timeout=_QMP_SECONDS)
        finally:
            if vhost is not None:
                os.close(vhost)

    def _for_guest(self, interface: Document, address: str) -> Document:
        self.state_entries.append({"name": interface["name"], "mac": interface["mac"], "guest": address})
        keys = ("name", "mtu", "flags", "settings", "addresses", "routes", "neighbours")
        return {"address": address} | {key: interface[key] for key in keys}

    async def _configure(self, link: GuestLink, interfaces: list[Document], events: Events) -> None:
        seconds = self._seconds
        call = ConfigureNetwork(interfaces=interfaces, seconds=seconds)
        work = asyncio.create_task(link.call(call, seconds=seconds + _MARGIN))
        lost = asyncio.create_task(
            events.wait(lambda data: str(data.get("device")).startswith("nic-"), seconds=seconds + _MARGIN)
        )
        try:
            await asyncio.wait((work, lost), return_when=asyncio.FIRST_COMPLETED)
            if not work.done() and lost.result() is not None:
                raise DeviceError(
                    "the guest unplugged a network interface as soon as it was plugged",
                    hint="try again; console.log shows why",
                )
            await work
        finally:
            for task in (work, lost):
                task.cancel()
            await asyncio.gather(work, lost, return_exceptions=True)
