"""Start a created container, and run its poststart hooks. Standard library only: `start` is a hot verb."""

from __future__ import annotations

import signal
from contextlib import suppress

from hawse.commands.client import begin, call
from hawse.errors import HostError, LinkError, StateError, VmError
from hawse.link import messages
from hawse.link.frames import EVENT
from hawse.state.store import STOPPED, Store

TYPE_CHECKING = False  # typing's import would cost a hot verb a tenth of its time
if TYPE_CHECKING:
    from collections.abc import Iterator

    from hawse.link.frames import Frame
    from hawse.state.store import State


def start(store: Store, *, notify: str = "") -> list[str]:
    """Start the container. Returns warnings. Raises :class:`StateError`, and :class:`HostError` if a hook fails.

    ``notify``: the caller's NOTIFY_SOCKET. If the container was created with one, too, wait until it is ready or has
    ended, and notify the service manager (runc start.go).
    """
    state = store.read()
    if state["status"] == STOPPED:
        raise StateError(
            f"cannot start a container that has stopped: {store.name}", hint="delete it and create it again"
        )
    if notify and state.get("notify"):
        with begin(store, "start", {"notify": True}) as (notes, frames):
            warnings = _run_hooks(store, state, notes)
            _report(notify, frames, state["pid"])
        return warnings
    return _run_hooks(store, state, call(store, "start", {}))


def _run_hooks(store: Store, state: State, notes: object) -> list[str]:
    """Run the poststart hooks. Returns the warnings among ``notes``, the monitor's answer.

    If a hook fails, the container is killed (runtime.md, Lifecycle, since version 1.2.1) and :class:`HostError` raised.
    """
    warnings = [str(text) for level, text in notes if level == "warning"] if isinstance(notes, list) else []
    hooks = state.get("hooks", {}).get("poststart")
    if not hooks:
        return warnings
    from hawse.commands.hooks import hook_state, run_in_order

    try:
        run_in_order("poststart", hooks, hook_state(state, "running", state["pid"]))
    except HostError:
        with suppress(StateError, VmError):  # the container has ended already
            call(store, "kill", {"signal": signal.SIGKILL, "all": False})
        raise
    return warnings


def _report(address: str, frames: Iterator[Frame], pid: int) -> None:
    """Wait until the container is ready, and report it to the service manager. Raises HostError."""
    from hawse.host.notify import report_ready

    try:
        for _, kind, payload in frames:
            notice = messages.decode_event(payload)[1].get("notice") if kind == EVENT else None
            if notice:
                report_ready(address, str(notice), pid=pid)
            return
    except LinkError:
        return  # the sandbox has ended
