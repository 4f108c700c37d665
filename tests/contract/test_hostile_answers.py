"""An agent whose answers are hostile towards the real monitor: of another type, late, twice, never, or no answers.

As in test_hostile_agent.py, the monitor goes on or ends the sandbox with a reason, and `delete --force` leaves nothing.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from hawse.errors import MAX_TEXT, HawseError, VmError
from hawse.json_text import MAX_MESSAGE_DEPTH
from hawse.link.frames import HEADER, REPLY
from tests.fuzz.target import check_plain
from tests.support.fake_machine import FakeHost
from tests.support.hostile import Scene, play
from tests.support.monitor import new_network
from tests.support.plans import EDU

#: Calls whose results are not used, except the lines to log and the steps of the trace; calls of each creation.
PLAIN = ("mount_share", "serve_names", "create", "start", "freeze", "update", "trace")
CREATION = ("wake", "mount_share", "serve_names", "create")
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
    "steps": [["\x1b[2J", -(10**30), 10**30], ["x" * 1000, 2, 1], ["y", True, False], ["z", 0.5, 1.5]] * 500,
    "processes": [[True] * 7, ["0"] * 7, [-1, 2**70, 0, 0, "\x1b", 0, "\ud800"], [0, 1, 2, 3, "a", 5, "b" * 9999]],
}  # fmt: skip


@pytest.fixture(scope="module")
def network() -> Iterator[str]:
    with new_network() as path:
        yield path


def nested(number: int) -> bytes:
    """An answer as deep as hawse takes it."""
    depth = MAX_MESSAGE_DEPTH - 1
    return _reply(b'{"id":%d,"result":' % number + b"[" * depth + b"]" * depth + b"}")


def _reply(payload: bytes) -> bytes:
    return HEADER.pack(0, REPLY, len(payload)) + payload


@pytest.mark.parametrize("name", VALUES)
def test_result_of_another_type_is_ignored_or_refused(tmp_path: Path, network: str, name: str) -> None:
    """Unused results are ignored, printed results are checked, and the sandbox goes on."""

    def prepare(host: FakeHost) -> None:
        host.answers |= dict.fromkeys(PLAIN, VALUES[name])

    async def story(made: Scene) -> None:
        lines = await made.monitor.report()
        check_plain(lines, most=100_000)
        assert len(lines) <= 100
        await made.monitor.ask("start")
        await made.monitor.ask("pause")
        await made.monitor.ask("resume")
        await made.monitor.ask("update", resources={"pids": {"limit": 5}})
        made.host.answers |= dict.fromkeys(("listing", "statistics"), VALUES[name])
        for method in ("listing", "statistics"):
            try:
                check_plain(await made.monitor.ask(method))
            except VmError as error:
                assert error.message.startswith("the guest does not say")
        made.host.answers["listing"] = []
        await made.prove_running()
        check_plain(json.loads(drawn.read_text()), most=MAX_TEXT * 16)

    drawn = tmp_path / "trace.json"
    play(tmp_path, network, story, prepare=prepare, timeline=str(drawn))


def test_result_that_is_nested_deeply_changes_nothing(tmp_path: Path, network: str) -> None:
    def prepare(host: FakeHost) -> None:
        host.raw |= dict.fromkeys(PLAIN, nested)

    async def story(made: Scene) -> None:
        await made.start()
        await made.prove_running()

    play(tmp_path, network, story, prepare=prepare)


NEEDED = {
    "wake": "^the guest reports no usable clock$",
    "bind_vfio": "^emulated edu: the guest reports no usable group of its group$",
    "bind_native": "^emulated edu: the guest reports nothing usable of its driver: ",
}


@pytest.mark.parametrize("name", VALUES)
@pytest.mark.parametrize("method", NEEDED)
def test_answer_that_is_needed_is_checked(tmp_path: Path, network: str, method: str, name: str) -> None:
    """The container is not created, and the reason names the device."""

    def prepare(host: FakeHost) -> None:
        host.answers[method] = VALUES[name]

    async def story(made: Scene) -> None:
        await made.prove_refused(NEEDED[method])

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

    async def story(made: Scene) -> None:
        await made.start()
        made.host.raw |= {"listing": answer, "freeze": answer}
        for method in ("listing", "pause"):
            with pytest.raises(HawseError) as caught:
                await made.monitor.ask(method)
            check_plain(caught.value.to_wire(), most=4 * MAX_TEXT)
            assert "\n" not in caught.value.sentence()
            assert 1 <= caught.value.exit_code <= 255
        made.host.raw.clear()
        await made.prove_running()

    play(tmp_path, network, story)


@pytest.mark.parametrize("method", CREATION)
def test_error_of_ten_megabytes_ends_the_sandbox(tmp_path: Path, network: str, method: str) -> None:
    def prepare(host: FakeHost) -> None:
        host.raw[method] = lambda number: _reply(b'{"id":%d,"error":{"message":"' % number + b"x" * 10**7 + b'"}}')

    async def story(made: Scene) -> None:
        await made.prove_refused("^the agent in the guest speaks nonsense: link: frame of type 2 with 100000")

    play(tmp_path, network, story, prepare=prepare)
