"""The VFIO groups that a container has: those of its plan, and those attached later."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

from hawse.errors import DeviceError, HawseError, NotFoundError, StateError
from hawse.json_text import Document
from hawse.monitor.agent.answers import NativeFunction
from hawse.monitor.agent.calls import AddNodes, LiveNode, RemoveNodes
from hawse.monitor.agent.guest_link import GuestLink
from hawse.monitor.devices import hotplug
from hawse.monitor.devices.claims import Claims
from hawse.monitor.devices.device_map import Files, Groups, Place, device_map, locate, places
from hawse.monitor.devices.guest_drivers import annotation, with_nodes
from hawse.plan.model import Attachment, ContainerPlan, PlugStep, addresses
from hawse.vfio.node import VfioNode, container_node

if TYPE_CHECKING:
    from hawse.vm.qmp import Qmp

_CALL_SECONDS = 60.0


class Attachments:
    """What is plugged, and the two ways to change it; one change at a time."""

    def __init__(self, plan: ContainerPlan, claims: Claims, *, seconds: float) -> None:
        """Raises :class:`StateError` where a port of the plan is taken by now, or a group of it there or gone."""
        self.plugs: list[PlugStep] = list(plan.plugs)
        self._container = plan.id
        self._seconds = seconds
        self._nodes: list[VfioNode] = list(plan.nodes)
        self._rights = plan.native
        self._natives: dict[str, NativeFunction] = {}
        self._claims = claims
        self._groups: Groups = {}
        self._files: Files = {}
        self._kept: list[PlugStep] = []
        self._lock = asyncio.Lock()
        self._machine: tuple[Qmp, GuestLink] | None = None
        claims.claim(self.plugs, owner=plan.id)

    async def begin(self, qmp: Qmp, link: GuestLink) -> None:
        """Attach what the plan has. Raises :class:`DeviceError` naming the device."""
        async with self._lock:
            self._machine = qmp, link
            native = [plug for plug in self.plugs if plug.group in self._rights]
            plugs = [plug for plug in self.plugs if plug.group not in self._rights]
            self._groups, self._files = await hotplug.attach(plugs, qmp, link, seconds=self._seconds)
            self._natives = await hotplug.attach_native(
                native, qmp, link, container=self._container, seconds=self._seconds
            )

    @property
    def addresses(self) -> dict[str, str]:
        """The guest's address of each function of the host."""
        return addresses(self.plugs)

    @property
    def annotations(self) -> dict[str, str]:
        """What the state says of functions that the guest's own drivers have."""
        return annotation(self.plugs, self._natives)

    @property
    def wants_files(self) -> bool:
        """Whether the container has asked for /dev/iommu, and so gets the device files of what is attached later."""
        return any(node.is_file and node.host_group is None for node in self._nodes)

    def seen(self) -> list[Document]:
        """Which function is which in the guest."""
        return device_map(self.plugs, self._nodes, self._groups, self._files, self._natives)

    def furnish(self, spec: Document) -> Document:
        """The specification with nodes of functions that the guest's own drivers have."""
        return with_nodes(spec, self.plugs, self._natives, self._rights) if self._natives else spec

    def guest_nodes(self) -> list[VfioNode]:
        """The nodes that the container is created with, with their places in the guest."""
        return locate(self._nodes, self._groups, self._files)

    async def attach(self, wanted: Attachment) -> list[Document]:
        """Give the container one group more; its entries of :meth:`seen`.

        Raises :class:`DeviceError` or :class:`StateError`, after what was plugged has been taken out again.
        """
        async with self._lock:
            qmp, link = self._ends()
            group = wanted.plugs[0].group
            if group in self._groups:
                raise StateError(f"group {group} is attached already")
            self._refuse_native()
            await self._unplug(self._kept, qmp)
            self._claims.claim(wanted.plugs, owner=self._container)
            try:
                groups, files = await hotplug.attach(wanted.plugs, qmp, link, seconds=self._seconds)
            except HawseError:
                await self._withdraw(wanted, qmp)
                raise
            before = self.plugs, self._nodes, self._groups, self._files
            self.plugs = [*self.plugs, *wanted.plugs]
            self._nodes = [*self._nodes, *(node for node in wanted.nodes if node not in self._nodes)]
            self._groups, self._files = self._groups | groups, self._files | files
            try:
                call = AddNodes(container=self._container, nodes=self._new_nodes(wanted), devices=self.seen())
                await link.call(call, seconds=_CALL_SECONDS + self._seconds)
            except HawseError:
                self.plugs, self._nodes, self._groups, self._files = before
                await self._withdraw(wanted, qmp)
                raise
            return [entry for entry in self.seen() if entry["host"]["group"] == group]

    async def detach(self, group: int, *, force: bool) -> None:
        """Take a group from the container and from the machine. Raises :class:`DeviceError` where it is in use."""
        async with self._lock:
            qmp, link = self._ends()
            self._refuse_native()
            if group not in self._groups:
                raise NotFoundError(f"group {group} is not attached", hint=f"attached: {self._names() or 'none'}")
            plugs = [plug for plug in self.plugs if plug.group == group]
            rest = device_map([p for p in self.plugs if p.group != group], self._nodes, self._groups, self._files, {})
            with self._claims.alone(plugs, owner=self._container) as alone:
                call = RemoveNodes(
                    container=self._container,
                    nodes=[_live(place, 0, 0, 0) for place in self._places(plugs)],
                    # What another container has stays in the machine, whoever uses it.
                    group=self._groups[group].number if alone else None,
                    force=force,
                    seconds=self._seconds,
                    devices=rest,
                )
                await link.call(call, seconds=_CALL_SECONDS + self._seconds)
                left = await hotplug.unplug(alone, qmp, seconds=self._seconds)
                if left:
                    raise DeviceError(
                        f"{', '.join(plug.label for plug in left)} of group {group}: the guest does not let go of it "
                        f"within {self._seconds:g} s; its nodes are gone from the container",
                        hint="try again, or end the container: the end of its virtual machine gives every device back",
                    )
                self._claims.release(plugs, owner=self._container)
            self.plugs = [plug for plug in self.plugs if plug.group != group]
            self._nodes = [node for node in self._nodes if node.host_group != group]
            del self._groups[group]
            self._files = {k: v for k, v in self._files.items() if k not in {plug.device for plug in plugs}}

    async def end(self) -> None:
        """Take what is this container's alone out of the machine, after its end; again what the guest kept before.

        Raises :class:`DeviceError` for what stays.
        """
        async with self._lock:
            if self._machine is None:
                self.disclaim()
            else:
                await self._unplug([*self.plugs, *self._kept], self._machine[0])
            self.plugs, self._groups = [], {}
        if self._kept:
            kept = ", ".join(f"{plug.label} of group {plug.group}" for plug in self._kept)
            raise DeviceError(
                f"{kept}: the guest does not let go of it within {self._seconds:g} s",
                hint="the end of the sandbox's virtual machine gives every device back",
            )

    async def ask_again(self, groups: Collection[int]) -> None:
        """Unplug what the guest kept before of these groups, which another container is to have. What it still keeps
        is refused by :meth:`Claims.claim`."""
        if any(plug.group in groups for plug in self._kept):
            async with self._lock:
                kept = [plug for plug in self._kept if plug.group in groups]
                if self._machine is not None:
                    with suppress(HawseError):
                        await self._unplug(kept, self._machine[0])

    @property
    def keeps(self) -> bool:
        """Whether the guest has not released something after :meth:`end`."""
        return bool(self._kept)

    def disclaim(self) -> None:
        """Nothing of the plan was plugged, or :meth:`end` has been called: others can have its groups and ports."""
        self._claims.release(self.plugs, owner=self._container)

    async def _withdraw(self, wanted: Attachment, qmp: Qmp) -> None:
        """Take out what was plugged of an attachment that failed; what stays is asked for again by :meth:`end`."""
        with suppress(HawseError):
            await self._unplug(wanted.plugs, qmp)

    async def _unplug(self, plugs: Sequence[PlugStep], qmp: Qmp) -> None:
        """Take out those that nobody else has, and release all but those that the guest keeps."""
        with self._claims.alone(plugs, owner=self._container) as alone:
            left = alone
            try:
                left = await hotplug.unplug(alone, qmp, seconds=self._seconds)
            finally:
                self._claims.release(plugs, left, owner=self._container)
                self._kept = [*(plug for plug in self._kept if plug not in plugs), *left]

    def _new_nodes(self, wanted: Attachment) -> list[LiveNode]:
        places = self._places(wanted.plugs)
        if self.wants_files and "" in self._files:
            places.insert(0, self._files[""])
        vfio = container_node()
        return [
            _live(Place(vfio.path, vfio.major, vfio.minor), 0o666, 0, 0),
            *(_live(place, wanted.mode, wanted.uid, wanted.gid) for place in places),
        ]

    def _places(self, plugs: Sequence[PlugStep]) -> list[Place]:
        """Path and numbers of every node of these functions, each once."""
        found = (place for plug in plugs for place in places(plug, self._nodes, self._groups, self._files))
        return list(dict.fromkeys(found))

    def _ends(self) -> tuple[Qmp, GuestLink]:
        if self._machine is None:
            raise StateError(f"container {self._container} is still being created")
        return self._machine

    def _refuse_native(self) -> None:
        if self._rights:
            raise StateError(
                f"the devices of {self._container} are the guest kernel's own, which come and go with the container",
                hint="name them when it is created; in the mode vfio groups can be attached and detached",
            )

    def _names(self) -> str:
        return ", ".join(map(str, sorted(self._groups)))


def _live(place: Place, mode: int, uid: int, gid: int) -> LiveNode:
    return LiveNode(path=place.path, major=place.major, minor=place.minor, mode=mode, uid=uid, gid=gid)
