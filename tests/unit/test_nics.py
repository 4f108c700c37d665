"""Network interfaces of a VM: taps and ports given to QEMU, the call that configures the guest, and failures."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Any, cast

import pytest

from hawse.errors import DeviceError, HostError, VmError
from hawse.monitor.agent.calls import Answer, Call
from hawse.monitor.devices.claims import Claims
from hawse.monitor.network.host_network import Joined, Network
from hawse.monitor.network.nics import Nics
from hawse.notes import Notes
from tests.support import virtual_time
from tests.support.fake_qmp import FakeLink, FakeQmp
from tests.support.plans import machine_plan, sandbox_plan


class FakePackets:
    """A packet socket that counts memberships."""

    def __init__(self) -> None:
        self.memberships = 0
        self.closed = False

    def setsockopt(self, _level: int, _option: int, _value: bytes) -> None:
        self.memberships += 1

    def close(self) -> None:
        self.closed = True


class FakeNetwork:
    """Interfaces that were connected to taps: each list is the result of one look. The wait raises an error in the
    list."""

    def __init__(self, *looks: int | Exception) -> None:
        self._looks = list(looks)
        self._number = 0
        self.inodes: list[int] = []
        self.packets: FakePackets | None = FakePackets()

    def take_joining(self) -> FakeNetwork | None:
        return self if self._looks else None

    def wait(self) -> Joined:
        look = self._looks.pop(0)
        if isinstance(look, Exception):
            raise look
        joined = []
        for _ in range(look):
            tap = os.memfd_create(f"tap{self._number}")
            self.inodes.append(os.fstat(tap).st_ino)
            joined.append((interface(self._number), tap))
            self._number += 1
        return joined, ["a route is missing"] if look else []


def interface(number: int) -> dict[str, Any]:
    parts: dict[str, Any] = {
        "flags": 0x1000,
        "settings": {"ipv6/accept_ra": "1"},
        "addresses": [{"local": "10.0.0.2"}],
        "routes": [],
        "neighbours": [],
    }
    return {
        "index": number + 2,
        "name": f"eth{number}",
        "mac": f"0a:00:00:00:00:{number:02x}",
        "mtu": 1500,
        "flags": 0x1000,
        **parts,
    }


class Machine:
    """Interfaces of a VM with a fake QEMU and guest."""

    def __init__(self, *looks: int | Exception, answer: Any = None, accel: str = "tcg", vhost: str = "/none") -> None:
        planned = sandbox_plan(machine_plan(device_seconds=1, accel=accel), bundle="/b")
        self.network = FakeNetwork(*looks)
        self.claims = Claims(planned.ports)
        self.own = planned.network_port
        self.nics = Nics(planned, cast(Network, self.network), self.claims, vhost=vhost)
        self.qmp, self.link = FakeQmp(), FakeLink({"configure_network": answer})

    async def plug(self) -> Notes:
        return await self.nics.plug(self.qmp, self.link)  # type: ignore[arg-type]

    def devices(self) -> list[tuple[str, str, str, bool]]:
        """Id, bus, address and whether it shares its slot, of each device."""
        added = [sent for command, sent in self.qmp.sent if command == "device_add"]
        return [(d["id"], d["bus"], d["addr"], d.get("multifunction", False)) for d in added]


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_single_interface() -> None:
    async def story() -> None:
        machine = Machine(1)
        before = descriptors()
        assert await machine.plug() == [("warning", "a route is missing")]
        assert machine.devices() == [("nic-net0", machine.own.name, "0.0", False)]
        assert machine.qmp.given == {"net0": machine.network.inodes[0]}
        assert machine.qmp.sent[0] == ("netdev_add", {"type": "tap", "id": "net0", "fd": "net0"})
        address = f"0000:{machine.own.bus:02x}:00.0"
        [(method, call)] = machine.link.calls
        kept = {k: v for k, v in interface(0).items() if k not in ("index", "mac")}
        assert (method, call) == ("configure_network", {"interfaces": [{"address": address, **kept}], "seconds": 1.0})
        assert machine.nics.state_entries == [{"name": "eth0", "mac": "0a:00:00:00:00:00", "guest": address}]
        assert descriptors() == before, "the taps are QEMU's only"
        assert await machine.plug() == [], "nothing new"
        assert len(machine.link.calls) == 1

    virtual_time.run(story())


def test_rx_filter_of_a_nic_is_followed() -> None:
    async def story() -> None:
        machine = Machine(0, 1)
        await machine.plug()
        assert not machine.qmp.is_listening_to_filters, "no NIC yet"
        await machine.plug()
        usual = {"promiscuous": True, "multicast": "normal", "unicast": "normal", "main-mac": "0a:00:00:00:00:00"}
        usual |= {"multicast-overflow": False, "unicast-overflow": False}
        machine.qmp.rx_filters["nic-net0"] = [usual | {"unicast-table": [], "multicast-table": []}]
        machine.qmp.change_rx_filter("nic-net0")
        await asyncio.sleep(1)
        packets = machine.network.packets
        assert packets is not None
        assert packets.memberships == 1
        machine.nics.end()
        assert packets.closed

    virtual_time.run(story())


def test_host_without_packet_sockets_is_a_warning() -> None:
    async def story() -> None:
        machine = Machine(0, 1)
        machine.network.packets = None
        assert await machine.plug() == []
        [(_, route), (level, text)] = await machine.plug()
        assert (route, level) == ("a route is missing", "warning")
        assert text.startswith("the host kernel has no packet sockets (CONFIG_PACKET)")
        machine.nics.end()

    virtual_time.run(story())


@pytest.mark.parametrize(("count", "ports"), [(0, 0), (2, 1), (7, 1), (8, 1), (9, 2), (16, 2), (17, 3), (40, 5)])
def test_interfaces_of_one_look_share_ports(count: int, ports: int) -> None:
    """Eight functions fit into one port. Function 0 is plugged last, since it makes the guest look at the slot."""

    async def story() -> None:
        machine = Machine(count)
        await machine.plug()
        used = list(dict.fromkeys(bus for _, bus, _, _ in machine.devices()))
        assert len(used) == ports
        assert used[:1] == [machine.own.name][:ports]
        assert len(machine.claims.spares) == 4 - max(ports - 1, 0)
        assert all(shared for *_, shared in machine.devices())
        for bus in used:
            assert [addr for _, of, addr, _ in machine.devices() if of == bus][-1] == "0.0"
        addresses = [entry["address"] for entry in machine.link.calls[0][1]["interfaces"]]
        assert len(set(addresses)) == count
        assert [seen["name"] for seen in machine.nics.state_entries] == [f"eth{number}" for number in range(count)]

    virtual_time.run(story())


def test_interfaces_of_a_second_look_need_another_port() -> None:
    async def story() -> None:
        machine = Machine(0, 1, 0, 2)
        await machine.plug()
        assert machine.devices() == []
        await machine.plug()
        await machine.plug()
        assert len(machine.claims.spares) == 4
        await machine.plug()
        first, *others = machine.devices()
        assert first == ("nic-net0", machine.own.name, "0.0", False)
        assert [(name, shared) for name, _, _, shared in others] == [("nic-net2", True), ("nic-net1", True)]
        assert machine.own.name not in {bus for _, bus, _, _ in others}
        assert len(machine.claims.spares) == 3
        assert sorted(machine.qmp.given) == ["net0", "net1", "net2"]

    virtual_time.run(story())


@pytest.mark.parametrize(
    ("accel", "present", "used"), [("kvm", True, True), ("kvm", False, False), ("tcg", True, False)]
)
def test_vhost_is_used_under_kvm_where_it_exists(tmp_path: Path, accel: str, present: bool, used: bool) -> None:
    device = tmp_path / "vhost-net"
    if present:
        device.touch()

    async def story() -> None:
        before = descriptors()
        machine = Machine(1, accel=accel, vhost=str(device))
        await machine.plug()
        backend = machine.qmp.sent[0][1]
        assert (backend.get("vhost"), backend.get("vhostfd")) == ((True, "net0-vhost") if used else (None, None))
        assert machine.qmp.given.get("net0-vhost") == (device.stat().st_ino if used else None)
        assert descriptors() == before

    virtual_time.run(story())


def test_more_interfaces_than_ports_is_an_error() -> None:
    async def story() -> None:
        machine = Machine(41)
        before = descriptors()
        with pytest.raises(DeviceError, match="41 network interfaces, and the virtual machine has ports for 40"):
            await machine.plug()
        assert descriptors() == before
        with pytest.raises(VmError, match="the network of the virtual machine is in an unknown state"):
            await machine.plug()

    virtual_time.run(story())


@pytest.mark.parametrize("failure", ["join", "qemu", "guest"])
def test_failure_leaves_the_network_unusable(failure: str) -> None:
    """It is unknown which part of it the guest has configured, so a second attempt is refused."""

    async def story() -> None:
        machine = Machine(HostError("no tap") if failure == "join" else 1, answer=VmError("agent: no"))
        if failure == "qemu":
            machine.qmp = FakeQmp(refuse=lambda command, _: VmError("gone") if command == "device_add" else None)
        before = descriptors()
        with pytest.raises((HostError, VmError), match=r"no tap|gone|agent: no"):
            await machine.plug()
        assert descriptors() == before
        with pytest.raises(VmError, match="unknown state"):
            await machine.plug()

    virtual_time.run(story())


class SlowLink(FakeLink):
    """A guest that does not answer before its event."""

    def __init__(self) -> None:
        super().__init__({"configure_network": None})
        self.gate = asyncio.Event()

    async def call(self, call: Call[Answer], *, seconds: float) -> Answer:
        async with asyncio.timeout(seconds):
            await self.gate.wait()
        return await super().call(call, seconds=seconds)


@pytest.mark.parametrize(("device", "lost"), [("nic-net0", True), ("vfio-5-0", False)])
def test_interface_that_the_guest_unplugs_is_an_error(device: str, lost: bool) -> None:
    async def story() -> None:
        machine = Machine(1)
        machine.link = link = SlowLink()
        plugging = asyncio.create_task(machine.plug())
        await asyncio.sleep(0.5)
        machine.qmp.drop(device)
        await asyncio.sleep(0.5)
        assert plugging.done() == lost
        if lost:
            with pytest.raises(DeviceError, match="the guest unplugged a network interface as soon as it was plugged"):
                await plugging
        else:
            link.gate.set()
            assert await plugging

    virtual_time.run(story())


def test_guest_that_never_answers_is_an_error() -> None:
    """After the time of a device and a margin."""

    async def story() -> None:
        machine = Machine(1)
        machine.link = SlowLink()
        began = asyncio.get_running_loop().time()
        with pytest.raises(TimeoutError):
            await machine.plug()
        assert 1 < asyncio.get_running_loop().time() - began < 10

    virtual_time.run(story())
