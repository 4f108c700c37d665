"""Create a container: claim the id, plan, let the monitor create it; undo everything on failure."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING

from hawse.commands.client import call
from hawse.commands.delete import remove
from hawse.commands.host_process import IoOptions, check_console, start_first
from hawse.commands.spawn import MonitorProcess, ProxyProcess
from hawse.errors import HawseError, StateError, VmError
from hawse.state.store import Store

if TYPE_CHECKING:
    from hawse.commands.hooks import CreationHooks
    from hawse.plan.model import SandboxPlan


class Created:
    """A created container that was not started yet; ``monitor`` is the process that was started for it, if any."""

    def __init__(
        self,
        store: Store,
        monitor: MonitorProcess | None,
        proxy: ProxyProcess,
        *,
        notes: list[tuple[str, str]],
        terminal: bool,
    ) -> None:
        self.store = store
        self.terminal = terminal
        self.proxy = proxy
        self.notes = notes
        self._monitor = monitor

    def detach(self) -> None:
        """Leave the container's monitor running when this process ends."""
        if self._monitor is not None:
            self._monitor.detach()


def create(store: Store, make_plan: Callable[[], SandboxPlan], io_options: IoOptions) -> Created:
    """Create the container. After a failure nothing remains of it, and the id is free again.

    The monitor is started first: it gets ready while this process plans.
    """
    store.make()
    hooks: CreationHooks | None = None
    try:
        monitor = MonitorProcess(store)
        proxy: ProxyProcess | None = None
        try:
            plan = make_plan()
            first = plan.container
            terminal = bool(first.spec["process"].get("terminal"))
            check_console(io_options, terminal=terminal)
            monitor.send(plan.encode())
            proxy = start_first(store, "init", first, io_options)
            if first.hooks:
                # Imported here, since containers without hooks do not need it. Planning has loaded what it imports.
                from hawse.commands.hooks import CreationHooks

                hooks = CreationHooks(first)
                _run_hooks(store, hooks, proxy)
            notes = monitor.await_created()
        except BaseException:
            if proxy is not None:
                proxy.abort()
            monitor.abort()
            raise
        return Created(store, monitor, proxy, notes=notes, terminal=terminal)
    except HawseError as error:
        raise undo_creation(store, error, hooks) from None
    except BaseException:
        remove(store)
        raise


def undo_creation(store: Store, error: HawseError, hooks: CreationHooks | None) -> HawseError:
    """Remove a container whose creation failed with ``error``. Returns the error with the removal's failures."""
    warnings: list[str] = []
    try:
        warnings = remove(store)
    except HawseError as failure:
        error = error.followed_by(failure)
    for warning in [*warnings, *(hooks.undo() if hooks is not None else ())]:
        error = error.with_context(then=warning)
    return error


def _run_hooks(store: Store, hooks: CreationHooks, proxy: ProxyProcess) -> None:
    """Run the creation hooks once the VM exists; afterwards the monitor creates the container."""
    if not hooks.has_creation_hooks:
        return
    try:
        call(store, "await_machine", {})
    except (StateError, VmError):
        return  # await_created() raises the monitor's error
    hooks.before(pid=proxy.pid, sandbox=store)
    with suppress(StateError, VmError):
        call(store, "go_on", {})
