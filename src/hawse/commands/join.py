"""Create a container in a running sandbox: its monitor creates it, this process only plans and waits."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING

import msgspec

from hawse.commands.client import call
from hawse.commands.create import Created, undo_creation
from hawse.commands.delete import remove
from hawse.commands.hooks import CreationHooks
from hawse.commands.host_process import IoOptions, check_console, start_first
from hawse.errors import ConfigError, HawseError, StateError
from hawse.host import network_namespace, redirects
from hawse.host.mounts import overlays
from hawse.host.mounts.open_sources import Source, close, open_sources
from hawse.plan.capacity import Room
from hawse.state.store import CREATED, RUNNING, Store

if TYPE_CHECKING:
    from hawse.oci.guest.share import Share
    from hawse.plan.model import ContainerPlan


def join(
    store: Store,
    sandbox: str,
    make_plan: Callable[[Room], ContainerPlan],
    io_options: IoOptions,
) -> Created:
    """Create the container. ``make_plan`` gets the VM's capacity. After a failure nothing remains of the container.

    Raises :class:`StateError` if the sandbox does not exist, and the errors of planning and creation.
    """
    first = Store(store.root, sandbox)
    _check(first)
    store.make(sandbox=first)
    hooks: CreationHooks | None = None
    try:
        # From here on call the monitor with the container's own store: its directory has links to the sandbox's socket
        # and lock.
        room = msgspec.convert(call(store, "room", {}), Room)
        plan = make_plan(room)
        _check_network(first, plan.network)
        hooks = CreationHooks(plan)
        terminal = bool(plan.spec["process"].get("terminal"))
        check_console(io_options, terminal=terminal)
        cleanup = ExitStack()
        proxy = None
        try:
            trees = open_sources([share for share in plan.shares if share.overlay is None])
            cleanup.callback(close, trees)
            # The key is unique to this attempt: the proxy of a killed attempt may still connect.
            key = f"init-{os.urandom(16).hex()}"
            proxy = start_first(store, key, plan, io_options)
            if hooks.has_creation_hooks:
                hooks.before(pid=proxy.pid, sandbox=first)
            mounted: list[Source] = []
            if overlaid := [share for share in plan.shares if share.overlay is not None]:
                # After the hooks, which may take any time and may create containers. Hold the lock until the monitor
                # has the overlays, and ask it again for those that it has now.
                cleanup.enter_context(overlays.alone(first.path, store.name))
                room = msgspec.convert(call(store, "room", {}), Room)
                mounted = open_sources(overlaid, room.overlays)
                cleanup.callback(close, mounted)
            request = {
                "plan": msgspec.to_builtins(plan),
                "sources": [msgspec.to_builtins(each) for each in _in_order(plan.shares, trees, mounted)],
                "key": key,
            }
            notes = call(store, "create", request)
        except BaseException:
            if proxy is not None:
                proxy.abort()
            raise
        finally:
            cleanup.close()
    except HawseError as error:
        raise undo_creation(store, error, hooks) from None
    except BaseException:
        remove(store)
        raise
    lines = notes if isinstance(notes, list) else []
    return Created(store, None, proxy, notes=[(str(level), str(text)) for level, text in lines], terminal=terminal)


def _in_order(shares: Sequence[Share], trees: Sequence[Source], mounted: Sequence[Source]) -> list[Source]:
    """The source of each share: the next of the overlays, or of the others."""
    others, of_overlays = iter(trees), iter(mounted)
    return [next(others if share.overlay is None else of_overlays) for share in shares]


def _check_network(first: Store, path: str) -> None:
    """Raise :class:`ConfigError` if the path is not the sandbox's network namespace, the only one that its VM has."""
    if not path:
        return
    namespace = network_namespace.open_path(path)
    try:
        if not redirects.is_of(first.path, namespace):
            raise ConfigError(
                f"{network_namespace.FIELD}.path: {path}: not the network of sandbox {first.name}, "
                "which the container joins",
                hint="omit the path: a container of a pod uses the pod's network, or gets a new network namespace",
            )
    finally:
        os.close(namespace)


def _check(first: Store) -> None:
    state = first.read() if os.path.isdir(first.path) else {}
    if not state:
        raise StateError(
            f"sandbox {first.name} does not exist", hint="create the sandbox before the containers that join it"
        )
    if state.get("sandbox", first.name) != first.name:
        raise StateError(
            f"{first.name} is not a sandbox: it has joined {state['sandbox']}", hint="name the sandbox itself"
        )
    if state["status"] not in (CREATED, RUNNING):
        raise StateError(
            f"sandbox {first.name} is {state['status']}: no container can join it", hint="create another sandbox"
        )
