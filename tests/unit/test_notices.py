"""Notifications of a hostile guest: what of them is passed on, how much, and to whom."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from hawse.errors import StateError
from hawse.link import control
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
        # Of another kernel, or not the container's to say.
        ("MAINPID=1", ""), ("MAINPIDFDID=1", ""), ("MAINPIDFD=1", ""), ("FDSTORE=1\nFDNAME=x\nFDPOLL=0", ""),
        ("FDSTOREREMOVE=1\nFDNAME=x", ""), ("BARRIER=1", ""), ("NOTIFYACCESS=all", ""), ("RESTART_RESET=1", ""),
        ("X_SYSTEMD_UNIT_ACTIVE=a.service", ""), ("CREDENTIAL=x", ""), ("USERDB=1", ""),
        ("READY=1\nMAINPID=1\nFDSTORE=1", "READY=1"),
        # Of another form.
        ("", ""), ("\n\n", ""), ("=", ""), ("READY", ""), ("READY=", ""), ("READY=2", ""), ("READY=1 ", ""),
        ("ready=1", ""), (" READY=1", ""), ("READY=1\r", ""), ("READY=11", ""),
        ("READY=\N{MATHEMATICAL BOLD DIGIT ONE}", ""),
        ("ERRNO=-1", ""), ("ERRNO=x", ""), ("ERRNO=\N{ARABIC-INDIC DIGIT ONE}", ""), ("ERRNO=123456", ""),
        (f"WATCHDOG_USEC={2**64}", ""), ("WATCHDOG_USEC=0x1", ""), ("BUSERROR=a b", ""), ("BUSERROR=", ""),
        # One of each, and nothing that steers a terminal.
        ("READY=1\nREADY=1\nSTATUS=a\nSTATUS=b", "READY=1\nSTATUS=a"),
        ("STATUS=\x1b[2J\x00a\u202eb\ud800\x85c\rd\u2028e", "STATUS=[2Jabcde"),
        ("STATUS=" + "x" * 2 * MAX_TEXT, "STATUS=" + "x" * (MAX_TEXT - 7)),
    ],
)  # fmt: skip
def test_what_is_passed_on(text: str, expected: str) -> None:
    assert checked(text, now_usec=NOW) == expected


def test_flood_is_dropped_and_later_notifications_are_not() -> None:
    """The agent sends 20 a second: nothing of what it passes on is lost."""
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


def test_what_is_dropped_counts_too() -> None:
    sent: list[str] = []
    notices = Notices(sent.append, clock=lambda: 1.0)
    for _ in range(64):
        notices.handle("MAINPID=1")
    notices.handle("READY=1")
    assert sent == []


def test_who_waits_for_the_readiness_gets_it() -> None:
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
        refused = notices.await_ready()  # of a second `start`, which fails
        refused.cancel()
        notices.end()
        notices.end()
        assert never.result() == ""

    run(story)


async def started(made: Pod) -> tuple[asyncio.StreamReader, asyncio.StreamWriter, Decoder]:
    """Start c2 with a caller who waits; the start has been answered."""
    reader, writer = await made.connect()
    writer.write(control.encode_call(1, "start", {"container": "c2", "notify": True}))
    decoder = Decoder()
    [(_, kind, _)] = decoder.feed(await reader.read(65536))
    assert kind == REPLY
    return reader, writer, decoder


def notices_of(heard: list[tuple[str, dict[str, Any]]]) -> list[str]:
    return [params["notice"] for name, params in heard if name == "notify"]


def test_start_reports_the_readiness_and_the_proxy_the_rest(tmp_path: Path) -> None:
    async def story() -> None:
        async with pod(tmp_path) as made:
            proxy = await made.join(notify=HOST, plugs=[])
            assert made.guest.asked("create")[-1]["notify"] is True
            assert made.state()["notify"] is True
            reader, _, decoder = await started(made)
            for text in ("STATUS=wait", "READY=1\nMAINPID=1", "WATCHDOG=1", "X=1"):
                made.guest.tell("notify", container="c2", text=text)
            [(_, kind, payload)] = decoder.feed(await reader.read(65536))
            assert (kind, control.decode_event(payload)) == (EVENT, ("ready", {"notice": "READY=1"}))
            assert await reader.read() == b""
            made.guest.tell("exit", process=2, code=0)
            assert notices_of(await events(proxy)) == ["STATUS=wait", "WATCHDOG=1"]

    run(story)


@pytest.mark.parametrize("way", ["caller", "mount", "another start"])
def test_proxy_reports_the_readiness_where_nobody_waits(tmp_path: Path, way: str) -> None:
    async def story() -> None:
        async with pod(tmp_path) as made:
            proxy = await made.join(notify=Notify(host="/x") if way == "mount" else HOST, plugs=[])
            assert ("notify" in made.state()) == (way != "mount")
            if way == "caller":  # who waited is gone
                _, writer, _ = await started(made)
                writer.close()
                await settle()
            else:
                await made.call("c2", "start")
            made.guest.tell("notify", container="c2", text="READY=1")
            made.guest.tell("exit", process=2, code=0)
            assert notices_of(await events(proxy)) == ["READY=1"]

    run(story)


def test_container_that_ends_before_is_not_waited_for(tmp_path: Path) -> None:
    async def story() -> None:
        async with pod(tmp_path) as made:
            await made.join(notify=HOST, plugs=[])
            reader, _, decoder = await started(made)
            made.guest.tell("exit", process=2, code=0)
            [(_, _, payload)] = decoder.feed(await reader.read(65536))
            assert control.decode_event(payload) == ("ready", {"notice": ""})

    run(story)


def test_start_that_fails_waits_for_nothing(tmp_path: Path) -> None:
    async def story() -> None:
        async with pod(tmp_path) as made:
            proxy = await made.join(notify=HOST, plugs=[])
            made.guest.answers["start"] = StateError("no")
            reader, writer = await made.connect()
            writer.write(control.encode_call(1, "start", {"container": "c2", "notify": True}))
            [(_, _, payload)] = Decoder().feed(await reader.read(65536))
            assert str(control.decode_reply(payload)[2]) == "no"
            made.guest.tell("notify", container="c2", text="READY=1")
            made.guest.tell("exit", process=2, code=0)
            assert notices_of(await events(proxy)) == ["READY=1"]

    run(story)


@pytest.mark.parametrize("container", ["c3", "c1", ""])
def test_notification_of_another_container_reaches_no_proxy_of_this(tmp_path: Path, container: str) -> None:
    async def story() -> None:
        async with pod(tmp_path) as made:
            proxy = await made.join(plugs=[])
            assert made.guest.asked("create")[-1]["notify"] is False
            made.guest.tell("notify", container=container, text="READY=1")
            made.guest.tell("exit", process=2, code=0)
            assert notices_of(await events(proxy)) == []
            assert not made.machine.link.ended.done()

    run(story)


def test_proxy_that_does_not_read_misses_notifications(tmp_path: Path) -> None:
    """What waits for it is bounded."""

    async def story() -> None:
        async with pod(tmp_path) as made:
            await made.join(notify=HOST, plugs=[])
            container = made.sandbox.find("c2")
            proxy = container._proxy
            assert proxy is not None
            for _ in range(4000):
                proxy.notify("STATUS=" + "x" * 4000)
            assert proxy._writer.transport.get_write_buffer_size() < 3 * 1024 * 1024

    run(story)
