"""The real monitor as a process, and the command line's end; tests/support/fake_machine.py simulates its programs."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import socket
import sys
import threading
import traceback
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from hawse.commands import client
from hawse.errors import from_wire
from hawse.host import network_namespace
from hawse.link import messages
from hawse.link.frames import EVENT, Decoder
from hawse.monitor import main as monitor
from hawse.monitor.sandbox import INIT_KEY
from hawse.plan.model import SandboxPlan
from hawse.state import sockets
from hawse.state.store import Store, start_time
from tests.support.fake_machine import SECONDS, FakeHost
from tests.support.patience import patience


class Monitor:
    """A monitor that waits for its plan. It is forked to avoid loading it; create it before any thread."""

    def __init__(self, directory: Path) -> None:
        self.store = Store(str(directory / "root"), "c1")
        self.store.make()
        self.connection, theirs = socket.socketpair()
        with sockets.bind(self.store.path, "monitor.sock") as listener, theirs:
            self.pid = os.fork()
            if self.pid == 0:
                self._run(listener, theirs)
        self._code: int | None = None
        self._open = [self.connection]
        #: Its peak memory when it was forked, which includes pages of the test's process.
        self.inherited = self.peak()

    def peak(self) -> int:
        """Its peak memory in KiB (proc(5), VmHWM)."""
        match = re.search(r"VmHWM:\s*(\d+) kB", Path(f"/proc/{self.pid}/status").read_text())
        assert match
        return int(match[1])

    def send(self, plan: SandboxPlan) -> None:
        """Send the plan, so that it creates the sandbox."""
        data = plan.encode()
        self.connection.sendall(len(data).to_bytes(4, "big") + data)

    async def report(self) -> list[tuple[str, str]]:
        """Wait until the container is created; returns the messages to log. Raises the error of the monitor."""
        self.connection.setblocking(False)
        data = b""
        while not data.endswith(b"\n"):
            piece = await asyncio.wait_for(asyncio.get_running_loop().sock_recv(self.connection, 65536), patience(7))
            assert piece, f"the monitor ended without a report:\n{self.log()}"
            data += piece
        message = json.loads(data)
        if "error" in message:
            raise from_wire(message["error"])
        return [(level, text) for level, text in message["created"]]

    async def ask(self, method: str, *, until_end: bool = False, **params: Any) -> object:
        """The monitor's answer to a call of the command line."""
        return await asyncio.to_thread(client.call, self.store, method, params, until_end=until_end)

    async def announce(self, key: str = f"c1/{INIT_KEY}") -> socket.socket:
        """Announce a proxy, by default that of the first process; returns its connection."""
        proxy = sockets.connect(self.store.path, "monitor.sock")
        self._open.append(proxy)
        proxy.sendall(messages.encode_call(1, "proxy", {"key": key, "descriptors": []}))
        proxy.setblocking(False)
        return proxy

    async def ended(self) -> int:
        """Wait for the monitor's end; returns its exit code."""
        if self._code is None:
            _, status = await asyncio.to_thread(os.waitpid, self.pid, 0)
            self._code = os.waitstatus_to_exitcode(status)
        return self._code

    def kill(self) -> None:
        """Kill it, if it still runs."""
        if self._code is None:
            with suppress(ProcessLookupError, ChildProcessError):  # a thread has waited for it
                os.kill(self.pid, signal.SIGKILL)
                os.waitpid(self.pid, 0)
        for end in self._open:
            end.close()

    def log(self) -> str:
        """Its stderr."""
        return Path(f"{self.store.path}/monitor.log").read_text()

    def steps(self) -> list[tuple[str, str]]:
        """Lane and name of each recorded step."""
        with open(f"{self.store.path}/steps.json") as file:
            return [(lane, name) for lane, name, _, _ in json.load(file)]

    def _run(self, listener: socket.socket, theirs: socket.socket) -> None:
        code = 1
        try:
            self.connection.close()
            os.setsid()
            log = os.open(f"{self.store.path}/monitor.log", os.O_WRONLY | os.O_CREAT, 0o600)
            for number in (1, 2):
                os.dup2(log, number)
            sys.stdout = sys.stderr = open(log, "w", buffering=1)  # noqa: SIM115
            sys.argv = ["", self.store.root, self.store.name, str(listener.detach()), str(theirs.detach())]
            monitor.main()
            code = 0
        except SystemExit as exit:
            print(exit)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)


def tell(directory: Path, story: Callable[[Monitor, FakeHost], Awaitable[None]]) -> None:
    """Run a test's story."""
    process = Monitor(directory)

    async def whole() -> None:
        async with FakeHost(str(directory)) as host:
            try:
                async with asyncio.timeout(SECONDS):
                    await story(process, host)
            finally:
                process.kill()  # here, since threads that wait for the monitor would delay the end of the loop

    asyncio.run(whole())


@contextmanager
def new_network() -> Iterator[str]:
    """Create an empty network namespace; returns its path."""
    descriptors: list[int] = []

    def make() -> None:
        network_namespace.leave()
        descriptors.append(os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC))

    thread = threading.Thread(target=make)
    thread.start()
    thread.join()
    yield f"/proc/{os.getpid()}/fd/{descriptors[0]}"
    os.close(descriptors[0])


def runs(pid: int) -> bool:
    """Whether a process exists and is not a zombie."""
    return start_time(pid) != 0


async def heard(proxy: socket.socket) -> list[tuple[str, dict[str, Any]]]:
    """The events that a proxy received before its connection ended."""
    decoder, events = Decoder(), []
    async with asyncio.timeout(patience(7)):
        while data := await asyncio.get_running_loop().sock_recv(proxy, 65536):
            events += [messages.decode_event(payload) for _, kind, payload in decoder.feed(data) if kind == EVENT]
    return events
