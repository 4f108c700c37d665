"""One process of a container from the host's side: its proxy, its terminal, its pid file."""

from __future__ import annotations

import os
import signal
from collections.abc import Mapping
from types import FrameType
from typing import Any

from hawse.container.console import send_master
from hawse.container.launch import FORWARDED, Namespaces, ProxyProcess
from hawse.container.view import encode
from hawse.errors import HostError, UsageError
from hawse.oci.guest import GUEST_SHARE
from hawse.sandbox.plan import ContainerPlan
from hawse.sandbox.state import Store

_GUESTS_OWN = ("proc", "sysfs", "tmpfs", "devpts", "mqueue", "cgroup", "cgroup2", "hugetlbfs")


def check_console(*, terminal: bool, detach: bool, console_socket: str | None) -> None:
    """The combinations that make sense, as runc has them (utils_linux.go, checkTerminal). Raises UsageError."""
    if terminal and detach and not console_socket:
        raise UsageError("cannot allocate tty if runc will detach without setting console socket",
                         hint="process.terminal is true: give --console-socket")  # fmt: skip
    if console_socket and not (terminal and detach):
        raise UsageError("cannot use console socket if runc will not detach or allocate tty",
                         hint="process.terminal is false, or the command stays in the foreground")  # fmt: skip


def check_descriptors(count: int) -> None:
    """--preserve-fds: a descriptor is an object of one kernel, and a container's is another. Raises UsageError."""
    if count:
        raise UsageError(
            f"--preserve-fds {count}: open descriptors cannot be handed into a virtual machine",
            hint="pass a bind mount or a device instead",
        )


def start_first(store: Store, key: str, plan: ContainerPlan, *, console_socket: str | None) -> ProxyProcess:
    """The proxy of a container's first process, in the container's network and among its files."""
    readonly = bool(plan.spec["root"].get("readonly"))
    view = encode(plan.rootfs, shown(plan), readonly=readonly, directory=plan.spec["process"]["cwd"])
    try:
        namespaces = Namespaces(plan.network, view)
        return start_proxy(store, key, plan.spec["process"], console_socket=console_socket, namespaces=namespaces)
    finally:
        os.close(view)


def shown(plan: ContainerPlan) -> list[dict[str, Any]]:
    """The mounts that :mod:`hawse.container.view` is to show, as it takes them. Pure."""
    shares = {f"{GUEST_SHARE}/{plan.id}/{share.name}": share for share in plan.shares}
    mounts = []
    for mount in plan.spec.get("mounts") or ():
        share = shares.get(mount.get("source") or "")
        if share is not None:
            found = {"source": share.source, "is_dir": share.is_dir, "readonly": share.readonly}
        elif mount.get("type") in _GUESTS_OWN:
            found = {"type": mount["type"]}
        else:
            continue
        mounts.append({"destination": mount["destination"], **found})
    return mounts


def start_proxy(
    store: Store,
    key: str,
    process: Mapping[str, Any],
    *,
    console_socket: str | None,
    namespaces: Namespaces | None = None,
) -> ProxyProcess:
    """A proxy with this process's stdio, or with a new terminal whose master went to ``console_socket``."""
    command, terminal = process["args"], bool(process.get("terminal"))
    if not console_socket:
        on_terminal = terminal and os.isatty(0)
        return ProxyProcess(store, key, terminal=on_terminal, command=command, namespaces=namespaces)
    slave = send_master(console_socket)
    try:
        stdio = (slave, slave, slave)
        return ProxyProcess(store, key, stdio=stdio, terminal=True, command=command, namespaces=namespaces)
    finally:
        os.close(slave)


def attend(proxy: ProxyProcess) -> int:
    """Stay in the foreground until the process has ended, passing signals on; its exit code."""

    def forward(number: int, _frame: FrameType | None) -> None:
        proxy.forward(number)

    before = {number: signal.signal(number, forward) for number in FORWARDED}
    try:
        return proxy.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def write_pid_file(path: str | None, pid: int) -> None:
    """The pid without a newline (engines parse the raw bytes), whole or not at all, after everything else."""
    if path is None:
        return
    directory, name = os.path.split(os.path.abspath(path))
    temporary = os.path.join(directory, f".{name}")
    try:
        with open(temporary, "w") as file:
            file.write(str(pid))
        os.rename(temporary, path)
    except OSError as error:
        raise HostError(f"cannot write the pid file {path}: {error.strerror}") from None
