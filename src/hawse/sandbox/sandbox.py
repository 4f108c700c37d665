"""One running sandbox: its container, the container's processes, and what engines may ask of them."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Coroutine
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

from hawse.errors import HawseError, StateError, VmError
from hawse.oci.addresses import translate
from hawse.sandbox import timeline
from hawse.sandbox.attachments import Attachments
from hawse.sandbox.guest import GuestLink, Route
from hawse.sandbox.plan import Attachment, SandboxPlan
from hawse.sandbox.proxies import Proxy
from hawse.sandbox.state import CREATED, CREATING, RUNNING, STOPPED, Store, start_time
from hawse.sandbox.steps import GUEST, Steps

INIT = 1
_PROXY_SECONDS = 20.0
_LEAST_CALL_SECONDS = 60.0
_KILLED, _LOST = 128 + signal.SIGKILL, 255


class Sandbox:
    """State and operations. Everything here runs in the monitor's one event loop."""

    def __init__(self, plan: SandboxPlan, store: Store, steps: Steps) -> None:
        self.plan = plan
        self.link: GuestLink | None = None
        self.attachments = Attachments(plan)
        self.finished = asyncio.Event()
        self._store = store
        self._steps = steps
        self._proxies: dict[str, asyncio.Future[Proxy]] = {}
        self._running: dict[int, Proxy] = {}
        self._newest = INIT
        # As patient as with devices: without KVM crun is as slow as everything else in the guest.
        self._seconds = max(_LEAST_CALL_SECONDS, plan.machine.device_seconds)
        self._tasks: set[asyncio.Task[None]] = set()
        self._ready = asyncio.Event()
        self._state = {
            "ociVersion": plan.oci_version,
            "id": plan.id,
            "pid": 0,
            "status": CREATING,
            "bundle": plan.bundle,
            "rootfs": plan.rootfs,
            "created": datetime.now(UTC).isoformat().replace("+00:00", "Z"),
            "annotations": plan.annotations,
            "owner": plan.owner,
            "pidStart": 0,
            "monitorPid": os.getpid(),
        }
        self._write()

    async def create(self, link: GuestLink) -> list[tuple[str, str]]:
        """Make the container in the guest, with the proxy that has announced itself as its first process."""
        self.link = link
        link.on_exit = self._exited
        for kib, count in self.plan.hugepages:
            await link.call("reserve_hugepages", {"kib": kib, "count": count}, seconds=self._seconds)
        proxy = await self._await_proxy("init")
        spec = self.plan.spec | {"process": _with_size(self.plan.spec["process"], proxy.size)}
        seen = self.attachments.seen()
        call = {"container": self.plan.id, "spec": spec, "nodes": self.attachments.guest_nodes(), "devices": seen}
        lines = await self._launch(INIT, proxy, "create", call)
        self._state["vfio"] = seen
        self._state |= {"pid": proxy.pid, "pidStart": start_time(proxy.pid), "status": CREATED}
        self._write()
        self._ready.set()
        return _log_lines(lines)

    async def start(self) -> None:
        """runc start. Raises :class:`StateError` unless the container is created."""
        if self._state["status"] == RUNNING:
            raise StateError(f"cannot start an already running container: {self.plan.id}")
        if self._state["status"] != CREATED:
            raise StateError(f"cannot start a container that has {self._state['status']}: {self.plan.id}")
        # Before the call: a program that ends at once is reported before its start is answered.
        self._set_status(RUNNING)
        try:
            with self._steps.span(GUEST, "container started"):
                await self._call("start", {"container": self.plan.id})
        except HawseError:
            if self._state["status"] == RUNNING:
                self._set_status(CREATED)
            raise
        if self.plan.timeline:
            await self._draw_timeline()

    async def kill(self, number: int, *, everyone: bool) -> None:
        """runc kill. Raises :class:`StateError` with runc's "container not running"."""
        if self._state["status"] not in (CREATED, RUNNING):
            raise StateError(f"container not running: {self.plan.id}")
        await self._signal(INIT, number, everyone=everyone)

    async def execute(self, key: str, process: dict[str, Any]) -> int:
        """Run one more process for the proxy that announces itself with ``key``; the proxy's pid."""
        if self._state["status"] != RUNNING:
            raise StateError(f"container not running: {self.plan.id}")
        process = process | {"env": translate(process.get("env") or (), self.attachments.addresses)}
        proxy = await self._await_proxy(key)
        # Numbered where nothing is awaited before it is sent: the agent takes them in ascending order only.
        self._newest += 1
        number = self._newest
        try:
            call = {"container": self.plan.id, "process": number, "spec": _with_size(process, proxy.size)}
            await self._launch(number, proxy, "exec", call)
        except HawseError:
            proxy.exit(_LOST)
            raise
        return proxy.pid

    async def attach(self, wanted: Attachment) -> list[dict[str, Any]]:
        """Give the container one group more; what there is to say of its functions."""
        await self._ready.wait()
        self._check_lives()
        entries = await self.attachments.attach(wanted)
        self._show_devices()
        return entries

    async def detach(self, group: int, *, force: bool) -> None:
        """Take a group from the container."""
        await self._ready.wait()
        self._check_lives()
        try:
            await self.attachments.detach(group, force=force)
        finally:
            self._show_devices()

    def announce(self, key: str, proxy: Proxy) -> None:
        """A proxy has connected and waits for its process, which was or will be asked for with the same key."""
        expected = self._expect(key)
        if expected.done():
            raise StateError(f"a second proxy for the process {key[:40]}")
        expected.set_result(proxy)

    def lose(self, reason: HawseError) -> None:
        """The virtual machine ended before its container did; the state keeps the reason for who asks."""
        if self._state["status"] != STOPPED:
            self._state["failure"] = reason.to_wire()

    def end(self) -> None:
        """The virtual machine is gone: nothing runs any more."""
        if self._state["status"] != STOPPED:
            self._set_status(STOPPED)
        # With the first process the kernel kills the others of its PID namespace; a lost machine is another matter.
        self._ready.set()
        for proxy in self._running.values():
            proxy.exit(_LOST if INIT in self._running else _KILLED)
        for expected in self._proxies.values():
            if expected.done() and not expected.cancelled():
                expected.result().exit(_LOST)
        self.finished.set()

    def _check_lives(self) -> None:
        if self._state["status"] not in (CREATED, RUNNING):
            raise StateError(f"container not running: {self.plan.id} is {self._state['status']}")

    def _show_devices(self) -> None:
        if self._state["status"] != STOPPED:
            self._state["vfio"] = self.attachments.seen()
            self._write()

    async def _launch(self, number: int, proxy: Proxy, method: str, call: dict[str, Any]) -> object:
        assert self.link is not None
        route = self.link.route(number, proxy)
        self._running[number] = proxy
        serving = self._begin(self._serve(number, proxy, route))
        try:
            result = await self._call(method, call)
        except HawseError:
            serving.cancel()
            self._running.pop(number, None)
            self.link.forget(number)
            raise
        if proxy.size is not None:
            await self._resize(number, *proxy.size)
        return result

    async def _serve(self, number: int, proxy: Proxy, route: Route) -> None:
        def resize(rows: int, columns: int) -> None:
            proxy.size = (rows, columns)
            self._begin(self._resize(number, rows, columns))

        await proxy.serve(
            route,
            on_signal=lambda n: self._begin(self._signal(number, n, everyone=False)),
            on_resize=resize,
            # Whoever kills the proxy means the process: engines know no other pid.
            on_loss=lambda: self._begin(self._signal(number, signal.SIGKILL, everyone=False)),
        )

    def _begin(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Do something beside; what fails of it, a signal to a process that has ended, say, has nobody to tell."""
        task = asyncio.create_task(work)
        self._tasks.add(task)

        def ended(done: asyncio.Task[None]) -> None:
            self._tasks.discard(done)
            if not done.cancelled():
                done.exception()

        task.add_done_callback(ended)
        return task

    def _exited(self, number: int, code: int) -> None:
        proxy = self._running.pop(number, None)
        if proxy is None or self.link is None:
            return
        self.link.forget(number)
        if number == INIT:
            self._set_status(STOPPED)
            self.finished.set()
        proxy.exit(code)

    async def _signal(self, number: int, signal_number: int, *, everyone: bool) -> None:
        call = {"container": self.plan.id, "process": number, "signal": signal_number, "everyone": everyone}
        await self._call("signal", call)

    async def _resize(self, number: int, rows: int, columns: int) -> None:
        call = {"container": self.plan.id, "process": number, "rows": rows, "columns": columns}
        with suppress(HawseError):  # the process may have ended, or not exist yet
            await self._call("resize", call)

    async def _call(self, method: str, params: dict[str, Any]) -> object:
        if self.link is None:
            raise StateError(f"container {self.plan.id} is still being created")
        return await self.link.call(method, params, seconds=self._seconds)

    async def _draw_timeline(self) -> None:
        """The start is complete: the guest's steps are added to ours, and the trace is written."""
        assert self.link is not None
        with suppress(HawseError):
            taken = await self._call("trace", {})
            self._steps.add_guest(taken, offset=self.link.clock_offset)
        timeline.write(self.plan.timeline, self._steps.done, name=self.plan.id)

    def _expect(self, key: str) -> asyncio.Future[Proxy]:
        return self._proxies.setdefault(key, asyncio.get_running_loop().create_future())

    async def _await_proxy(self, key: str) -> Proxy:
        try:
            async with asyncio.timeout(_PROXY_SECONDS):
                return await asyncio.shield(self._expect(key))
        except TimeoutError:
            raise VmError(f"the proxy process did not connect within {_PROXY_SECONDS:g} s") from None
        finally:
            self._proxies.pop(key, None)

    def _set_status(self, status: str) -> None:
        self._state["status"] = status
        self._write()

    def _write(self) -> None:
        self._store.write(self._state)


def _log_lines(lines: object) -> list[tuple[str, str]]:
    """What the guest would like logged, as far as it is of the form [level, text]; bounded."""
    return [
        (line[0], "".join(c for c in line[1][:500] if c.isprintable()))
        for line in (lines[:100] if isinstance(lines, list) else ())
        if isinstance(line, list) and len(line) == 2 and line[0] in ("warning", "debug") and isinstance(line[1], str)
    ]


def _with_size(process: dict[str, Any], size: tuple[int, int] | None) -> dict[str, Any]:
    """The process with the size of the engine's terminal: a later resize may come after its first question for it."""
    if size is None or not process.get("terminal"):
        return process
    return process | {"consoleSize": {"height": size[0], "width": size[1]}}
