"""What the guest's NICs are to receive beside their own packets, asked for at the host's interfaces as well.

A program in the guest joins a multicast group, sets an interface promiscuous or gives it another hardware address, and
the guest's driver writes that into the filter of its virtio-net device. A macvlan, a virtual function or a physical
NIC on the host drops what nobody there asked for. So the monitor follows that filter: QEMU's event
NIC_RX_FILTER_CHANGED comes once, until query-rx-filter is asked (QEMU qapi/net.json; hw/net/virtio-net.c). What it has
is set as memberships of a packet socket (packet(7), PACKET_ADD_MEMBERSHIP), which do to the interface what the same
program would do under runc. The kernel drops them when the socket is closed, at the monitor's death at the latest.

The guest is hostile: it gets no more than a program with CAP_NET_RAW in the interface's namespace has under runc, for
at most :data:`MOST_ADDRESSES` addresses of a kind, and one query in :data:`PAUSE_SECONDS`.
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
#: As QEMU's own table has (hw/net/virtio-net.c, MAC_TABLE_ENTRIES); beyond, everything of the kind is received.
MOST_ADDRESSES = 64
#: A guest can change its filter in a loop.
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
"""A kind of packet(7), and the hardware address where the kind has one."""


class RxFilter(msgspec.Struct, rename="kebab"):
    """One answer of query-rx-filter, of QEMU's RxFilterInfo what is read."""

    promiscuous: bool
    multicast: Literal["normal", "none", "all"]
    unicast: Literal["normal", "none", "all"]
    multicast_overflow: bool
    unicast_overflow: bool
    main_mac: str
    unicast_table: list[str]
    multicast_table: list[str]


def memberships(found: RxFilter, mac: str) -> set[Membership]:
    """What the interface with the address ``mac`` is asked for. Pure; addresses that are none are ignored."""
    unicast = _packed([found.main_mac, *found.unicast_table], multicast=False) - {_bytes(mac)}
    multicast = _packed(found.multicast_table, multicast=True)
    if found.promiscuous or found.unicast == "all" or found.unicast_overflow or len(unicast) > MOST_ADDRESSES:
        wanted = {(_PROMISCUOUS, b"")}
    else:
        wanted = {(_UNICAST, address) for address in unicast}
    if found.multicast == "all" or found.multicast_overflow or len(multicast) > MOST_ADDRESSES:
        return wanted | {(_ALL_MULTICAST, b"")}
    return wanted | ({(_MULTICAST, a) for a in multicast} if found.multicast == "normal" else set())


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
    told: set[str] = field(default_factory=set)

    def tell(self, problem: str) -> None:
        """Log a problem, each once: a guest can cause it again and again."""
        if problem not in self.told:
            self.told.add(problem)
            print(f"interface {self.name}: {problem}", file=sys.stderr)


class RxFilters:
    """All NICs of a sandbox, in the monitor's event loop."""

    def __init__(self) -> None:
        self._packets: socket.socket | None = None
        self._nics: dict[str, _Nic] = {}
        self._task: asyncio.Task[None] | None = None

    def add(self, device: str, *, index: int, name: str, mac: str) -> None:
        """Follow a device of QEMU's that an interface is joined to; call it before the guest has it."""
        self._nics[device] = _Nic(index, name, mac)

    def begin(self, qmp: Qmp, packets: socket.socket) -> None:
        """Listen from the event loop's next turn on, before QEMU can answer a command that is sent now.

        ``packets`` is a packet socket in the namespace that receives nothing.
        """
        if self._task is None:
            self._packets = packets
            self._task = asyncio.create_task(self._follow(qmp))

    def end(self) -> None:
        """Drop what is asked for of the host's interfaces."""
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
                    [found] = msgspec.convert(answer, list[RxFilter])
                    self._set(nic, found)
                except ValueError:  # msgspec's errors are ValueErrors
                    nic.tell("QEMU's answer to query-rx-filter is malformed")
                except HawseError as error:
                    if qmp.ended:
                        return
                    nic.tell(error.message)
                await asyncio.sleep(PAUSE_SECONDS)

    def _set(self, nic: _Nic, found: RxFilter) -> None:
        wanted = memberships(found, nic.mac)
        for membership in sorted(wanted - nic.held):
            try:
                self._change(_ADD, nic.index, membership)
                nic.held.add(membership)
            except OSError as error:
                nic.tell(f"cannot receive {_WORDS[membership[0]]}: {error.strerror}")
        for membership in sorted(nic.held - wanted):
            with suppress(OSError):  # it went with the interface
                self._change(_DROP, nic.index, membership)
            nic.held.discard(membership)

    def _change(self, option: int, index: int, membership: Membership) -> None:
        assert self._packets is not None
        kind, address = membership
        self._packets.setsockopt(_SOL_PACKET, option, _REQUEST.pack(index, kind, len(address), address))
