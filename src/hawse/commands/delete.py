"""Deleting a container: its monitor gives everything back, then its directory goes. Standard library only."""

from __future__ import annotations

import os
import signal
import time

from hawse.commands.client import MonitorGoneError, call
from hawse.errors import HawseError, NotFoundError, StateError
from hawse.host import leftovers
from hawse.host.cgroup import control
from hawse.host.cgroup.sandbox_cgroup import release
from hawse.host.vfio_functions import give_back
from hawse.state.store import CREATED, CREATING, STOPPED, Store

TYPE_CHECKING = False  # typing's import would cost a hot verb a tenth of its time
if TYPE_CHECKING:
    from hawse.state.store import State

_SECONDS = 30.0


def delete(store: Store, *, force: bool) -> list[str]:
    """Delete it; what to warn of.

    Raises :class:`StateError` for a running container and :class:`NotFoundError` for none, unless ``force``."""
    try:
        state = store.read()
    except NotFoundError:
        if force:
            return []
        raise
    if state["status"] not in (STOPPED, CREATED) and not force:
        raise StateError(
            f"cannot delete container {store.name} that is not stopped: {state['status']}",
            hint=f"end it first, or `hawse delete --force {store.name}`",
        )
    if store.monitor_lives():
        try:
            call(store, "delete", {}, until_end=True)
        except MonitorGoneError:
            if store.has_joined:
                _await_end_of_others(store)
        except NotFoundError:
            pass  # a deletion before this one came as far
        except HawseError:
            # What stays of it in a machine that runs on stays on record, for the next deletion. A sandbox that is stuck
            # is ended below: what counts is the lock.
            if store.has_joined and store.monitor_lives():
                raise
        if not store.has_joined:
            _await_monitor(store, state.get("monitorPid", 0))
    left = remove(store)
    # One that is still being created is its creator's to undo, hooks and all.
    return [*left, *(_run_hooks(state) if state["status"] != CREATING else ())]


def _run_hooks(state: State) -> list[str]:
    """Those after everything; what to warn of."""
    hooks = state.get("hooks", {}).get("poststop")
    if not hooks:
        return []
    # Here, since a delete does without what it takes.
    from hawse.commands.hooks import run_all
    from hawse.commands.hooks import state as about

    return run_all("poststop", hooks, about(state, STOPPED, 0))


def remove(store: Store) -> list[str]:
    """Remove what is left of a container without a monitor: cgroups, on interfaces and functions of the host, on disk.

    What to warn of. Raises :class:`HawseError` for what cannot be undone; it stays on record.
    """
    left = [*leftovers.end(store.path), *release(store.path)]
    control.release(store.path)
    try:
        if os.path.exists(f"{store.path}/network"):
            # Here, since a monitor that could end by itself has left none.
            from hawse.host import redirects

            redirects.release(store.path)
        store.remove()
    finally:
        give_back(store)
    return left


def _await_end_of_others(store: Store) -> None:
    """Wait for the end of a sandbox that is ending, for a while: it is its other containers' too."""
    deadline = time.monotonic() + _SECONDS
    while store.monitor_lives() and time.monotonic() < deadline:
        time.sleep(0.005)


def _await_monitor(store: Store, pid: int, *, seconds: float = _SECONDS) -> None:
    """Wait for the monitor's end; kill it after ``seconds``. Its children, QEMU among them, die with it."""
    monitor = store.open_monitor(pid)
    try:
        deadline = time.monotonic() + seconds
        while store.monitor_lives():
            if time.monotonic() > deadline:
                if monitor < 0:
                    raise StateError(f"container {store.name}: its monitor does not end, and its pid is unknown")
                signal.pidfd_send_signal(monitor, signal.SIGKILL)
                deadline += _SECONDS
            time.sleep(0.005)
    finally:
        if monitor >= 0:
            os.close(monitor)
