"""Apply the receive filters of the guest's NICs to the host's interfaces.

A program in the guest joins a multicast group, sets an interface promiscuous or gives it another hardware address, and
the guest's driver writes that into the filter of its virtio-net device. A macvlan, a virtual function or a physical
NIC on the host drops packets for which the host has no filter. So the monitor copies the filter: QEMU sends the event
NIC_RX_FILTER_CHANGED once, until the next query-rx-filter (QEMU qapi/net.json; hw/net/virtio-net.c). The filter's
entries are set as memberships of a packet socket (packet(7), PACKET_ADD_MEMBERSHIP). They affect the interface as the
same program under runc would. The kernel drops them when the socket is closed, at the monitor's death at the latest.

The guest is hostile. It can receive no more than a program with CAP_NET_RAW in the interface's namespace under runc. It
is limited to :data:`MOST_ADDRESSES` addresses of a kind, and to one query in :data:`PAUSE_SECONDS`.
"""

from __future__ import annotations

import asyncio
import re
import socket
import struct
import sys
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import msgspec

from hawse.errors import HawseError

if TYPE_CHECKING:
    from hawse.vm.qmp import Qmp

EVENT = "NIC_RX_FILTER_CHANGED"
#: The size of QEMU's table (hw/net/virtio-net.c, MAC_TABLE_ENTRIES). With more, all packets of the kind are received.
MOST_ADDRESSES = 64
#: Minimum time between two queries: a guest can change its filter in a loop.
PAUSE_SECONDS = 0.05
_QMP_SECONDS = 30.0
_WAIT_SECONDS = 3600.0
_SOL_PACKET, _ADD, _DROP = 263, 1, 2  # include/uapi/linux/if_packet.h
_MULTICAST, _PROMISCUOUS, _ALL_MULTICAST, _UNICAST = 0, 1, 2, 3
_WORDS = {
    _MULTICAST: "a multicast group", _PROMISCUOUS: "everything", _ALL_MULTICAST: "all multicast",
    _UNICAST: "another hardware address",
}  # fmt: skip
_REQUEST = struct.Struct("=iHH8s")

Membership = tuple[int, bytes]
"""A membership type of packet(7), and the hardware address, b"" if the type has none."""


class RxFilter(msgspec.Struct, rename="kebab"):
    """One answer of query-rx-filter: the fields of QEMU's RxFilterInfo that are used."""

    promiscuous: bool
    multicast: Literal["normal", "none", "all"]
    unicast: Literal["normal", "none", "all"]
    multicast_overflow: bool
    unicast_overflow: bool
    main_mac: str
    unicast_table: list[str]
    multicast_table: list[str]


def memberships(rx_filter: RxFilter, mac: str) -> set[Membership]:
    """The memberships for an interface with the address ``mac``. Invalid addresses are ignored. Pure."""
    unicast = _packed([rx_filter.main_mac, *rx_filter.unicast_table], multicast=False) - {_bytes(mac)}
    multicast = _packed(rx_filter.multicast_table, multicast=True)
    if (
        rx_filter.promiscuous
        or rx_filter.unicast == "all"
        or rx_filter.unicast_overflow
        or len(unicast) > MOST_ADDRESSES
    ):
        requested = {(_PROMISCUOUS, b"")}
    else:
        requested = {(_UNICAST, address) for address in unicast}
    if rx_filter.multicast == "all" or rx_filter.multicast_overflow or len(multicast) > MOST_ADDRESSES:
        return requested | {(_ALL_MULTICAST, b"")}
    return requested | ({(_MULTICAST, a) for a in multicast} if rx_filter.multicast == "normal" else set())


def _packed(addresses: Iterable[str], *, multicast: bool) -> set[bytes]:
    packed = {_bytes(text) for text in addresses if re.fullmatch(r"([0-9A-Fa-f]{2}:){5}[0-9A-Fa-f]{2}", text)}
    return {address for address in packed if bool(address[0] & 1) == multicast and any(address)}


def _bytes(mac: str) -> bytes:
    return bytes.fromhex(mac.replace(":", ""))


@dataclass
class _Nic:
    index: int
    name: str
    mac: str
    held: set[Membership] = field(default_factory=set)
    logged: set[str] = field(default_factory=set)

    def log_once(self, problem: str) -> None:
        """Log a problem once: a guest can cause it repeatedly."""
        if problem not in self.logged:
            self.logged.add(problem)
            print(f"interface {self.name}: {problem}", file=sys.stderr)


class RxFilters:
    """All NICs of a sandbox, in the monitor's event loop."""

    def __init__(self) -> None:
        self._packets: socket.socket | None = None
        self._nics: dict[str, _Nic] = {}
        self._task: asyncio.Task[None] | None = None

    def add(self, device: str, *, index: int, name: str, mac: str) -> None:
        """Watch the QEMU device of an interface. Call this before the guest gets the device."""
        self._nics[device] = _Nic(index, name, mac)

    def begin(self, qmp: Qmp, packets: socket.socket) -> None:
        """Listen for events from the next turn of the event loop on, before QEMU can answer a command that is sent now.

        ``packets`` is a packet socket in the namespace that receives nothing.
        """
        if self._task is None:
            self._packets = packets
            self._task = asyncio.create_task(self._follow(qmp))

    def end(self) -> None:
        """Drop all memberships of the host's interfaces."""
        if self._task is not None:
            self._task.cancel()
        if self._packets is not None:
            self._packets.close()

    async def _follow(self, qmp: Qmp) -> None:
        with qmp.listen(EVENT) as events:
            while True:
                event = await events.wait(lambda data: str(data.get("name")) in self._nics, seconds=_WAIT_SECONDS)
                if event is None:
                    continue
                device = str(event["name"])
                nic = self._nics[device]
                try:
                    answer = await qmp.execute("query-rx-filter", {"name": device}, timeout=_QMP_SECONDS)
                    [rx_filter] = msgspec.convert(answer, list[RxFilter])
                    self._set(nic, rx_filter)
                except ValueError:  # msgspec's errors are ValueErrors
                    nic.log_once("QEMU's answer to query-rx-filter is malformed")
                except HawseError as error:
                    if qmp.ended:
                        return
                    nic.log_once(error.message)
                await asyncio.sleep(PAUSE_SECONDS)

    def _set(self, nic: _Nic, rx_filter: RxFilter) -> None:
        requested = memberships(rx_filter, nic.mac)
        for membership in sorted(requested - nic.held):
            try:
                self._change(_ADD, nic.index, membership)
                nic.held.add(membership)
            except OSError as error:
                nic.log_once(f"cannot receive {_WORDS[membership[0]]}: {error.strerror}")
        for membership in sorted(nic.held - requested):
            with suppress(OSError):  # the interface was removed
                self._change(_DROP, nic.index, membership)
            nic.held.discard(membership)

    def _change(self, option: int, index: int, membership: Membership) -> None:
        assert self._packets is not None
        kind, address = membership
        self._packets.setsockopt(_SOL_PACKET, option, _REQUEST.pack(index, kind, len(address), address))
