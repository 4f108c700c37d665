"""Delete a container: its monitor releases everything, then its directory is removed. Standard library only."""

from __future__ import annotations

import os
import signal
import time

from hawse.commands.client import MonitorGoneError, call
from hawse.errors import HawseError, NotFoundError, StateError
from hawse.host import leftovers
from hawse.host.cgroup import control_cgroup
from hawse.host.cgroup.sandbox_cgroup import release
from hawse.host.vfio_functions import restore_drivers
from hawse.state.store import CREATED, CREATING, STOPPED, Store

TYPE_CHECKING = False  # typing's import would cost a hot verb a tenth of its time
if TYPE_CHECKING:
    from hawse.state.store import State

_SECONDS = 30.0


def delete(store: Store, *, force: bool) -> list[str]:
    """Delete the container. Returns warnings.

    Unless ``force`` is set, raises :class:`StateError` for a running container and :class:`NotFoundError` for one that
    does not exist.
    """
    try:
        state = store.read()
    except NotFoundError:
        if force:
            return []
        raise
    if state["status"] not in (STOPPED, CREATED) and not force:
        raise StateError(
            f"cannot delete container {store.name} that is not stopped: {state['status']}",
            hint=f"stop it first, or run `hawse delete --force {store.name}`",
        )
    if store.monitor_lives():
        try:
            call(store, "delete", {}, until_end=True)
        except MonitorGoneError:
            if store.has_joined:
                _await_end_of_others(store)
        except NotFoundError:
            pass  # an earlier deletion got as far as this
        except HawseError:
            # If the VM still runs for other containers, keep the record of this container for the next deletion. A
            # stuck sandbox is killed below, whatever its monitor answers: only the monitor's lock decides.
            if store.has_joined and store.monitor_lives():
                raise
        if not store.has_joined:
            _await_monitor(store, state.get("monitorPid", 0))
    warnings = remove(store)
    # A container that is still being created is undone by the command that creates it, including its hooks.
    return [*warnings, *(_run_hooks(state) if state["status"] != CREATING else ())]


def _run_hooks(state: State) -> list[str]:
    """Run the poststop hooks. Returns warnings."""
    hooks = state.get("hooks", {}).get("poststop")
    if not hooks:
        return []
    # Imported here, since the deletion of a container without hooks does not need it.
    from hawse.commands.hooks import hook_state, run_all

    return run_all("poststop", hooks, hook_state(state, STOPPED, 0))


def remove(store: Store) -> list[str]:
    """Clean up after a container whose monitor has ended: cgroups, changes of the host's network interfaces, drivers of
    its VFIO functions, state directory.

    Returns warnings. Raises :class:`HawseError` if something cannot be undone; its record is kept.
    """
    warnings = [*leftovers.end(store.path), *release(store.path)]
    control_cgroup.release(store.path)
    try:
        if os.path.exists(f"{store.path}/network"):
            # Imported here: this file remains only if the monitor was killed.
            from hawse.host import redirects

            redirects.release(store.path)
        store.remove()
    finally:
        restore_drivers(store)
    return warnings


def _await_end_of_others(store: Store) -> None:
    """Wait for the end of a sandbox that is ending, at most 30 s. It is not killed: it may have other containers."""
    deadline = time.monotonic() + _SECONDS
    while store.monitor_lives() and time.monotonic() < deadline:
        time.sleep(0.005)


def _await_monitor(store: Store, pid: int, *, seconds: float = _SECONDS) -> None:
    """Wait until the monitor has exited; kill it after ``seconds``. Its children, including QEMU, die with it."""
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
