"""A container's process on the host: its proxy, its terminal, its pid file."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from types import FrameType

from hawse.commands.console import caller_terminal, has_terminal, send_master
from hawse.commands.spawn import FORWARDED, Namespaces, ProxyProcess
from hawse.errors import HostError, UsageError
from hawse.host.notify import Relay, connect_for
from hawse.json_text import Document
from hawse.linux.files import replace_file
from hawse.oci.process.notify_socket import Notify
from hawse.plan.model import ContainerPlan
from hawse.planner.shown_files import shown
from hawse.proxy.view import encode
from hawse.state.store import Store


@dataclass(frozen=True)
class IoOptions:
    """How a process is connected to the command's caller.

    ``console_socket``: the socket that the terminal's master is sent to. ``detach``: the command does not wait for the
    process. ``preserved``: the directions of the descriptors from 3 on.
    """

    console_socket: str | None
    detach: bool
    preserved: tuple[str, ...] = ()


def check_console(io_options: IoOptions, *, terminal: bool, available: Callable[[], bool] = has_terminal) -> None:
    """Check that the process's terminal has another end: the console socket, or the caller's terminal (``available``).

    The combinations are runc's (utils_linux.go, checkTerminal(); tty.go, initHostConsole()). Raises UsageError.
    """
    detach, console_socket = io_options.detach, io_options.console_socket
    if terminal and detach and not console_socket:
        raise UsageError("cannot allocate tty if runc will detach without setting console socket",
                         hint="process.terminal is true: give --console-socket")  # fmt: skip
    if console_socket and not (terminal and detach):
        raise UsageError("cannot use console socket if runc will not detach or allocate tty",
                         hint="process.terminal is false, or the command stays in the foreground")  # fmt: skip
    if terminal and not detach and not available():
        raise UsageError(
            "cannot allocate a terminal: stdin, stdout and stderr are not terminals, and open /dev/tty: no such device "
            "or address",
            hint="run the command in a terminal, or with --detach and --console-socket; or set process.terminal to "
            "false (exec: leave out --tty)",
        )


def start_first(store: Store, key: str, plan: ContainerPlan, io_options: IoOptions) -> ProxyProcess:
    """Start the proxy of a container's first process, in the container's network namespace and with its files."""
    readonly = bool(plan.spec["root"].get("readonly"))
    view = encode(plan.rootfs, shown(plan), readonly=readonly, directory=plan.spec["process"]["cwd"])
    host = _connect_notify(plan.notify)
    relay = Relay(host) if host is not None and plan.notify is not None and relays(plan.notify, io_options) else None
    theirs = relay.theirs if relay is not None else host
    try:
        namespaces = Namespaces(plan.network, view)
        notify = theirs.fileno() if theirs is not None else -1
        process, score = plan.spec["process"], plan.oom_score_adj
        proxy = start_proxy(store, key, process, io_options, namespaces=namespaces, notify=notify, oom_score_adj=score)
    finally:
        os.close(view)
        if theirs is not None:
            theirs.close()
    proxy.relay = relay
    return proxy


def relays(notify: Notify, io_options: IoOptions) -> bool:
    """Whether the command sends notifications itself: in the foreground it is the service's main process."""
    return notify.caller and not io_options.detach


def _connect_notify(notify: Notify | None) -> socket.socket | None:
    """Connect to the host's notification socket. None without a listener: planning has warned about that."""
    try:
        return None if notify is None else connect_for(notify)
    except (OSError, ValueError):
        return None


def start_proxy(
    store: Store,
    key: str,
    process: Document,
    io_options: IoOptions,
    *,
    namespaces: Namespaces | None = None,
    notify: int = -1,
    oom_score_adj: int | None = None,
) -> ProxyProcess:
    """Start a proxy with this process's stdio, or with a new terminal whose master is sent to the console socket."""
    start = partial(
        ProxyProcess,
        store,
        key,
        command=process["args"],
        namespaces=namespaces,
        preserved=io_options.preserved,
        notify=notify,
        oom_score_adj=oom_score_adj,
    )
    terminal = bool(process.get("terminal"))
    if not io_options.console_socket:
        with caller_terminal(needed=terminal) as fd:
            return start(terminal=fd)
    slave = send_master(io_options.console_socket)
    try:
        return start(stdio=(slave, slave, slave), terminal=0)
    finally:
        os.close(slave)


def attend(proxy: ProxyProcess) -> int:
    """Wait until the process has ended, and forward signals to it. Returns its exit code."""

    def forward(number: int, _frame: FrameType | None) -> None:
        proxy.forward(number)

    before = {number: signal.signal(number, forward) for number in FORWARDED}
    try:
        code = proxy.wait()
        if proxy.relay is not None:
            proxy.relay.finish()
        return code
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def write_pid_file(path: str | None, pid: int) -> None:
    """Write the pid file atomically, and without a newline, since engines parse the raw bytes. Call it as the last
    step."""
    if path is None:
        return
    try:
        replace_file(path, str(pid).encode())
    except OSError as error:
        raise HostError(f"cannot write the pid file {path}: {error.strerror}") from None
