"""The monitor's socket: the effect of each call on a sandbox, and the answers to callers."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Awaitable, Callable
from typing import Any, cast

import pytest

from hawse.errors import HawseError, NotFoundError, VmError
from hawse.host.mounts.open_sources import Source
from hawse.link import messages
from hawse.link.frames import EOF, EVENT, Decoder, Frame, encode
from hawse.link.streams import BOTH, IN, STDIO
from hawse.monitor.processes.process_table import LOST
from hawse.monitor.processes.proxy_connections import Proxy
from hawse.monitor.sandbox import Sandbox
from hawse.monitor.service import Service
from hawse.oci.process.inherited import Inherited
from hawse.plan.model import Attachment
from tests.support.patience import patience

ATTACHMENT = {"plugs": [], "nodes": [], "mode": 0o660, "uid": 1, "gid": 2}


class Recorder:
    """A sandbox, its containers and processes in one object: it records calls and returns the values in ``answers``."""

    def __init__(self) -> None:
        self.done: list[tuple[Any, ...]] = []
        self.answers: dict[str, object] = {}
        self.finished = asyncio.Event()
        self.waits = asyncio.Event()
        self.proxies: dict[str, Proxy] = {}
        self.attachments = self.processes = self.usage = self
        self.wants_files = True
        self.room = {"spares": [7]}

    def find(self, name: str) -> Recorder:
        if name != "c1":
            raise NotFoundError(f"container does not exist: {name}")
        return self

    def announce(self, key: str, proxy: Proxy) -> None:
        self.done.append(("announce", key, proxy.pid, proxy.size, proxy.directions))
        self.proxies[key] = proxy

    def fail(self, key: str, reason: str) -> None:
        self.done.append(("fail", key, reason))

    def go_on(self) -> None:
        self.done.append(("go_on",))

    async def add(self, plan: Any, sources: list[Source], *, key: str) -> object:
        self.done.append(("add", plan.id, [os.readlink(f"/proc/self/fd/{source.tree}") for source in sources], key))
        try:
            await self.waits.wait()
        except asyncio.CancelledError:
            self.done.append(("cancelled",))
            raise
        return ["added"]

    async def remove(self, name: str) -> None:
        self.done.append(("remove", name))
        self.finished.set()

    def __getattr__(self, name: str) -> Callable[..., Awaitable[object]]:
        async def act(*words: Any, **more: Any) -> object:
            self.done.append((name, *words, *more.items()))
            answer = self.answers.get(name)
            if isinstance(answer, Exception):
                raise answer
            return answer

        return act


class Caller:
    """A connection to the service."""

    def __init__(self, sandbox: Recorder) -> None:
        self.sandbox = sandbox
        self.connection, theirs = socket.socketpair()
        self.connection.setblocking(False)
        self._theirs = theirs

    async def begin(self) -> None:
        reader, writer = await asyncio.open_connection(sock=self._theirs)
        self.serving = asyncio.create_task(Service(cast(Sandbox, self.sandbox)).connection(reader, writer))
        self.writer = writer

    async def frames(self) -> list[Frame]:
        """All bytes that arrive until the service closes the connection."""
        decoder, frames = Decoder(), []
        async with asyncio.timeout(patience(7)):
            while data := await asyncio.get_running_loop().sock_recv(self.connection, 65536):
                frames += decoder.feed(data)
        return frames

    async def ask(self, method: str, **params: Any) -> object:
        self.connection.send(messages.encode_call(7, method, {"container": "c1"} | params))
        [(_, _, payload)] = await self.frames()
        number, result, error = messages.decode_reply(payload)
        assert number == 7
        if error is not None:
            raise error
        return result


def run(story: Callable[[Caller], Awaitable[None]]) -> None:
    async def whole() -> None:
        caller = Caller(Recorder())
        await caller.begin()
        try:
            async with asyncio.timeout(patience(7)):
                await story(caller)
        finally:
            caller.connection.close()
            caller.serving.cancel()
            await asyncio.wait((caller.serving,))
            caller.writer.close()

    asyncio.run(whole())


def plan() -> dict[str, Any]:
    return {
        "id": "c2", "bundle": "/b", "rootfs": "/b/rootfs", "oci_version": "1.0.2", "annotations": {}, "owner": "",
        "spec": {}, "shares": [], "plugs": [], "nodes": [], "hugepages": [], "binds": [], "network": "",
        "native": {"5": {"mode": 0o600}},
    }  # fmt: skip


@pytest.mark.parametrize(
    ("method", "params", "done", "result"),
    [
        ("room", {}, [], {"spares": [7]}),
        ("wants_files", {}, [], True),
        ("start", {}, [("start", "c1")], "answer"),
        ("await_machine", {}, [("await_machine",)], None),
        ("go_on", {}, [("go_on",)], None),
        ("pause", {}, [("pause",)], None),
        ("resume", {}, [("resume",)], None),
        ("delete", {}, [("remove", "c1")], None),
        (
            "exec",
            {"key": "k", "process": {"args": []}, "caller": {"umask": 7}},
            [("execute", "k", {"args": []}, Inherited(umask=7))],
            "answer",
        ),
        ("exec", {"key": "k", "process": {"args": []}}, [("execute", "k", {"args": []}, Inherited())], "answer"),
        ("attach", ATTACHMENT, [("attach", "c1", Attachment(plugs=[], nodes=[], mode=0o660, uid=1, gid=2))], "answer"),
        ("kill", {"signal": 9, "all": True}, [("kill", 9, ("everyone", True))], None),
        ("update", {"resources": {}}, [("update", "c1", {})], "answer"),
        ("detach", {"group": 5, "force": False}, [("detach", 5, ("force", False))], None),
    ],
)
def test_each_call_has_its_effect(method: str, params: dict[str, Any], done: list[Any], result: object) -> None:
    async def story(caller: Caller) -> None:
        caller.sandbox.answers |= dict.fromkeys(("start", "execute", "attach", "update"), "answer")
        asking = asyncio.create_task(caller.ask(method, **params))
        if method == "delete":  # the service closes the connection when the monitor ends, and not earlier
            while not caller.sandbox.finished.is_set():
                await asyncio.sleep(0)
            await caller.serving
            assert not caller.writer.is_closing()
            caller.writer.close()
        assert await asking == result
        assert caller.sandbox.done == done

    run(story)


@pytest.mark.parametrize("method", ["pids", "listing", "statistics", "await_oom"])
def test_queries_about_usage_are_forwarded(method: str) -> None:
    async def story(caller: Caller) -> None:
        caller.sandbox.answers["answer"] = {"pids": [1]}
        assert await caller.ask(method, more=1) == {"pids": [1]}
        assert caller.sandbox.done == [("answer", method, {"container": "c1", "more": 1})]

    run(story)


@pytest.mark.parametrize(
    ("method", "params", "kind", "message"),
    [
        ("nothing", {}, VmError, "the monitor has no method nothing"),
        ("pause", {"container": "c9"}, NotFoundError, "container does not exist: c9"),
        ("kill", {"signal": "x", "all": True}, VmError, "monitor: kill: ValueError: invalid literal"),
        ("kill", {"all": True}, VmError, "monitor: kill: KeyError: 'signal'"),
        ("kill", {"signal": [], "all": True}, VmError, "monitor: kill: TypeError: "),
        ("attach", ATTACHMENT | {"mode": "x"}, VmError, "monitor: attach: ValidationError: "),
        ("resume", {}, VmError, "monitor: resume: ZeroDivisionError: a bug"),
        (
            "create",
            {"plan": plan(), "sources": [{"tree": 10**6, "origin": {}}], "key": "k"},
            VmError,
            "the monitor cannot take the shared directories of c2: Bad",
        ),
    ],
)
def test_failed_call_is_answered_with_the_reason(
    method: str, params: dict[str, Any], kind: type[HawseError], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    async def story(caller: Caller) -> None:
        caller.sandbox.answers["resume"] = ZeroDivisionError("a bug")
        with pytest.raises(kind) as caught:
            await caller.ask(method, **params)
        assert type(caught.value) is kind
        assert caught.value.message.startswith(message)

    run(story)
    unexpected = "Error: " in message
    assert ("Traceback" in capsys.readouterr().err) is unexpected, "monitor.log shows where the call failed"


@pytest.mark.parametrize(
    "sent", [b"", encode(0, EVENT, b"{}"), b"\xff" * 9, encode(5, EOF), messages.encode_call(1, "pause", {})[:-1]]
)
def test_connection_that_does_not_begin_with_a_call_is_closed(sent: bytes) -> None:
    async def story(caller: Caller) -> None:
        caller.connection.send(sent)
        caller.connection.shutdown(socket.SHUT_WR)
        assert await caller.frames() == []
        assert caller.sandbox.done == []

    run(story)


def test_deletion_of_a_joined_container_closes_the_connection() -> None:
    async def story(caller: Caller) -> None:
        async def remove(name: str) -> None:
            caller.sandbox.done.append(("remove", name))

        caller.sandbox.remove = remove  # type: ignore[method-assign]
        assert await caller.ask("delete") is None
        assert caller.sandbox.done == [("remove", "c1")]

    run(story)


def test_connection_is_closed_if_the_sandbox_ends_during_an_answer() -> None:
    async def story(caller: Caller) -> None:
        caller.sandbox.finished.set()
        assert await caller.ask("pause") is None

    run(story)


def test_creation_takes_the_callers_descriptors_and_closes_them() -> None:
    async def story(caller: Caller) -> None:
        tree = os.open("/usr", os.O_PATH)
        before = len(os.listdir("/proc/self/fd"))
        caller.sandbox.waits.set()
        assert await caller.ask("create", plan=plan(), sources=[{"tree": tree, "origin": {}}], key="k") == ["added"]
        assert caller.sandbox.done == [("add", "c2", ["/usr"], "k")]
        assert len(os.listdir("/proc/self/fd")) <= before
        os.close(tree)

    run(story)


def test_creation_is_cancelled_when_its_caller_disconnects() -> None:
    async def story(caller: Caller) -> None:
        call = {"container": "c1", "plan": plan(), "sources": [], "key": "k"}
        caller.connection.send(messages.encode_call(1, "create", call))
        while not caller.sandbox.done:
            await asyncio.sleep(0)
        caller.connection.shutdown(socket.SHUT_RDWR)
        await caller.serving
        assert [name for name, *_ in caller.sandbox.done] == ["add", "cancelled"]

    run(story)


@pytest.mark.parametrize(
    ("params", "size", "directions"),
    [
        ({"descriptors": []}, None, STDIO),
        ({"descriptors": [IN, BOTH], "rows": 24, "columns": 80}, (24, 80), (*STDIO, IN, BOTH)),
    ],
)
def test_connection_of_a_proxy_stays_open(
    params: dict[str, Any], size: tuple[int, int] | None, directions: tuple[str, ...]
) -> None:
    async def story(caller: Caller) -> None:
        caller.connection.send(messages.encode_call(1, "proxy", params | {"key": "c1/init"}))
        await caller.serving
        assert caller.sandbox.done == [("announce", "c1/init", os.getpid(), size, directions)]
        caller.sandbox.proxies["c1/init"].exit(3)
        assert [messages.decode_event(payload) for _, _, payload in await caller.frames()] == [("exit", {"code": 3})]

    run(story)


def test_proxy_without_its_files_is_refused() -> None:
    async def story(caller: Caller) -> None:
        call = {"key": "c1/init", "descriptors": [], "failure": "No such file"}
        caller.connection.send(messages.encode_call(1, "proxy", call))
        assert [messages.decode_event(payload) for _, _, payload in await caller.frames()] == [("exit", {"code": LOST})]
        assert caller.sandbox.done == [("fail", "c1/init", "No such file")]

    run(story)
