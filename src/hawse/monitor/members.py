"""The containers of a sandbox, each with everything that was acquired for it."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterator
from contextlib import AsyncExitStack, suppress
from typing import TYPE_CHECKING, Any

from hawse.errors import HawseError, NotFoundError
from hawse.host.vfio_functions import give_back, take
from hawse.monitor.processes.processes import uninterrupted

if TYPE_CHECKING:
    from hawse.monitor.container import Container
    from hawse.notes import Notes
    from hawse.state.store import Store


class Member:
    """A container that has joined the sandbox, or the first one. ``undo`` releases what was acquired for it."""

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
    def keeps(self) -> bool:
        """Whether the guest has not released a device of it, or the host's functions are still bound for it."""
        return self._bound or self.container.keeps_devices

    async def create(self, work: Coroutine[Any, Any, Notes]) -> Notes:
        """Do the work of its creation, which :meth:`cancel_creation` ends; the notes of the work."""
        self._creation = asyncio.create_task(work)
        return await self._creation

    async def cancel_creation(self) -> None:
        """Cancel the creation if it is not complete, and wait for its end."""
        if self._creation is not None and not self._creation.done():
            self._creation.cancel()
            await asyncio.wait((self._creation,))

    async def release(self) -> None:
        """Undo what was done for it: once and to the end. Everybody who calls waits for that and gets its failure."""
        if self._release is None:
            self._release = asyncio.create_task(self.undo.aclose())
        await asyncio.shield(self._release)

    async def bind_functions(self) -> None:
        """Bind the host's functions of the plan to VFIO drivers. Raises :class:`DeviceError`."""
        self._bound = True
        if self.container.plan.binds:
            await uninterrupted(asyncio.to_thread(take, self.container.plan.binds, self._store))

    async def restore_functions(self) -> None:
        """Bind them to their earlier drivers. Raises :class:`DeviceError`; the next call tries again."""
        if self._bound:
            await asyncio.to_thread(give_back, self._store)
            self._bound = False


class Members:
    """All containers of a sandbox, by their ids, and those that are deleted but for a device that something keeps."""

    def __init__(self, first: Member) -> None:
        self.first = first
        self._by_name = {first.name: first}
        self._deleted: list[Member] = []

    def __iter__(self) -> Iterator[Member]:
        return iter(list(self._by_name.values()))

    def __contains__(self, name: str) -> bool:
        return name in self._by_name

    @property
    def joined(self) -> list[Member]:
        """All but the first."""
        return [member for member in self if member is not self.first]

    @property
    def with_devices(self) -> list[Member]:
        """All that may have a device of the guest, deleted ones first."""
        return [*self._deleted, *self]

    def find(self, name: str) -> Member:
        """A container. Raises :class:`NotFoundError` in runc's words."""
        try:
            return self._by_name[name]
        except KeyError:
            raise NotFoundError(f"container does not exist: {name[:255]}") from None

    def get(self, name: str) -> Container | None:
        """A container; None for a name that the guest has made up, or whose container was deleted."""
        member = self._by_name.get(name)
        return member.container if member else None

    def add(self, member: Member) -> None:
        """Add a container until :meth:`remove`."""
        self._by_name[member.name] = member

    def remove(self, member: Member) -> None:
        """Forget a deleted container, unless something keeps a device of it."""
        self._by_name.pop(member.name, None)
        if member.keeps:
            self._deleted.append(member)

    def is_deleted(self, name: str) -> bool:
        """Whether a deleted container of this id has left a device."""
        return name not in self._by_name and any(member.name == name for member in self._deleted)

    async def release_devices(self, name: str) -> None:
        """Ask the guest again for the devices of deleted containers of this id, and restore the host's functions.

        Raises :class:`DeviceError` for a device that the guest still keeps.
        """
        for member in [member for member in self._deleted if member.name == name]:
            await member.container.release_devices()
            await member.restore_functions()
            self._deleted.remove(member)

    async def restore_functions(self) -> None:
        """The VM has ended: restore all functions of the host. A record of those that fail stays for ``delete``."""
        for member in self.with_devices:
            with suppress(HawseError):
                await member.restore_functions()
