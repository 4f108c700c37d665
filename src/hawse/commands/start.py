"""Starting a created container, and the hooks after it. Standard library only: `start` is a hot verb."""

from __future__ import annotations

import signal
from contextlib import suppress

from hawse.commands.client import begin, call
from hawse.errors import HostError, LinkError, StateError, VmError
from hawse.link import control
from hawse.link.frames import EVENT
from hawse.state.store import STOPPED, Store

TYPE_CHECKING = False  # typing's import would cost a hot verb a tenth of its time
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    from hawse.link.frames import Frame


def start(store: Store, *, notify: str = "") -> list[str]:
    """Raises :class:`StateError`, and :class:`HostError` for a hook; what to warn of.

    ``notify`` is the caller's NOTIFY_SOCKET. If the container was created with one, wait until it is ready or has
    ended, and notify the service manager (runc start.go).
    """
    state = store.read()
    if state["status"] == STOPPED:
        raise StateError(
            f"cannot start a container that has stopped: {store.name}", hint="delete it and create it anew"
        )
    if notify and state.get("notify"):
        with begin(store, "start", {"notify": True}) as (notes, frames):
            warnings = _after(store, state, notes)
            _report(notify, frames, state["pid"])
        return warnings
    return _after(store, state, call(store, "start", {}))


def _after(store: Store, state: dict[str, Any], notes: object) -> list[str]:
    """Run the hooks after the start; returns warnings. Where one fails, the container is killed (runtime.md, Lifecycle,
    since version 1.2.1). Raises :class:`HostError` then."""
    warnings = [str(text) for level, text in notes if level == "warning"] if isinstance(notes, list) else []
    hooks = state.get("hooks", {}).get("poststart")
    if not hooks:
        return warnings
    from hawse.commands.hooks import run_in_turn
    from hawse.commands.hooks import state as about

    try:
        run_in_turn("poststart", hooks, about(state, "running", state["pid"]))
    except HostError:
        with suppress(StateError, VmError):  # it has ended already
            call(store, "kill", {"signal": signal.SIGKILL, "all": False})
        raise
    return warnings


def _report(address: str, frames: Iterator[Frame], pid: int) -> None:
    """Wait until the container is ready, and report it. Raises HostError."""
    from hawse.host.notify import report_ready

    try:
        for _, kind, payload in frames:
            notice = control.decode_event(payload)[1].get("notice") if kind == EVENT else None
            if notice:
                report_ready(address, str(notice), pid=pid)
            return
    except LinkError:
        return  # the sandbox has ended
