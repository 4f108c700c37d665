"""Creating a container in a sandbox that runs: its monitor makes it, this process only plans and waits."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING

import msgspec

from hawse.commands.client import call
from hawse.commands.create import Created, take_back
from hawse.commands.delete import remove
from hawse.commands.hooks import Hooked
from hawse.commands.process import Handed, check_console, start_first
from hawse.errors import ConfigError, HawseError, StateError
from hawse.host import network_namespace, redirects
from hawse.host.mounts import overlays
from hawse.host.mounts.bind_sources import Source, close, open_sources
from hawse.plan.capacity import Room
from hawse.state.store import CREATED, RUNNING, Store

if TYPE_CHECKING:
    from hawse.plan.model import ContainerPlan, Share


def join(
    store: Store,
    sandbox: str,
    make_plan: Callable[[Room], ContainerPlan],
    handed: Handed,
) -> Created:
    """Make the container; ``make_plan`` is told of the machine. When anything fails, nothing is left of it.

    Raises :class:`StateError` where there is no such sandbox, and what planning and making raise.
    """
    first = Store(store.root, sandbox)
    _check(first)
    store.make(sandbox=first)
    hooked: Hooked | None = None
    try:
        # By the container's own name from here on: its directory has links to the sandbox's socket and lock.
        room = msgspec.convert(call(store, "room", {}), Room)
        made = make_plan(room)
        _check_network(first, made.network)
        hooked = Hooked(made)
        terminal = bool(made.spec["process"].get("terminal"))
        check_console(handed, terminal=terminal)
        ending = ExitStack()
        proxy = None
        try:
            trees = open_sources([share for share in made.shares if share.overlay is None])
            ending.callback(close, trees)
            # A name of this attempt's alone: the proxy of one that was killed may still be on its way.
            key = f"init-{os.urandom(16).hex()}"
            proxy = start_first(store, key, made, handed)
            if hooked.creates:
                hooked.before(pid=proxy.pid, sandbox=first)
            mounted: list[Source] = []
            if shared := [share for share in made.shares if share.overlay is not None]:
                # After the hooks, which may take any time, and may create containers themselves. Until the monitor has
                # the overlays, of which it is asked again.
                ending.enter_context(overlays.alone(first.path, store.name))
                room = msgspec.convert(call(store, "room", {}), Room)
                mounted = open_sources(shared, room.overlays)
                ending.callback(close, mounted)
            request = {
                "plan": msgspec.to_builtins(made),
                "sources": [msgspec.to_builtins(each) for each in _in_order(made.shares, trees, mounted)],
                "key": key,
            }
            notes = call(store, "create", request)
        except BaseException:
            if proxy is not None:
                proxy.abort()
            raise
        finally:
            ending.close()
    except HawseError as error:
        take_back(store, error, hooked)
        raise
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
    """Raise :class:`ConfigError` for a network that is not the sandbox's: its machine has no other."""
    if not path:
        return
    namespace = network_namespace.open_path(path)
    try:
        if not redirects.is_of(first.path, namespace):
            raise ConfigError(
                f"{network_namespace.FIELD}.path: {path}: not the network of sandbox {first.name}, "
                "which the container joins",
                hint="the containers of a pod have the pod's network, or each a new one: leave the path out",
            )
    finally:
        os.close(namespace)


def _check(first: Store) -> None:
    state = first.read() if os.path.isdir(first.path) else {}
    if not state:
        raise StateError(
            f"sandbox {first.name} does not exist", hint="create it before the containers that are to join it"
        )
    if state.get("sandbox", first.name) != first.name:
        raise StateError(
            f"{first.name} is no sandbox: it has joined {state['sandbox']}", hint="name the sandbox itself"
        )
    if state["status"] not in (CREATED, RUNNING):
        raise StateError(
            f"sandbox {first.name} is {state['status']}: no container can join it", hint="create another sandbox"
        )
