"""The VFIO groups of a container: those of its plan, and those attached later."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

from msgspec.structs import replace

from hawse.errors import DeviceError, HawseError, NotFoundError, StateError
from hawse.json_text import Document
from hawse.monitor.agent.answers import NativeFunction
from hawse.monitor.agent.calls import AddNodes, LiveNode, RemoveNodes
from hawse.monitor.agent.guest_link import GuestLink
from hawse.monitor.devices import hotplug
from hawse.monitor.devices.claims import Claims
from hawse.monitor.devices.device_map import device_map
from hawse.monitor.devices.guest_drivers import annotation, with_nodes
from hawse.monitor.devices.guest_nodes import container_paths, function_nodes
from hawse.plan.model import Attachment, ContainerPlan, PlugStep, addresses
from hawse.vfio.node import CONTAINER_NUMBERS, VfioNode, container_node

if TYPE_CHECKING:
    from hawse.vm.qmp import Qmp

_CALL_SECONDS = 60.0


class Attachments:
    """The plugged devices of a container. Attaching and detaching are serialized by a lock."""

    def __init__(self, plan: ContainerPlan, claims: Claims, *, seconds: float) -> None:
        """Raises :class:`StateError` if a port of the plan was taken meanwhile, or a group was attached or detached."""
        self.plugs: list[PlugStep] = list(plan.plugs)
        self._container = plan.id
        self._seconds = seconds
        #: The container's VFIO nodes, located in the guest by :meth:`begin` and :meth:`attach`.
        self.nodes: list[VfioNode] = list(plan.nodes)
        self._rights = plan.native
        self._natives: dict[str, NativeFunction] = {}
        self._claims = claims
        self._kept: list[PlugStep] = []
        self._lock = asyncio.Lock()
        self._machine: tuple[Qmp, GuestLink] | None = None
        claims.claim(self.plugs, owner=plan.id)

    async def begin(self, qmp: Qmp, link: GuestLink) -> None:
        """Attach the devices of the plan. Raises :class:`DeviceError` naming the device."""
        async with self._lock:
            self._machine = qmp, link
            native = [plug for plug in self.plugs if plug.group in self._rights]
            plugs = [plug for plug in self.plugs if plug.group not in self._rights]
            self.nodes = await hotplug.attach(plugs, self.nodes, qmp, link, seconds=self._seconds)
            self._natives = await hotplug.attach_native(
                native, qmp, link, container=self._container, seconds=self._seconds
            )

    @property
    def addresses(self) -> dict[str, str]:
        """The guest's address of each function of the host."""
        return addresses(self.plugs)

    @property
    def annotations(self) -> dict[str, str]:
        """The state's annotation of functions that are bound to drivers of the guest kernel."""
        return annotation(self.plugs, self._natives)

    @property
    def wants_files(self) -> bool:
        """Whether the plan has /dev/iommu: then the container also gets the device files of functions attached
        later."""
        return bool(self._iommu_nodes())

    def state_entries(self) -> list[Document]:
        """The state's entry for each function, with its address in the guest."""
        return device_map(self.plugs, self.nodes, self._natives)

    def add_native_nodes(self, spec: Document) -> Document:
        """The specification with the nodes of functions that are bound to drivers of the guest kernel."""
        return with_nodes(spec, self.plugs, self._natives, self._rights) if self._natives else spec

    async def attach(self, attachment: Attachment) -> list[Document]:
        """Attach one more group. Returns its entries of :meth:`state_entries`.

        Raises :class:`DeviceError` or :class:`StateError`, after the plugged functions have been unplugged.
        """
        async with self._lock:
            qmp, link = self._qmp_and_link()
            group = attachment.plugs[0].group
            self._refuse_native()
            if group in self._groups():
                raise StateError(f"group {group} is attached already")
            await self._unplug(self._kept, qmp)
            self._claims.claim(attachment.plugs, owner=self._container)
            try:
                # The guest may have /dev/iommu only since this group was attached.
                requested = [*self._iommu_nodes(), *attachment.nodes]
                located = await hotplug.attach(attachment.plugs, requested, qmp, link, seconds=self._seconds)
            except HawseError:
                await self._roll_back(attachment, qmp)
                raise
            before = self.plugs, self.nodes
            self.plugs = [*self.plugs, *attachment.plugs]
            self.nodes = list({(node.path, node.host_group): node for node in (*self.nodes, *located)}.values())
            try:
                call = AddNodes(
                    container=self._container, nodes=self._new_nodes(attachment), devices=self.state_entries()
                )
                await link.call(call, seconds=_CALL_SECONDS + self._seconds)
            except HawseError:
                self.plugs, self.nodes = before
                await self._roll_back(attachment, qmp)
                raise
            return [entry for entry in self.state_entries() if entry["host"]["group"] == group]

    async def detach(self, group: int, *, force: bool) -> None:
        """Remove a group from the container and from the VM. Raises :class:`DeviceError` if it is in use."""
        async with self._lock:
            qmp, link = self._qmp_and_link()
            self._refuse_native()
            if group not in self._groups():
                attached = ", ".join(map(str, self._groups()))
                raise NotFoundError(f"group {group} is not attached", hint=f"attached: {attached or 'none'}")
            plugs = [plug for plug in self.plugs if plug.group == group]
            rest = device_map([plug for plug in self.plugs if plug.group != group], self.nodes, {})
            with self._claims.exclusive(plugs, owner=self._container) as exclusive:
                call = RemoveNodes(
                    container=self._container,
                    nodes=self._live_nodes(self._function_nodes(plugs)),
                    # A group of another container stays in the VM, even if this container's processes use it.
                    group=self._function_nodes(plugs)[0].guest_group if exclusive else None,
                    force=force,
                    seconds=self._seconds,
                    devices=rest,
                )
                await link.call(call, seconds=_CALL_SECONDS + self._seconds)
                left = await hotplug.unplug(exclusive, qmp, seconds=self._seconds)
                if left:
                    raise DeviceError(
                        f"{', '.join(plug.label for plug in left)} of group {group}: the guest does not release "
                        f"it within {self._seconds:g} s; its nodes were removed from the container",
                        hint="try again, or end the container: its devices are released when its virtual machine ends",
                    )
                self._claims.release(plugs, owner=self._container)
            self.plugs = [plug for plug in self.plugs if plug.group != group]
            self.nodes = [node for node in self.nodes if node.host_group != group]

    async def end(self) -> None:
        """Unplug the functions that only this container uses, after its end. Retries those that the guest did not
        release.

        Raises :class:`DeviceError` for those that the guest still does not release.
        """
        async with self._lock:
            if self._machine is None:
                self.release_claims()
            else:
                await self._unplug([*self.plugs, *self._kept], self._machine[0])
            self.plugs = []
        if self._kept:
            kept = ", ".join(f"{plug.label} of group {plug.group}" for plug in self._kept)
            raise DeviceError(
                f"{kept}: the guest does not release it within {self._seconds:g} s",
                hint="every device is released when the sandbox's virtual machine ends",
            )

    async def retry_unplug(self, groups: Collection[int]) -> None:
        """Retry to unplug functions of these groups that the guest has not released: another container needs them.

        :meth:`Claims.claim` refuses those that the guest still does not release.
        """
        if any(plug.group in groups for plug in self._kept):
            async with self._lock:
                kept = [plug for plug in self._kept if plug.group in groups]
                if self._machine is not None:
                    with suppress(HawseError):
                        await self._unplug(kept, self._machine[0])

    @property
    def keeps(self) -> bool:
        """Whether the guest has not released a device after :meth:`end`."""
        return bool(self._kept)

    def release_claims(self) -> None:
        """Release groups and ports for other containers, before the first plug or after :meth:`end`."""
        self._claims.release(self.plugs, owner=self._container)

    async def _roll_back(self, attachment: Attachment, qmp: Qmp) -> None:
        """Unplug the functions of an attachment that failed. :meth:`end` retries those that the guest does not
        release."""
        with suppress(HawseError):
            await self._unplug(attachment.plugs, qmp)

    async def _unplug(self, plugs: Sequence[PlugStep], qmp: Qmp) -> None:
        """Unplug the functions that no other container uses, and release all claims except on those that the guest
        keeps."""
        with self._claims.exclusive(plugs, owner=self._container) as exclusive:
            left = exclusive
            try:
                left = await hotplug.unplug(exclusive, qmp, seconds=self._seconds)
            finally:
                self._claims.release(plugs, left, owner=self._container)
                self._kept = [*(plug for plug in self._kept if plug not in plugs), *left]

    def _new_nodes(self, attachment: Attachment) -> list[LiveNode]:
        nodes = [*self._iommu_nodes(), *self._function_nodes(attachment.plugs)]
        return [
            *self._live_nodes([replace(container_node(), guest_numbers=CONTAINER_NUMBERS)], mode=0o666),
            *self._live_nodes(nodes, mode=attachment.mode, uid=attachment.uid, gid=attachment.gid),
        ]

    def _live_nodes(self, nodes: Sequence[VfioNode], *, mode: int = 0, uid: int = 0, gid: int = 0) -> list[LiveNode]:
        """The nodes at each of their paths in the container, without duplicates."""
        live = (
            LiveNode(path=path, major=node.guest_numbers[0], minor=node.guest_numbers[1], mode=mode, uid=uid, gid=gid)
            for node in nodes
            if node.guest_numbers is not None
            for path in container_paths(node, self.nodes)
        )
        return list(dict.fromkeys(live))

    def _function_nodes(self, plugs: Sequence[PlugStep]) -> list[VfioNode]:
        return [node for plug in plugs for node in function_nodes(plug, self.nodes)]

    def _iommu_nodes(self) -> list[VfioNode]:
        return [node for node in self.nodes if node.is_file and node.host_group is None]

    def _qmp_and_link(self) -> tuple[Qmp, GuestLink]:
        if self._machine is None:
            raise StateError(f"container {self._container} is still being created")
        return self._machine

    def _refuse_native(self) -> None:
        if self._rights:
            raise StateError(
                f"the devices of {self._container} are bound to drivers of the guest kernel: none can be attached or "
                "detached while the container runs",
                hint="name them when the container is created, or use the mode vfio",
            )

    def _groups(self) -> list[int]:
        """The host's numbers of the attached groups, sorted."""
        return sorted({plug.group for plug in self.plugs})
