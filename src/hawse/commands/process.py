"""One process of a container from the host's side: its proxy, its terminal, its pid file."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from types import FrameType
from typing import Any

from hawse.commands.console import caller_terminal, has_terminal, send_master
from hawse.commands.spawn import FORWARDED, Namespaces, ProxyProcess
from hawse.errors import HostError, UsageError
from hawse.host.notify import Relay, connect_for
from hawse.linux.files import replace_file
from hawse.oci.process.notify_socket import Notify
from hawse.plan.model import ContainerPlan
from hawse.planner.view import shown
from hawse.proxy.view import encode
from hawse.state.store import Store


@dataclass(frozen=True)
class Handed:
    """What a command's caller hands on to the process: where its terminal goes, and the directions of the descriptors
    that follow its stdio. ``detach``: the command does not stay for the process."""

    console_socket: str | None
    detach: bool
    preserved: tuple[str, ...] = ()


def check_console(handed: Handed, *, terminal: bool, available: Callable[[], bool] = has_terminal) -> None:
    """Check that the process's terminal has another end: the console socket, or the caller's terminal (``available``).

    The combinations are runc's (utils_linux.go, checkTerminal(); tty.go, initHostConsole()). Raises UsageError.
    """
    detach, console_socket = handed.detach, handed.console_socket
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


def start_first(store: Store, key: str, plan: ContainerPlan, handed: Handed) -> ProxyProcess:
    """The proxy of a container's first process, in the container's network and among its files."""
    readonly = bool(plan.spec["root"].get("readonly"))
    view = encode(plan.rootfs, shown(plan), readonly=readonly, directory=plan.spec["process"]["cwd"])
    host = _notified(plan.notify)
    relay = Relay(host) if host is not None and plan.notify is not None and relays(plan.notify, handed) else None
    theirs = relay.theirs if relay is not None else host
    try:
        namespaces = Namespaces(plan.network, view)
        notify = theirs.fileno() if theirs is not None else -1
        process, score = plan.spec["process"], plan.oom_score_adj
        proxy = start_proxy(store, key, process, handed, namespaces=namespaces, notify=notify, oom_score_adj=score)
    finally:
        os.close(view)
        if theirs is not None:
            theirs.close()
    proxy.relay = relay
    return proxy


def relays(notify: Notify, handed: Handed) -> bool:
    """Whether the command sends notifications itself: in the foreground it is the service's main process."""
    return notify.caller and not handed.detach


def _notified(notify: Notify | None) -> socket.socket | None:
    """A connection to the host's socket; None if nobody listens, which was reported when the plan was made."""
    try:
        return None if notify is None else connect_for(notify)
    except (OSError, ValueError):
        return None


def start_proxy(
    store: Store,
    key: str,
    process: Mapping[str, Any],
    handed: Handed,
    *,
    namespaces: Namespaces | None = None,
    notify: int = -1,
    oom_score_adj: int | None = None,
) -> ProxyProcess:
    """A proxy with this process's stdio, or with a new terminal whose master went to the console socket."""
    start = partial(
        ProxyProcess,
        store,
        key,
        command=process["args"],
        namespaces=namespaces,
        preserved=handed.preserved,
        notify=notify,
        oom_score_adj=oom_score_adj,
    )
    terminal = bool(process.get("terminal"))
    if not handed.console_socket:
        with caller_terminal(wanted=terminal) as fd:
            return start(terminal=fd)
    slave = send_master(handed.console_socket)
    try:
        return start(stdio=(slave, slave, slave), terminal=0)
    finally:
        os.close(slave)


def attend(proxy: ProxyProcess) -> int:
    """Stay in the foreground until the process has ended, passing signals on; its exit code."""

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
    """The pid without a newline (engines parse the raw bytes), whole or not at all, after everything else."""
    if path is None:
        return
    try:
        replace_file(path, str(pid).encode())
    except OSError as error:
        raise HostError(f"cannot write the pid file {path}: {error.strerror}") from None
