"""QMP over a socket, with a server that answers, returns errors, stays silent or dies."""

from __future__ import annotations

import asyncio
import json
import os
import socket
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from hawse.errors import RefusedError, VmError
from hawse.vm.qmp import MOST_EVENTS, Qmp
from tests.support.async_wait import until
from tests.support.patience import patience
from tests.support.qmp_server import Message, QmpServer, serving

Scenario = Callable[[Qmp, QmpServer], Awaitable[None]]


def run(scenario: Scenario, answer: Callable[[str, Message], Message | None] = lambda *_: {"return": {}}) -> list[Any]:
    """Run the scenario with a connected client; returns the messages of its log."""
    log: list[bytes] = []

    async def whole() -> None:
        server = QmpServer(answer)
        async with serving(server) as connection:
            qmp = Qmp(log=log.append)
            await qmp.open(connection, seconds=20)
            try:
                await scenario(qmp, server)
            finally:
                await qmp.close()

    asyncio.run(whole())
    assert all(line.endswith(b"\n") for line in log)
    return [json.loads(line) for line in log]


def test_commands_and_answers_are_logged() -> None:
    async def scenario(qmp: Qmp, server: QmpServer) -> None:
        assert await qmp.execute("query-x", {"a": 1}, timeout=patience(7)) == {"b": [2]}
        with pytest.raises(RefusedError, match="device_add: no such bus"):
            await qmp.execute("device_add", {}, timeout=patience(7))
        assert server.commands == [("query-x", {"a": 1}), ("device_add", {})]

    error = {"error": {"class": "GenericError", "desc": "no such bus"}}
    assert run(scenario, lambda name, _: {"return": {"b": [2]}} if name == "query-x" else error) == [
        {"execute": "query-x", "arguments": {"a": 1}},
        {"return": {"b": [2]}},
        {"execute": "device_add", "arguments": {}},
        {"error": "no such bus"},
    ]


@pytest.mark.parametrize(
    "line", [b"[" * 10_000, b'{"\xff": 1}', b'{"return": {}, "id": []}', b'{"event": {}, "timestamp": {}}', b"7"]
)
def test_invalid_message_ends_the_connection(line: bytes) -> None:
    """A guest may have taken over QEMU. The command fails, and the connection can be closed."""

    async def scenario(qmp: Qmp, server: QmpServer) -> None:
        with qmp.listen("DEVICE_DELETED"):
            asking = asyncio.create_task(qmp.execute("query-x", {}, timeout=patience(7)))
            await until(lambda: server.commands != [])
            server.send_line(line)
            with pytest.raises(VmError, match=r"^QEMU ended before it answered query-x$"):
                await asking
        assert qmp.ended

    run(scenario, lambda *_: None)


def test_error_description_has_no_terminal_control_characters() -> None:
    async def scenario(qmp: Qmp, _server: QmpServer) -> None:
        with pytest.raises(RefusedError) as caught:
            await qmp.execute("device_add", {}, timeout=patience(7))
        assert caught.value.message.startswith("device_add: ?[2J?xxx")
        assert len(caught.value.message) < 20_000

    run(scenario, lambda *_: {"error": {"class": "GenericError", "desc": "\x1b[2J\n" + "x" * 100_000}})


@pytest.mark.parametrize(
    ("answer", "expected"), [({"status": "paused", "running": False}, "paused"), ({}, "None"), ([], ""), ("x", "")]
)
def test_run_state_and_migration_status_are_returned_as_text(answer: object, expected: str) -> None:
    async def scenario(qmp: Qmp, server: QmpServer) -> None:
        assert await qmp.status(timeout=patience(7)) == expected
        assert await qmp.migration(timeout=patience(7)) == expected
        assert [name for name, _ in server.commands] == ["query-status", "query-migrate"]

    run(scenario, lambda *_: {"return": answer})


def test_shared_memory_is_excluded_from_migration() -> None:
    async def scenario(qmp: Qmp, server: QmpServer) -> None:
        await qmp.leave_memory_alone(timeout=patience(7))
        capability = {"capability": "x-ignore-shared", "state": True}
        assert server.commands == [("migrate-set-capabilities", {"capabilities": [capability]})]

    run(scenario)


def test_descriptor_is_passed_with_its_name() -> None:
    async def scenario(qmp: Qmp, server: QmpServer) -> None:
        fd = os.open("/dev/null", os.O_RDONLY)
        await qmp.give(fd, "net0", timeout=patience(7))
        os.close(fd)
        assert server.commands == [("getfd", {"fdname": "net0"})]
        assert server.descriptors == 1

    run(scenario)


def test_wait_for_an_event_by_name_and_data() -> None:
    async def scenario(qmp: Qmp, server: QmpServer) -> None:
        with qmp.listen("DEVICE_DELETED", "STOP") as events:
            for name, data in [
                ("DEVICE_DELETED", {"path": "/x"}),
                ("RESUME", {"device": "b"}),
                ("DEVICE_DELETED", {"device": "a"}),
                ("DEVICE_DELETED", {"device": "b", "path": "/y"}),
            ]:
                server.send({"event": name, "data": data, "timestamp": {"seconds": 1, "microseconds": 2}})
            server.send({"event": "STOP", "timestamp": {"seconds": 1, "microseconds": 2}})
            event = await events.wait(lambda data: data.get("device") == "b", seconds=20)
            assert event == {"device": "b", "path": "/y"}
            assert await events.wait(lambda _: True, seconds=20) == {}, "an event without data"
            assert await events.wait(lambda _: True, seconds=0) is None

    run(scenario)


def test_command_without_an_answer_times_out() -> None:
    async def scenario(qmp: Qmp, _server: QmpServer) -> None:
        with pytest.raises(VmError, match=r"QEMU did not answer query-status within 0\.05 s"):
            await qmp.status(timeout=0.05)

    run(scenario, lambda *_: None)


def test_qemu_that_dies_is_reported_with_the_pending_command() -> None:
    async def scenario(qmp: Qmp, server: QmpServer) -> None:
        waiting = asyncio.ensure_future(qmp.status(timeout=patience(7)))
        while not server.commands:
            await asyncio.sleep(0)
        server.close()
        with pytest.raises(VmError, match=r"^QEMU ended before it answered query-status$"):
            await waiting
        with pytest.raises(VmError, match=r"^QEMU ended before it answered query-status$"):
            await qmp.status(timeout=patience(7))
        await qmp.close()
        fd = os.open("/dev/null", os.O_RDWR)
        for call, command in ((qmp.give(fd, "x", timeout=1), "getfd"), (qmp.add(fd, {}, timeout=1), "add-fd")):
            with pytest.raises(VmError, match=rf"^QEMU ended before it answered {command}$"):
                await call
        os.close(fd)

    run(scenario, lambda *_: None)


def test_qemu_that_resets_the_connection_is_reported_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    """It died with commands unread: no name of an exception is for users."""

    async def scenario(qmp: Qmp, _server: QmpServer) -> None:
        async def reset(*_: object, **__: object) -> None:
            raise ConnectionResetError(104, "Connection reset by peer")

        def refuse(_fd: int) -> None:
            raise BrokenPipeError(32, "Broken pipe")

        monkeypatch.setattr(qmp._client, "execute", reset)
        monkeypatch.setattr(qmp._client, "send_fd_scm", refuse)
        for call, command in (
            (qmp.execute("device_add", {}, timeout=1), "device_add"),
            (qmp.give(0, "x", timeout=1), "getfd"),
            (qmp.add(0, {}, timeout=1), "add-fd"),
        ):
            with pytest.raises(VmError, match=rf"^QEMU ended before it answered {command}$"):
                await call
            assert qmp.ended

    run(scenario)


def test_monitor_without_a_greeting_times_out() -> None:
    async def scenario() -> None:
        ours, theirs = socket.socketpair()
        with theirs, pytest.raises(VmError, match=r"QEMU's monitor did not answer within 0\.05 s"):
            await Qmp().open(ours, seconds=0.05)

    asyncio.run(scenario())


def test_monitor_that_closes_the_connection_is_reported() -> None:
    async def scenario() -> None:
        ours, theirs = socket.socketpair()
        theirs.close()
        with pytest.raises(VmError, match=r"^QEMU's monitor closed before it answered$"):
            await Qmp().open(ours, seconds=20)

    asyncio.run(scenario())


@pytest.mark.parametrize(("number", "floods"), [(MOST_EVENTS, 0), (20 * MOST_EVENTS, 1)])
def test_events_without_a_listener_are_counted_and_not_stored(number: int, floods: int) -> None:
    """QEMU sends ACPI_DEVICE_OST each time that a guest writes to a register."""
    errors: list[VmError] = []

    async def whole() -> None:
        server = QmpServer(lambda *_: {"return": {}})
        async with serving(server) as connection:
            qmp = Qmp(on_flood=errors.append)
            await qmp.open(connection, seconds=20)
            message = {"event": "ACPI_DEVICE_OST", "data": {"info": {}}, "timestamp": {"seconds": 1, "microseconds": 0}}
            for _ in range(0, number, 100):
                for _ in range(100):
                    server.send(message)
                await qmp.execute("query-status", {}, timeout=patience(7))
            events_of_client = qmp._client.events
            assert (events_of_client.empty(), events_of_client.history) == (True, ())
            await qmp.close()

    asyncio.run(whole())
    assert [error.message for error in errors] == ["QEMU reported more than 1000 events in a second"] * floods
