"""A QEMU that its guest has compromised, and that sends arbitrary QMP messages to the real monitor.

The sandbox is not created, or it continues and can be deleted. The monitor's log contains no traceback and does not
grow.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.fake_machine import FakeHost
from tests.support.hostile import Scene, play
from tests.support.monitor import new_network
from tests.support.plans import EDU

MESSAGES = {
    "no JSON": b"\x1b[2Jhello\n",
    "bytes that are no text": b'{"\xff": 1}\n',
    "no object": b"[1]\n",
    "deep nesting": b"[" * 100_000 + b"\n",
    "event that is a list": b'{"event": [], "timestamp": {}}\n',
    "event without data": b'{"event": "DEVICE_DELETED", "data": 7, "timestamp": {}}\n',
    "answer whose number is a list": b'{"return": {}, "id": []}\n',
    "answers to nothing": b'{"return": {}, "id": "\\u001b[2J"}\n' * 500,
    "error without a number": b'{"error": {"class": "GenericError", "desc": "\\u001b[2J"}}\n',
    "number of 5000 digits": b'{"return": ' + b"9" * 5000 + b"}\n",
    "half of a message": b'{"return": ',
}


@pytest.fixture(scope="module")
def network() -> Iterator[str]:
    with new_network() as path:
        yield path


@pytest.mark.parametrize("name", MESSAGES)
def test_message_instead_of_the_greeting_fails_the_creation(tmp_path: Path, network: str, name: str) -> None:
    def prepare(host: FakeHost) -> None:
        host.greets = False

    async def story(scene: Scene) -> None:
        machine = await scene.machine()
        await machine.report(MESSAGES[name])
        if name == "half of a message":
            await machine.end(exit=1, stderr="x")
        await scene.prove_refused("^QEMU")

    play(tmp_path, network, story, prepare=prepare)


@pytest.mark.parametrize("name", ["deep nesting", "answers to nothing"])
def test_message_instead_of_an_answer_fails_the_command(tmp_path: Path, network: str, name: str) -> None:
    """The error names the device after 5 s, since QEMU's own end would be the better reason. A QEMU that only does not
    answer is awaited, and its container can be deleted meanwhile."""

    def prepare(host: FakeHost) -> None:
        host.held["device_add"] = asyncio.Event()

    async def story(scene: Scene) -> None:
        machine = await scene.machine()
        await scene.executed("device_add")
        await machine.report(MESSAGES[name])
        if name == "deep nesting":
            await scene.prove_refused(
                "^emulated edu of group 5: QEMU refuses it: QEMU ended before it answered device_"
            )

    play(tmp_path, network, story, prepare=prepare, groups=[EDU])


@pytest.mark.parametrize("name", MESSAGES)
def test_message_while_the_container_runs_is_ignored(tmp_path: Path, network: str, name: str) -> None:
    async def story(scene: Scene) -> None:
        machine = await scene.start()
        await machine.report(MESSAGES[name])
        await scene.prove_running()

    play(tmp_path, network, story)


def test_refusal_is_printable_and_bounded(tmp_path: Path, network: str) -> None:
    def prepare(host: FakeHost) -> None:
        host.refused["device_add"] = "\x1b[2J\n\ud800" + "x" * 1_000_000

    async def story(scene: Scene) -> None:
        await scene.prove_refused(r"^emulated edu of group 5: QEMU refuses it: device_add: \?\[2J\?\?xxx")

    play(tmp_path, network, story, prepare=prepare, groups=[EDU])
