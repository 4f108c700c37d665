"""The containers of a sandbox, each with its acquired resources."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterator
from contextlib import AsyncExitStack, suppress
from typing import TYPE_CHECKING, Any

from hawse.errors import HawseError, NotFoundError
from hawse.host.vfio_functions import bind_functions, restore_drivers
from hawse.monitor.processes.process_table import uninterrupted

if TYPE_CHECKING:
    from hawse.monitor.container import Container
    from hawse.notes import Notes
    from hawse.state.store import Store


class Member:
    """A container that has joined the sandbox, or the first one. ``undo`` releases its resources."""

    def __init__(self, container: Container, store: Store) -> None:
        self.container = container
        self.undo = AsyncExitStack()
        self._store = store
        self._bound = False
        self._creation: asyncio.Task[Notes] | None = None
        self._release: asyncio.Task[None] | None = None

    @property
    def name(self) -> str:
        """The id of the container."""
        return self.container.plan.id

    @property
    def is_bound(self) -> bool:
        """Whether functions of the host are still bound for the container."""
        return self._bound

    async def create(self, work: Coroutine[Any, Any, Notes]) -> Notes:
        """Run the work of the creation, and return its notes. :meth:`cancel_creation` cancels it."""
        self._creation = asyncio.create_task(work)
        return await self._creation

    async def cancel_creation(self) -> None:
        """Cancel the creation if it is not complete, and wait for its end."""
        if self._creation is not None and not self._creation.done():
            self._creation.cancel()
            await asyncio.wait((self._creation,))

    async def release(self) -> None:
        """Release the container's resources, once and completely. All callers wait for the release and get its
        error."""
        if self._release is None:
            self._release = asyncio.create_task(self.undo.aclose())
        await asyncio.shield(self._release)

    async def bind_functions(self) -> None:
        """Bind the plan's functions on the host to VFIO drivers. Raises :class:`DeviceError`."""
        self._bound = True
        if self.container.plan.binds:
            await uninterrupted(asyncio.to_thread(bind_functions, self.container.plan.binds, self._store))

    async def restore_functions(self) -> None:
        """Bind them to their previous drivers. Raises :class:`DeviceError`; the next call tries again."""
        if self._bound:
            await asyncio.to_thread(restore_drivers, self._store)
            self._bound = False


class Members:
    """All containers of a sandbox by id, and deleted containers with a device that is not released yet.

    ``_deleted`` are those whose device the guest has not released, ``_unrestored`` those whose functions of the host
    could not be restored.
    """

    def __init__(self, first: Member) -> None:
        self.first = first
        self._by_name = {first.name: first}
        self._deleted: list[Member] = []
        self._unrestored: list[Member] = []

    def __iter__(self) -> Iterator[Member]:
        return iter(list(self._by_name.values()))

    def __contains__(self, name: str) -> bool:
        return name in self._by_name

    @property
    def joined(self) -> list[Member]:
        """All containers except the first."""
        return [member for member in self if member is not self.first]

    @property
    def with_devices(self) -> list[Member]:
        """All containers that may hold a device in the guest, deleted ones first."""
        return [*self._deleted, *self]

    def find(self, name: str) -> Member:
        """Find a container. Raises :class:`NotFoundError` with runc's message."""
        try:
            return self._by_name[name]
        except KeyError:
            raise NotFoundError(f"container does not exist: {name[:255]}") from None

    def get(self, name: str) -> Container | None:
        """A container; None if the guest has invented the name, or if the container was deleted."""
        member = self._by_name.get(name)
        return member.container if member else None

    def add(self, member: Member) -> None:
        """Add a container until :meth:`remove`."""
        self._by_name[member.name] = member
        self.forget_unrestored(member.name)

    def forget_unrestored(self, name: str) -> None:
        """Restore no functions for a deleted container with this id any more: `delete` does, or another container has
        the id."""
        self._unrestored = [member for member in self._unrestored if member.name != name]

    def remove(self, member: Member) -> None:
        """Forget a deleted container, except for devices that are not released yet."""
        self._by_name.pop(member.name, None)
        if member.container.keeps_devices:
            self._deleted.append(member)
        elif member.is_bound:
            self._unrestored.append(member)

    def is_deleted(self, name: str) -> bool:
        """Whether the guest still holds a device of a deleted container with this id."""
        return name not in self._by_name and any(member.name == name for member in self._deleted)

    async def release_devices(self, name: str) -> None:
        """Retry to unplug the devices of deleted containers with this id, and restore the host's functions.

        Raises :class:`DeviceError` for a device that the guest still does not release, or for a function that cannot be
        restored. In the second case the container is not :meth:`is_deleted` any more.
        """
        for member in [member for member in self._deleted if member.name == name]:
            await member.container.release_devices()
            if member in self._deleted:  # else a concurrent call has done the rest
                self._deleted.remove(member)
                self._unrestored.append(member)
        for member in [member for member in self._unrestored if member.name == name]:
            await member.restore_functions()
            self._unrestored = [other for other in self._unrestored if other is not member]

    async def restore_functions(self) -> None:
        """Restore all functions of the host, after the VM's end. Functions that fail stay recorded for ``delete``."""
        for member in [*self.with_devices, *self._unrestored]:
            with suppress(HawseError):
                await member.restore_functions()
