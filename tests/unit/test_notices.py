"""Notifications of a hostile guest: which are forwarded, how many, and to whom."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from hawse.errors import StateError
from hawse.link import messages
from hawse.link.frames import EVENT, REPLY, Decoder
from hawse.monitor.agent.notifications import MAX_TEXT, Notices, checked
from hawse.oci.process.notify_socket import Notify
from tests.support.pods import Pod, events, pod, run, settle

NOW = 123456789
HOST = Notify(host="/run/systemd/notify", caller=True)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("READY=1", "READY=1"),
        ("READY=1\n", "READY=1"),
        ("READY=1\nSTATUS=Serving 5 of 7: ä\nWATCHDOG=1", "READY=1\nSTATUS=Serving 5 of 7: ä\nWATCHDOG=1"),
        ("RELOADING=1\nMONOTONIC_USEC=5", f"RELOADING=1\nMONOTONIC_USEC={NOW}"),
        ("STOPPING=1", "STOPPING=1"),
        ("WATCHDOG=trigger", "WATCHDOG=trigger"),
        ("WATCHDOG_USEC=20000000\nEXTEND_TIMEOUT_USEC=1", "WATCHDOG_USEC=20000000\nEXTEND_TIMEOUT_USEC=1"),
        (f"WATCHDOG_USEC={2**64 - 1}", f"WATCHDOG_USEC={2**64 - 1}"),
        ("ERRNO=2\nBUSERROR=org.freedesktop.DBus.Error.TimedOut\nEXIT_STATUS=7",
         "ERRNO=2\nBUSERROR=org.freedesktop.DBus.Error.TimedOut\nEXIT_STATUS=7"),
        ("VARLINKERROR=org.varlink.service.InvalidParameter", "VARLINKERROR=org.varlink.service.InvalidParameter"),
        ("STATUS=", "STATUS="),
        ("STATUS=a=b", "STATUS=a=b"),
        # Fields of another kernel, or those that a container must not set.
        ("MAINPID=1", ""), ("MAINPIDFDID=1", ""), ("MAINPIDFD=1", ""), ("FDSTORE=1\nFDNAME=x\nFDPOLL=0", ""),
        ("FDSTOREREMOVE=1\nFDNAME=x", ""), ("BARRIER=1", ""), ("NOTIFYACCESS=all", ""), ("RESTART_RESET=1", ""),
        ("X_SYSTEMD_UNIT_ACTIVE=a.service", ""), ("CREDENTIAL=x", ""), ("USERDB=1", ""),
        ("READY=1\nMAINPID=1\nFDSTORE=1", "READY=1"),
        # Invalid forms.
        ("", ""), ("\n\n", ""), ("=", ""), ("READY", ""), ("READY=", ""), ("READY=2", ""), ("READY=1 ", ""),
        ("ready=1", ""), (" READY=1", ""), ("READY=1\r", ""), ("READY=11", ""),
        ("READY=\N{MATHEMATICAL BOLD DIGIT ONE}", ""),
        ("ERRNO=-1", ""), ("ERRNO=x", ""), ("ERRNO=\N{ARABIC-INDIC DIGIT ONE}", ""), ("ERRNO=123456", ""),
        (f"WATCHDOG_USEC={2**64}", ""), ("WATCHDOG_USEC=0x1", ""), ("BUSERROR=a b", ""), ("BUSERROR=", ""),
        # One field of each kind, and no terminal control characters.
        ("READY=1\nREADY=1\nSTATUS=a\nSTATUS=b", "READY=1\nSTATUS=a"),
        ("STATUS=\x1b[2J\x00a\u202eb\ud800\x85c\rd\u2028e", "STATUS=[2Jabcde"),
        ("STATUS=" + "x" * 2 * MAX_TEXT, "STATUS=" + "x" * (MAX_TEXT - 7)),
    ],
)  # fmt: skip
def test_fields_that_are_forwarded(text: str, expected: str) -> None:
    assert checked(text, now_usec=NOW) == expected


def test_flood_is_dropped_and_later_notifications_are_not() -> None:
    """The agent sends 20 a second: none of those that it forwards is lost."""
    sent: list[str] = []
    now = 100.0
    notices = Notices(sent.append, clock=lambda: now)
    for number in range(1000):
        notices.handle(f"STATUS={number}")
    assert sent == [f"STATUS={number}" for number in range(64)]
    sent.clear()
    for number in range(200):
        now += 0.05
        notices.handle(f"STATUS={number}")
    assert len(sent) == 200
    now += 1000
    sent.clear()
    for _ in range(1000):
        notices.handle("WATCHDOG=1")
    assert len(sent) == 64


def test_dropped_notifications_count_against_the_limit() -> None:
    sent: list[str] = []
    notices = Notices(sent.append, clock=lambda: 1.0)
    for _ in range(64):
        notices.handle("MAINPID=1")
    notices.handle("READY=1")
    assert sent == []


def test_waiting_caller_gets_the_readiness() -> None:
    async def story() -> None:
        sent: list[str] = []
        notices = Notices(sent.append)
        ready = notices.await_ready()
        for text in ("STATUS=READY=1", "READY=1\nSTATUS=up", "READY=1"):
            notices.handle(text)
        assert ready.result() == "READY=1\nSTATUS=up"
        assert sent == ["STATUS=READY=1", "READY=1"]
        gone = notices.await_ready()
        gone.cancel()
        notices.handle("READY=1")
        assert sent[2:] == ["READY=1"]
        never = notices.await_ready()
        refused = notices.await_ready()  # the notification of a second `start`, which fails
        refused.cancel()
        notices.end()
        notices.end()
        assert never.result() == ""

    run(story)


async def started(sandbox: Pod) -> tuple[asyncio.StreamReader, asyncio.StreamWriter, Decoder]:
    """Start c2 with a caller who waits; the start was answered."""
    reader, writer = await sandbox.connect()
    writer.write(messages.encode_call(1, "start", {"container": "c2", "notify": True}))
    decoder = Decoder()
    [(_, kind, _)] = decoder.feed(await reader.read(65536))
    assert kind == REPLY
    return reader, writer, decoder


def notices_of(heard: list[tuple[str, dict[str, Any]]]) -> list[str]:
    return [params["notice"] for name, params in heard if name == "notify"]


def test_start_reports_the_readiness_and_the_proxy_other_notifications(tmp_path: Path) -> None:
    async def story() -> None:
        async with pod(tmp_path) as sandbox:
            proxy = await sandbox.join(notify=HOST, plugs=[])
            assert sandbox.guest.asked("create")[-1]["notify"] is True
            assert sandbox.state()["notify"] is True
            reader, _, decoder = await started(sandbox)
            for text in ("STATUS=wait", "READY=1\nMAINPID=1", "WATCHDOG=1", "X=1"):
                sandbox.guest.tell("notify", container="c2", text=text)
            [(_, kind, payload)] = decoder.feed(await reader.read(65536))
            assert (kind, messages.decode_event(payload)) == (EVENT, ("ready", {"notice": "READY=1"}))
            assert await reader.read() == b""
            sandbox.guest.tell("exit", process=2, code=0)
            assert notices_of(await events(proxy)) == ["STATUS=wait", "WATCHDOG=1"]

    run(story)


@pytest.mark.parametrize("way", ["caller", "mount", "another start"])
def test_proxy_reports_the_readiness_without_a_waiting_caller(tmp_path: Path, way: str) -> None:
    async def story() -> None:
        async with pod(tmp_path) as sandbox:
            proxy = await sandbox.join(notify=Notify(host="/x") if way == "mount" else HOST, plugs=[])
            assert ("notify" in sandbox.state()) == (way != "mount")
            if way == "caller":  # the waiting caller is gone
                _, writer, _ = await started(sandbox)
                writer.close()
                await settle()
            else:
                await sandbox.call("c2", "start")
            sandbox.guest.tell("notify", container="c2", text="READY=1")
            sandbox.guest.tell("exit", process=2, code=0)
            assert notices_of(await events(proxy)) == ["READY=1"]

    run(story)


def test_wait_ends_if_the_container_ends_before_it_is_ready(tmp_path: Path) -> None:
    async def story() -> None:
        async with pod(tmp_path) as sandbox:
            await sandbox.join(notify=HOST, plugs=[])
            reader, _, decoder = await started(sandbox)
            sandbox.guest.tell("exit", process=2, code=0)
            [(_, _, payload)] = decoder.feed(await reader.read(65536))
            assert messages.decode_event(payload) == ("ready", {"notice": ""})

    run(story)


def test_failed_start_does_not_wait(tmp_path: Path) -> None:
    async def story() -> None:
        async with pod(tmp_path) as sandbox:
            proxy = await sandbox.join(notify=HOST, plugs=[])
            sandbox.guest.answers["start"] = StateError("no")
            reader, writer = await sandbox.connect()
            writer.write(messages.encode_call(1, "start", {"container": "c2", "notify": True}))
            [(_, _, payload)] = Decoder().feed(await reader.read(65536))
            assert str(messages.decode_reply(payload)[2]) == "no"
            sandbox.guest.tell("notify", container="c2", text="READY=1")
            sandbox.guest.tell("exit", process=2, code=0)
            assert notices_of(await events(proxy)) == ["READY=1"]

    run(story)


@pytest.mark.parametrize("container", ["c3", "c1", ""])
def test_notification_of_another_container_reaches_no_proxy_of_this(tmp_path: Path, container: str) -> None:
    async def story() -> None:
        async with pod(tmp_path) as sandbox:
            proxy = await sandbox.join(plugs=[])
            assert sandbox.guest.asked("create")[-1]["notify"] is False
            sandbox.guest.tell("notify", container=container, text="READY=1")
            sandbox.guest.tell("exit", process=2, code=0)
            assert notices_of(await events(proxy)) == []
            assert not sandbox.machine.link.ended.done()

    run(story)


def test_proxy_that_does_not_read_misses_notifications(tmp_path: Path) -> None:
    """The queue to it is bounded."""

    async def story() -> None:
        async with pod(tmp_path) as sandbox:
            await sandbox.join(notify=HOST, plugs=[])
            container = sandbox.sandbox.find("c2")
            proxy = container._proxy
            assert proxy is not None
            for _ in range(4000):
                proxy.notify("STATUS=" + "x" * 4000)
            assert proxy._writer.transport.get_write_buffer_size() < 3 * 1024 * 1024

    run(story)
