"""Creating a container: plan, claim the id, let the monitor make it, take everything back where that fails."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING

from hawse.commands.client import call
from hawse.commands.delete import remove
from hawse.commands.process import Handed, check_console, start_first
from hawse.commands.spawn import MonitorProcess, ProxyProcess
from hawse.errors import HawseError, StateError, VmError
from hawse.state.store import Store

if TYPE_CHECKING:
    from hawse.commands.hooks import Hooked
    from hawse.plan.model import SandboxPlan


class Created:
    """A container that waits for its start; ``monitor`` is the process that was made for it."""

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

    def let_go(self) -> None:
        """This process ends, the container stays."""
        if self._monitor is not None:
            self._monitor.let_go()


def create(store: Store, make_plan: Callable[[], SandboxPlan], handed: Handed) -> Created:
    """Make the container. When anything fails, nothing is left of it and the id is free again.

    The monitor starts first: it is ready by the time that the plan is made.
    """
    store.make()
    hooked: Hooked | None = None
    try:
        monitor = MonitorProcess(store)
        proxy: ProxyProcess | None = None
        try:
            made = make_plan()
            first = made.container
            terminal = bool(first.spec["process"].get("terminal"))
            check_console(handed, terminal=terminal)
            monitor.send(made.encode())
            proxy = start_first(store, "init", first, handed)
            if first.hooks:
                # Here, since the plan has loaded what it takes.
                from hawse.commands.hooks import Hooked

                hooked = Hooked(first)
                _run_hooks(store, hooked, proxy)
            notes = monitor.await_created()
        except BaseException:
            if proxy is not None:
                proxy.abort()
            monitor.abort()
            raise
        return Created(store, monitor, proxy, notes=notes, terminal=terminal)
    except HawseError as error:
        raise take_back(store, error, hooked) from None
    except BaseException:
        remove(store)
        raise


def take_back(store: Store, error: HawseError, hooked: Hooked | None) -> HawseError:
    """Leave nothing of a container that could not be created; the error, with what has failed of that too."""
    left: list[str] = []
    try:
        left = remove(store)
    except HawseError as failure:
        error = error.followed_by(failure)
    for warning in [*left, *(hooked.undo() if hooked is not None else ())]:
        error = error.with_context(then=warning)
    return error


def _run_hooks(store: Store, hooked: Hooked, proxy: ProxyProcess) -> None:
    """Run the hooks before the container, when its machine is there, and let the monitor make it after them."""
    if not hooked.creates:
        return
    try:
        call(store, "await_machine", {})
    except (StateError, VmError):
        return  # the monitor tells why
    hooked.before(pid=proxy.pid, sandbox=store)
    with suppress(StateError, VmError):
        call(store, "go_on", {})
