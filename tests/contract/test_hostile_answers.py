"""A hostile agent's answers to the real monitor: of another type, late, twice, never, or errors.

As in test_hostile_agent.py, the monitor continues or ends the sandbox with a reason, and `delete --force` leaves
nothing.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hawse.errors import MAX_TEXT, HawseError, VmError
from hawse.json_text import MAX_MESSAGE_DEPTH
from hawse.link.frames import HEADER, REPLY
from tests.fuzz.target import check_plain
from tests.support.fake_machine import BOUND, FakeHost
from tests.support.hostile import LINK_CALLS, Scene, play
from tests.support.monitor import new_network
from tests.support.plans import EDU

#: Calls of each creation.
CREATION = ("wake", "mount_share", "serve_names", "create")
NEEDED = ("bind_vfio", "bind_native", *CREATION)
#: Verbs after the start, with their parameters.
LATER: dict[str, dict[str, Any]] = {
    "pause": {}, "update": {"resources": {"pids": {"limit": 5}}}, "kill": {"signal": 15, "all": False}, "listing": {},
    "statistics": {},
}  # fmt: skip
VALUES: dict[str, object] = {
    "nothing": None,
    "true": True,
    "list": [],
    "text": "x",
    "lone surrogate": "\ud800",
    "huge number": 10**400,
    "negative number": -1,
    "NaN": float("nan"),
    "infinity": float("inf"),
    "empty mapping": {},
    "mapping of nonsense": {"group": -1, "monotonic_ns": "1", "cpu.stat": ["\0"], "driver": "../x", "extra": {}},
    "numbers that are too great": {"group": 2**20, "major": 2**63, "minor": 10**400, "monotonic_ns": 2**63},
    "booleans": {"group": True, "major": True, "minor": True, "monotonic_ns": True},
    "list of lists": [[["\x1b[2J", {}]] * 150] * 150,
    "lines to log": [["warning", "\x1b[2J\n\ud800" + "x" * 1000], ["root", "x"], [[], {}]] * 500,
    "mapping with a lone surrogate": {"\ud800": 1, "monotonic_ns": 1} | BOUND,
    "steps": [{"name": "\x1b[2J" + "x" * 1000, "began_ns": 2, "ended_ns": 1}] * 500,
    "steps that are not usable": [
        {"name": "x", "began_ns": began, "ended_ns": ended}
        for began, ended in ((-(10**30), 10**30), (True, False), (0.5, 1.5), ("0", None))
    ],
    "lists of steps and processes": [["x", 0, 1], [True] * 7, ["0"] * 7, [0, 1, 2, 3, "a", 5, "b" * 9999]],
    "processes": [
        {"uid": -1, "pid": 2**70, "parent": 0, "age": 0, "terminal": "\x1b", "used": 0, "command": "\ud800"},
        {"uid": 0, "pid": 1, "parent": 2, "age": 3, "terminal": "a", "used": 5, "command": "b" * 9999},
    ],
    "processes that are not usable": [
        {"uid": uid, "pid": 1, "parent": 0, "age": 0, "terminal": "a", "used": 0, "command": ["b"]} for uid in (True, 0)
    ],
    "files": {"cpu.stat": "\x1b[2J\n\ud800 9", "memory.current": "9" * 50, "\ud800": "x"},
}  # fmt: skip


@pytest.fixture(scope="module")
def network() -> Iterator[str]:
    with new_network() as path:
        yield path


def nested(number: int) -> bytes:
    """An answer with the maximum depth that hawse accepts."""
    depth = MAX_MESSAGE_DEPTH - 1
    return _reply(b'{"id":%d,"result":' % number + b"[" * depth + b"]" * depth + b"}")


def _reply(payload: bytes) -> bytes:
    return HEADER.pack(0, REPLY, len(payload)) + payload


async def attempt(scene: Scene, verb: str, params: dict[str, Any]) -> None:
    """Run a verb whose call the guest answers with invalid data: the answer is refused, or it can be printed."""
    try:
        check_plain(await scene.monitor.ask(verb, **params))
    except VmError as error:
        assert error.message.startswith(f"the guest's answer to {LINK_CALLS.get(verb, verb)} is unusable: ")
        check_plain(error.to_wire(), most=1000)
        assert error.message.isprintable()


@pytest.mark.parametrize("name", VALUES)
def test_result_of_another_type_is_refused_and_the_sandbox_goes_on(tmp_path: Path, network: str, name: str) -> None:
    """The steps of the guest are omitted from the timeline."""

    def prepare(host: FakeHost) -> None:
        host.answers["trace"] = host.answers["start"] = VALUES[name]

    async def story(scene: Scene) -> None:
        assert await scene.monitor.report() == []
        await attempt(scene, "start", {})
        scene.host.answers["start"] = None
        if VALUES[name] is not None:
            assert scene.monitor.store.read()["status"] == "created"
            await scene.monitor.ask("start")
        for verb, params in LATER.items():
            scene.host.answers[LINK_CALLS.get(verb, verb)] = VALUES[name]
            await attempt(scene, verb, params)
        if scene.monitor.store.read()["status"] == "paused":
            await scene.monitor.ask("resume")
        scene.host.answers["listing"] = []
        await scene.prove_running()
        check_plain(json.loads(drawn.read_text()), most=MAX_TEXT * 16)

    drawn = tmp_path / "trace.json"
    play(tmp_path, network, story, prepare=prepare, timeline=str(drawn))


def test_result_that_is_nested_deeply_is_refused_and_the_sandbox_goes_on(tmp_path: Path, network: str) -> None:
    def prepare(host: FakeHost) -> None:
        host.raw["trace"] = nested

    async def story(scene: Scene) -> None:
        await scene.start()
        for verb, params in LATER.items():
            scene.host.raw[LINK_CALLS.get(verb, verb)] = nested
            with pytest.raises(VmError, match=r"Expected `.*`, got `array`"):
                await scene.monitor.ask(verb, **params)
        scene.host.raw.clear()
        await scene.prove_running()

    play(tmp_path, network, story, prepare=prepare)


@pytest.mark.parametrize(
    ("method", "name"),
    [
        (method, name)
        for method in NEEDED
        for name in (*VALUES, "nested deeply")
        if name != "nothing"
        or method in ("wake", "bind_vfio", "bind_native")  # null is a valid answer to the other calls
    ],
)
def test_required_answer_is_checked(tmp_path: Path, network: str, method: str, name: str) -> None:
    """The container is not created, and the reason names the device and the call."""

    def prepare(host: FakeHost) -> None:
        if name in VALUES:
            host.answers[method] = VALUES[name]
        else:
            host.raw[method] = nested

    async def story(scene: Scene) -> None:
        device = "emulated edu of group 5: " if method.startswith("bind_") else ""
        await scene.prove_refused(f"^{device}the guest's answer to {method} is unusable: ")

    native = {EDU.number: dict[str, int]()} if method == "bind_native" else {}
    play(tmp_path, network, story, prepare=prepare, groups=[EDU], native=native)


ERRORS: dict[str, object] = {
    "no mapping": ["\x1b[2J"],
    "nothing": None,
    "empty": {},
    "kind that is none": {"kind": "SystemExit", "message": "x"},
    "kind that is a list": {"kind": [], "message": {}, "hint": 7, "evidence": None, "exit_code": "0"},
    "exit code 0": {"kind": "CommandError", "message": "x", "exit_code": 0},
    "exit code out of range": {"kind": "CommandError", "message": "x", "exit_code": 10**10},
    "escape sequences": {"kind": "VmError", "message": "\x1b]0;x\x07\r\nr", "hint": "\u202e\0", "evidence": "\x1b[2J"},
    "lone surrogates": {"kind": "VmError", "message": "\ud800", "hint": "\udfff", "evidence": "\ud800"},
    "long texts": {"kind": "StateError", "message": "m" * 300_000, "hint": "h" * 300_000, "evidence": "e" * 300_000},
}  # fmt: skip


@pytest.mark.parametrize("name", ERRORS)
def test_error_of_the_guest_is_bounded_and_printable(tmp_path: Path, network: str, name: str) -> None:
    """Of a call after the start; the container goes on."""

    def answer(number: int) -> bytes:
        return _reply(json.dumps({"id": number, "error": ERRORS[name]}).encode())

    async def story(scene: Scene) -> None:
        await scene.start()
        scene.host.raw |= {"listing": answer, "freeze": answer}
        for method in ("listing", "pause"):
            with pytest.raises(HawseError) as caught:
                await scene.monitor.ask(method)
            check_plain(caught.value.to_wire(), most=4 * MAX_TEXT)
            assert "\n" not in caught.value.sentence()
            assert 1 <= caught.value.exit_code <= 255
        scene.host.raw.clear()
        await scene.prove_running()

    play(tmp_path, network, story)


@pytest.mark.parametrize("method", CREATION)
def test_error_of_ten_megabytes_ends_the_sandbox(tmp_path: Path, network: str, method: str) -> None:
    def prepare(host: FakeHost) -> None:
        host.raw[method] = lambda number: _reply(b'{"id":%d,"error":{"message":"' % number + b"x" * 10**7 + b'"}}')

    async def story(scene: Scene) -> None:
        await scene.prove_refused("^protocol violation by the guest agent: link: frame of type 2 with 100000")

    play(tmp_path, network, story, prepare=prepare)
