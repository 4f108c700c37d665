"""A hostile agent in each phase of a container's life, towards the real monitor: it closes the link, does not answer,
or reports impossible events.

As in test_hostile_agent.py, the monitor continues or ends the sandbox with a reason, and `delete --force` leaves
nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from hawse.commands.client import MonitorGoneError
from hawse.errors import HawseError
from hawse.link import messages
from hawse.link.frames import DATA, EOF, HEADER, encode
from hawse.link.streams import STREAMS
from tests.support.fake_machine import FakeHost
from tests.support.hostile import INIT, LINK_CALLS, Scene, play
from tests.support.monitor import new_network
from tests.support.plans import EDU

CLOSED = "the guest closed the link"
NONSENSE = "protocol violation by the guest agent: link: "
HELLO = NONSENSE + "the event hello is unusable: "
STDOUT = INIT * STREAMS + 1
#: Calls of the link during the creation, and verbs after it with their parameters.
CREATION = ("wake", "bind_vfio", "mount_share", "create")
LATER: dict[str, dict[str, Any]] = {
    "start": {}, "listing": {}, "statistics": {}, "pause": {}, "kill": {"signal": 15, "all": False},
    "update": {"resources": {"pids": {"limit": 5}}}, "exec": {"key": "k", "process": {"args": ["y"]}},
}  # fmt: skip


@pytest.fixture(scope="module")
def network() -> Iterator[str]:
    with new_network() as path:
        yield path


def hello(**params: Any) -> bytes:
    return messages.encode_event("hello", params)


REPORTS = {
    "data": (encode(STDOUT, DATA, b"x"), NONSENSE + "frame for the unknown stream 65"),
    "exit": (messages.encode_event("exit", {"process": INIT, "code": 0}), NONSENSE + "exit of an unknown process"),
    "other protocol": (hello(protocol=1), NONSENSE + "the agent speaks protocol 1, not 2"),
    "protocol that is true": (hello(protocol=True), HELLO + "protocol: Expected `int`, got `bool`"),
    "protocol that is a fraction": (hello(protocol=2.0), HELLO + "protocol: Expected `int`, got `float`"),
    "protocol that is a mapping": (hello(protocol={"\x1b": [1]}), HELLO + "protocol: Expected `int`, got `object`"),
    "protocol of more than 64 bits": (hello(protocol=2**70), HELLO + "protocol: Expected `int` <= "),
    "no protocol": (hello(), HELLO + "Object missing required field `protocol`"),
    "hello twice": (hello(protocol=2) * 2, NONSENSE + "a second hello"),
    "half of a header": (HEADER.pack(0, 3, 20)[:5], CLOSED),
    "half of a frame": (hello(protocol=2)[:-1], CLOSED),
    "nothing": (b"", CLOSED),
}


@pytest.mark.parametrize("name", REPORTS)
def test_guest_that_does_not_boot_in_order_is_the_reported_reason(tmp_path: Path, network: str, name: str) -> None:
    frames, reason = REPORTS[name]

    def prepare(host: FakeHost) -> None:
        host.reports = False

    async def story(scene: Scene) -> None:
        machine = await scene.machine()
        machine.write(frames)
        if reason == CLOSED:
            machine.cut_link()
        assert (await scene.prove_refused("")).message.startswith(reason)

    play(tmp_path, network, story, prepare=prepare)


@pytest.mark.parametrize("method", CREATION)
def test_link_that_closes_during_creation_is_the_reported_reason(tmp_path: Path, network: str, method: str) -> None:
    def prepare(host: FakeHost) -> None:
        host.held[method] = asyncio.Event()

    async def story(scene: Scene) -> None:
        await scene.called(method)
        (await scene.machine()).cut_link()
        await scene.prove_refused(f"^{CLOSED}$")

    play(tmp_path, network, story, prepare=prepare, groups=[EDU])


@pytest.mark.parametrize("verb", LATER)
def test_link_that_closes_during_a_verb_ends_the_sandbox(tmp_path: Path, network: str, verb: str) -> None:
    """The verb fails with the reason, or because the monitor has ended."""

    def prepare(host: FakeHost) -> None:
        host.held[LINK_CALLS.get(verb, verb)] = asyncio.Event()

    async def story(scene: Scene) -> None:
        asking = await scene.begin(verb, **LATER[verb])
        (await scene.machine()).cut_link()
        with pytest.raises(HawseError) as caught:
            await asking
        assert isinstance(caught.value, MonitorGoneError) or caught.value.message == CLOSED
        await scene.prove_ended(CLOSED)

    play(tmp_path, network, story, prepare=prepare)


@pytest.mark.parametrize("method", CREATION)
def test_container_whose_creation_is_not_answered_can_be_deleted(tmp_path: Path, network: str, method: str) -> None:
    """The deletion does not wait for the guest."""

    def prepare(host: FakeHost) -> None:
        host.held[method] = asyncio.Event()

    async def story(scene: Scene) -> None:
        await scene.called(method)
        await scene.prove_deletable()
        await scene.prove_refused("^container c1 was deleted while it was created$")

    play(tmp_path, network, story, prepare=prepare, groups=[EDU])


@pytest.mark.parametrize("verb", LATER)
def test_container_with_a_verb_that_is_not_answered_can_be_deleted(tmp_path: Path, network: str, verb: str) -> None:
    def prepare(host: FakeHost) -> None:
        host.held[LINK_CALLS.get(verb, verb)] = asyncio.Event()

    async def story(scene: Scene) -> None:
        asking = await scene.begin(verb, **LATER[verb])
        await scene.prove_deletable()
        with suppress(HawseError):
            await asking

    play(tmp_path, network, story, prepare=prepare)


@pytest.mark.parametrize("answered", [True, False])
def test_exit_before_the_creation_is_answered(tmp_path: Path, network: str, answered: bool) -> None:
    """The container has ended. A later answer of the agent does not change that."""

    def answer(number: int) -> bytes:
        exit = messages.encode_event("exit", {"process": INIT, "code": 3})
        return exit + (messages.encode_result(number, None) if answered else b"")

    def prepare(host: FakeHost) -> None:
        host.raw["create"] = answer

    async def story(scene: Scene) -> None:
        if answered:
            await scene.prove_refused("^container c1 ended while it was created$")
        assert await scene.hearing == [("exit", {"code": 3})]

    play(tmp_path, network, story, prepare=prepare)


def test_exit_twice_counts_once(tmp_path: Path, network: str) -> None:
    async def story(scene: Scene) -> None:
        machine = await scene.start()
        machine.write(b"".join(messages.encode_event("exit", {"process": INIT, "code": code}) for code in (3, 4)))
        assert await scene.hearing == [("exit", {"code": 3})]
        assert await scene.monitor.ended() == 0
        assert "failure" not in scene.monitor.store.read()

    play(tmp_path, network, story)


def test_data_before_the_start_and_after_the_exit(tmp_path: Path, network: str) -> None:
    """The former is forwarded, since it may be an error of crun. The latter is dropped."""

    async def story(scene: Scene) -> None:
        await scene.monitor.report()
        machine = await scene.machine()
        machine.write(encode(STDOUT, DATA, b"early") + encode(STDOUT, EOF))
        await scene.monitor.ask("start")
        await scene.prove_running()
        exit = messages.encode_event("exit", {"process": INIT, "code": 0})
        machine.write(exit + encode(STDOUT, DATA, b"late") + encode(STDOUT, EOF))
        assert await scene.hearing == [("exit", {"code": 0})]
        assert await scene.monitor.ended() == 0

    play(tmp_path, network, story)
