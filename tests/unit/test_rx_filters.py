"""Memberships of the host's interface that follow the guest's filter: a pure table, then the loop with a fake QEMU."""

from __future__ import annotations

import asyncio
import socket
import struct
from typing import Any, cast

import msgspec
import pytest

from hawse.errors import VmError
from hawse.monitor.network.rx_filters import PAUSE_SECONDS, RxFilter, RxFilters, memberships
from tests.support import virtual_time
from tests.support.fake_qmp import MAC, FakeQmp, rx_filter

GROUP, OTHER = "01:00:5e:01:02:03", "0a:00:00:00:00:77"
MULTICAST, PROMISCUOUS, ALL, UNICAST = 0, 1, 2, 3


def packed(mac: str) -> bytes:
    return bytes.fromhex(mac.replace(":", ""))


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({}, set()),
        ({"multicast_table": [GROUP]}, {(MULTICAST, packed(GROUP))}),
        ({"multicast_table": [GROUP], "multicast": "none"}, set()),
        ({"multicast_table": [GROUP], "multicast": "all"}, {(ALL, b"")}),
        ({"multicast_table": [GROUP], "multicast_overflow": True}, {(ALL, b"")}),
        ({"multicast_table": [f"01:00:5e:00:00:{n:02x}" for n in range(65)]}, {(ALL, b"")}),
        ({"unicast_table": [OTHER]}, {(UNICAST, packed(OTHER))}),
        ({"unicast_table": [MAC]}, set()),
        ({"main_mac": OTHER}, {(UNICAST, packed(OTHER))}),
        ({"promiscuous": True, "unicast_table": [OTHER]}, {(PROMISCUOUS, b"")}),
        ({"unicast": "all"}, {(PROMISCUOUS, b"")}),
        ({"unicast_overflow": True}, {(PROMISCUOUS, b"")}),
        ({"unicast_table": [f"0a:00:00:00:01:{n:02x}" for n in range(65)]}, {(PROMISCUOUS, b"")}),
        ({"promiscuous": True, "multicast": "all"}, {(PROMISCUOUS, b""), (ALL, b"")}),
        ({"multicast_table": [OTHER, "", "x", f"{GROUP}:04"], "unicast_table": [GROUP, "00:" * 5 + "00"]}, set()),
    ],
)  # fmt: skip
def test_memberships(changed: dict[str, Any], expected: set[tuple[int, bytes]]) -> None:
    assert memberships(msgspec.convert(rx_filter(**changed), RxFilter), MAC) == expected


class FakePackets:
    """A packet socket: ``held`` are its memberships, with the interface's index."""

    def __init__(self) -> None:
        self.held: set[tuple[int, int, bytes]] = set()
        self.calls = 0
        self.closed = False
        self.error: OSError | None = None

    def setsockopt(self, level: int, option: int, value: bytes) -> None:
        assert level == 263
        self.calls += 1
        if self.error is not None:
            raise self.error
        index, kind, length, address = struct.unpack("=iHH8s", value)
        {1: self.held.add, 2: self.held.remove}[option]((index, kind, address[:length]))

    def close(self) -> None:
        self.closed = True


class Following:
    """Two NICs of a sandbox."""

    def __init__(self) -> None:
        self.qmp, self.packets, self.filters = FakeQmp(), FakePackets(), RxFilters()
        for number in (0, 1):
            self.filters.add(f"nic-net{number}", index=number + 2, name=f"eth{number}", mac=MAC)

    async def change(self, name: str, rx_filter: object) -> None:
        self.qmp.rx_filters[name] = rx_filter
        self.qmp.change_rx_filter(name)
        await asyncio.sleep(2 * PAUSE_SECONDS)

    async def begin(self) -> None:
        self.filters.begin(cast(Any, self.qmp), cast(socket.socket, self.packets))
        await asyncio.sleep(0)

    @property
    def queries(self) -> int:
        return sum(command == "query-rx-filter" for command, _ in self.qmp.commands)


def test_memberships_follow_the_guest_and_end_with_the_sandbox() -> None:
    async def story() -> None:
        following = Following()
        await following.begin()
        await following.change("nic-net0", [rx_filter(multicast_table=[GROUP])])
        await following.change("nic-net1", [rx_filter(promiscuous=True)])
        assert following.packets.held == {(2, MULTICAST, packed(GROUP)), (3, PROMISCUOUS, b"")}
        await following.change("nic-net0", [rx_filter(multicast_table=["33:33:00:00:00:fb"])])
        await following.change("nic-net1", [rx_filter()])
        assert following.packets.held == {(2, MULTICAST, packed("33:33:00:00:00:fb"))}
        calls = following.packets.calls
        await following.change("nic-net0", [rx_filter(multicast_table=["33:33:00:00:00:fb"])])
        assert following.packets.calls == calls, "nothing is new"
        await following.change("nic-other", [rx_filter(promiscuous=True)])
        assert following.packets.calls == calls, "not a NIC of hawse"
        following.filters.end()
        assert following.packets.closed

    virtual_time.run(story())


def test_guest_that_changes_its_filter_in_a_loop_causes_one_query_per_pause() -> None:
    async def story() -> None:
        following = Following()
        await following.begin()
        following.qmp.rx_filters["nic-net0"] = [rx_filter()]
        for _ in range(1000):
            following.qmp.change_rx_filter("nic-net0")
        await asyncio.sleep(10 * PAUSE_SECONDS)
        assert 8 <= following.queries <= 12
        following.filters.end()

    virtual_time.run(story())


@pytest.mark.parametrize(
    "answer", [{}, [], [rx_filter(), rx_filter()], [{"name": "nic-net0"}], "x", [rx_filter(main_mac=5)]]
)
def test_malformed_answer_changes_nothing(answer: object, capsys: pytest.CaptureFixture[str]) -> None:
    async def story() -> None:
        following = Following()
        await following.begin()
        await following.change("nic-net0", answer)
        await following.change("nic-net0", answer)
        assert following.packets.held == set()
        await following.change("nic-net0", [rx_filter(multicast_table=[GROUP])])
        assert following.packets.held == {(2, MULTICAST, packed(GROUP))}
        following.filters.end()

    virtual_time.run(story())
    assert capsys.readouterr().err == "interface eth0: QEMU's answer to query-rx-filter is malformed\n", (
        "it is logged once"
    )


def test_refused_membership_is_logged_once(capsys: pytest.CaptureFixture[str]) -> None:
    async def story() -> None:
        following = Following()
        await following.begin()
        following.packets.error = OSError(12, "Cannot allocate memory")
        for _ in range(3):
            await following.change("nic-net1", [rx_filter(multicast_table=[GROUP])])
        following.packets.error = None
        await following.change("nic-net1", [rx_filter(multicast_table=[GROUP])])
        assert following.packets.held == {(3, MULTICAST, packed(GROUP))}
        following.filters.end()

    virtual_time.run(story())
    assert capsys.readouterr().err == "interface eth1: cannot receive a multicast group: Cannot allocate memory\n"


@pytest.mark.parametrize("ended", [True, False])
def test_failed_query_is_logged(ended: bool) -> None:
    """A QEMU that has ended is not queried again."""

    async def story() -> None:
        following = Following()
        failing = [True]
        following.qmp = FakeQmp(refuse=lambda _command, _arguments: VmError("gone") if failing[0] else None)
        await following.begin()
        following.qmp.ended = ended
        await following.change("nic-net0", [rx_filter()])
        failing[0] = False
        await following.change("nic-net0", [rx_filter(promiscuous=True)])
        assert following.packets.held == (set() if ended else {(2, PROMISCUOUS, b"")})
        following.filters.end()

    virtual_time.run(story())
