"""Targets for the agent's answers and reports, as JSON values: how the host checks and converts each."""

from __future__ import annotations

import asyncio
import json
from functools import cached_property
from typing import Any, cast

from hawse.errors import MAX_TEXT, DeviceError, HawseError, LinkError, VmError, from_wire
from hawse.link import messages
from hawse.monitor.agent import identity, notifications
from hawse.monitor.agent.calls import Answer, BindNative, Call, Listing, Statistics, Trace, read_answer
from hawse.monitor.agent.events import Query, read_event
from hawse.monitor.agent.guest_link import GuestLink
from hawse.monitor.devices import guest_drivers, hotplug, misc_devices
from hawse.monitor.devices.device_map import device_map
from hawse.monitor.devices.spec_nodes import with_guest_nodes
from hawse.monitor.network.name_servers import loopback_servers
from hawse.oci.limits import statistics
from hawse.oci.process import table
from hawse.plan.model import PlugStep
from hawse.state import timeline
from hawse.state.steps import Steps
from hawse.vfio.node import VfioNode, group_node
from hawse.vm.qmp import Qmp
from tests.fuzz.target import JSON, Target, check_plain, in_loop, of_bytes, of_value, step
from tests.support.fake_qmp import FakeQmp

#: The most of the guest's texts that one result holds: of 1 MiB a reply has at most.
_LARGE = 16 * 1024 * 1024
_PLUGS = [
    PlugStep(
        group=7 + number // 2, label=f"0000:3b:00.{number}", host=f"0000:3b:00.{number}", note="", commands=[],
        device=f"d{number}", bus="b", cold=True, guest_address=f"0000:01:00.{number}", bars=[(0, 4096)],
    )
    for number in range(3)
]  # fmt: skip
_NODES = [
    group_node(7),
    group_node(8),
    VfioNode(path="/dev/vfio/devices/vfio0", major=0, minor=0, host_group=7, is_file=True, device="d0"),
]
_SPEC = {"linux": {"devices": [{"path": node.path, "type": "c", "major": 0, "minor": node.minor} for node in _NODES]}}
_WANTED = [(10, 126, "userfaultfd"), (10, 60, "ntsync")]


class _Link:
    """A guest that answers each call with the next value."""

    def __init__(self, answers: object) -> None:
        self._answers = iter(answers if isinstance(answers, list) else [answers])
        self.clock_offset = 0.0

    @cached_property
    def ended(self) -> asyncio.Future[HawseError]:
        """The link never ends."""
        return asyncio.get_running_loop().create_future()

    async def call(self, call: Call[Answer], *, seconds: float) -> Answer:
        assert seconds > 0
        return read_answer(call, next(self._answers, None))


def _reply(payload: bytes) -> None:
    try:
        number, _, error = messages.decode_reply(payload)
    except LinkError:
        return
    assert 0 <= number < 2**53
    assert error is None or isinstance(error, HawseError)


def _event(payload: bytes) -> None:
    try:
        name, params = messages.decode_event(payload)
    except LinkError:
        return
    assert 0 < len(name) <= messages.MAX_NAME
    assert isinstance(params, dict)
    try:
        event = read_event(name, params)
        if isinstance(event, Query):
            assert event.connection > 0
            assert event.transport in ("udp", "tcp")
    except LinkError as error:
        check_plain(error.sentence(), most=1000)


def _error(wire: object) -> None:
    error = from_wire(wire)
    assert type(error).__name__ in str(error.to_wire()["kind"])
    assert 1 <= error.exit_code <= 255
    assert error.message
    assert "\n" not in error.sentence()
    check_plain(error.to_wire(), most=64 * MAX_TEXT)


def _statistics(answer: object) -> None:
    try:
        converted = statistics.convert(read_answer(Statistics(container="c1"), answer))
    except VmError as error:
        check_plain(error.sentence(), most=1000)
        return
    check_plain(converted, most=_LARGE)


def _listing(answer: object) -> None:
    try:
        rows = table.rows(read_answer(Listing(container="c1"), answer))
    except VmError as error:
        check_plain(error.sentence(), most=1000)
        return
    check_plain([list(row) for row in rows], most=_LARGE)
    lines = table.table(rows, now=1.7e9)
    assert len(lines) == 1 + len(rows) <= 1001
    check_plain(lines, most=2 * _LARGE)


def _trace(answer: object) -> None:
    steps = Steps("/nowhere", [("command line", "begun", 1.0, 2.0)])
    try:
        steps.add_guest(read_answer(Trace(), answer), offset=-5.0)
    except VmError as error:
        check_plain(error.sentence(), most=1000)
    assert len(steps.done) <= 257
    assert all(began <= ended for _, _, began, ended in steps.done)
    drawn = json.dumps(timeline.trace(steps.done, name="c1"), allow_nan=False)
    assert len(drawn) < _LARGE


def _resolv_conf(data: bytes) -> None:
    servers = loopback_servers(data.decode(errors="replace"))
    assert len(servers) <= 3
    assert all(server.startswith("127.") for server in servers)


async def _bind_vfio(data: bytes) -> None:
    try:
        link = cast(GuestLink, _Link(json.loads(data)))
    except (ValueError, RecursionError):
        return
    try:
        nodes = await hotplug.attach(_PLUGS, _NODES, cast(Qmp, FakeQmp()), link, seconds=1)
    except (DeviceError, VmError) as error:
        check_plain(error.sentence())
        return
    numbers = [number for node in nodes for number in (node.guest_group, *(node.guest_numbers or ()))]
    assert not any(type(number) is bool for number in numbers)
    check_plain([[node.guest_path for node in nodes], numbers])
    check_plain(device_map(_PLUGS, nodes, {}))
    spec, notes = with_guest_nodes(_SPEC, nodes, {})
    check_plain(spec)
    check_plain([list(note) for note in notes])


def _misc_numbers(answer: object) -> None:
    try:
        places = step(misc_devices.guest_numbers(_WANTED, cast(GuestLink, _Link([answer]))))
    except (DeviceError, VmError) as error:
        check_plain(error.sentence(), most=1000)
        return
    assert all(0 <= number < 2**20 for numbers in places.values() for number in numbers)


def _bind_native(answers: object) -> None:
    answered = dict(zip((plug.device for plug in _PLUGS), answers, strict=False)) if isinstance(answers, list) else {}
    call = BindNative(address="0000:01:00.0", container="c1", seconds=1.0)
    try:
        natives = {plug.device: read_answer(call, answered.get(plug.device)) for plug in _PLUGS}
    except VmError as error:
        check_plain(error.sentence(), most=1000)
        return
    for native in natives.values():
        assert len(native.interfaces) <= 256
        assert all(not node.name.startswith("/") and ".." not in node.name.split("/") for node in native.nodes)
    check_plain(device_map(_PLUGS, [], natives))
    check_plain(guest_drivers.annotation(_PLUGS, natives))
    guest_drivers.with_nodes({}, _PLUGS, natives, {7: {}})


def _wake(answer: object) -> None:
    link, steps = _Link([answer]), Steps("/nowhere", [])
    try:
        step(identity.wake(cast(GuestLink, link), steps, seconds=1))
    except VmError:
        return
    assert abs(link.clock_offset) < 2**63


def _notice(value: Any) -> None:
    """A notification for the service manager of the host, with each known assignment once."""
    if not isinstance(value, str):
        return
    notice = notifications.checked(value, now_usec=5)
    check_plain(notice, most=6 * notifications.MAX_TEXT)
    keys = [line.partition("=")[0] for line in notice.split("\n")] if notice else []
    assert len(set(keys)) == len(keys)
    assert set(keys) <= notifications.KEYS
    assert notifications.checked(notice, now_usec=5) == notice


_ERROR: dict[str, Any] = {"kind": "DeviceError", "message": "no", "hint": "do", "evidence": "a\nb", "exit_code": 126}
_FILES = {
    "cpu.stat": "usage_usec 30\nuser_usec 20\nsystem_usec 10\nnr_periods 4\nnr_throttled 2\nthrottled_usec 5\n",
    "memory.current": "4096\n", "memory.max": "max\n", "memory.peak": "8192\n", "memory.stat": "anon 7\nfile 9\n",
    "memory.swap.current": "18446744073709551615\n", "memory.swap.max": "max\n", "memory.events": "max 3\n",
    "pids.current": "2\n", "pids.max": "max\n", "io.stat": "8:16 rbytes=5 wbytes=6 rios=1 wios=2 dbytes=0 dios=0\n",
    "hugetlb.2MB.current": "2097152\n", "hugetlb.2MB.events": "max 1\n",
}  # fmt: skip
_VFIO = {
    "group": 3, "major": 511, "minor": 0, "bars": [4096], "file": {"number": 0, "major": 510, "minor": 0},
    "iommu": {"major": 10, "minor": 127},
}  # fmt: skip
_NATIVE = {"driver": "nvme", "interfaces": ["eth0"], "nodes": [
    {"name": "nvme0n1", "kind": "b", "major": 259, "minor": 0},
    {"name": "dri/card0", "kind": "c", "major": 226, "minor": 0},
]}  # fmt: skip
_PROCESS = {"uid": 0, "pid": 1, "parent": 0, "age": 10, "terminal": "?", "used": 5, "command": "sh -c x"}
_STEP = {"name": "modules", "began_ns": 1000, "ended_ns": 2000}

TARGETS = [
    of_bytes("reply", _reply, [
        b'{"id":1,"result":null}', b'{"id":2,"result":[["warning","x"]]}',
        json.dumps({"id": 3, "error": _ERROR}).encode(),
    ], form=JSON),
    of_bytes("event", _event, [
        b'{"event":"hello","params":{"protocol":2,"kernel":"6.1"}}',
        b'{"event":"exit","params":{"process":1,"code":0}}',
        b'{"event":"oom","params":{"container":"c1","kills":1}}',
        b'{"event":"notify","params":{"container":"c1","text":"READY=1"}}',
        b'{"event":"dial","params":{"container":"c1","socket":"mount1","connection":1}}',
        b'{"event":"query","params":{"server":"127.0.0.11","transport":"udp","connection":1}}',
    ], form=JSON),
    of_value("error", _error, [_ERROR, {}, [1], {"kind": "CommandError", "exit_code": 300}]),
    of_value("statistics", _statistics, [_FILES]),
    of_value("listing", _listing, [[_PROCESS, _PROCESS | {"uid": 1000, "pid": 2, "command": "top"}]]),
    of_value("trace", _trace, [[_STEP, _STEP | {"name": "booted", "ended_ns": 5_000_000_000}]]),
    of_value("misc_numbers", _misc_numbers, [[{"major": 10, "minor": 125}, None], [{"major": 10, "minor": 1}] * 2]),
    of_value("notice", _notice, ["READY=1\nSTATUS=up", "WATCHDOG=1", "RELOADING=1\nMONOTONIC_USEC=7\nERRNO=5",
                                 "MAINPID=1\nFDSTORE=1\nX=y", "WATCHDOG_USEC=9\nBUSERROR=a.b\nEXIT_STATUS=0"]),
    of_bytes("resolv_conf", _resolv_conf, [b"search x\nnameserver 127.0.0.11\nnameserver 8.8.8.8\noptions ndots:0\n"]),
    Target("bind_vfio", JSON, [json.dumps(answers).encode() for answers in (
        [_VFIO, _VFIO | {"file": {"number": 1, "major": 510, "minor": 1}}, _VFIO | {"group": 4, "file": None}],
        [_VFIO, _VFIO | {"bars": []}, _VFIO | {"group": 4}, {}, _VFIO, _VFIO, _VFIO],
    )], lambda: in_loop(_bind_vfio)),
    of_value("bind_native", _bind_native, [[_NATIVE, _NATIVE, {"driver": "e1000e", "interfaces": [], "nodes": []}]]),
    of_value("wake", _wake, [{"monotonic_ns": 5_000_000_000}]),
]  # fmt: skip
