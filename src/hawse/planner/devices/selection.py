"""The devices of a container: what its specification and its annotations ask for, checked on this host.

The steps, in this order: which entries of linux.devices are VFIO nodes; which of them a privileged container goes
without; what becomes of the other nodes; the nodes that annotations and device files add; the checks of each group; and
the mode guest-kernel, in which the VFIO nodes vanish. Each step returns the specification anew.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

from hawse.errors import DeviceError
from hawse.json_text import Document
from hawse.notes import Note, warning
from hawse.oci.device_rules import allows_all
from hawse.oci.guest.specification import GuestPlan
from hawse.oci.load import Bundle
from hawse.oci.pods import SINGLE
from hawse.oci.types import Device, Linux
from hawse.planner.devices.guest_drivers import take_out
from hawse.planner.devices.iommu_backend import by_file
from hawse.planner.devices.options import DeviceOptions
from hawse.planner.devices.other_nodes import OtherNodes, read_nodes
from hawse.planner.devices.privileged import choose
from hawse.planner.devices.vfio import (
    Group,
    add_named,
    check_host,
    check_tokens,
    find_groups,
    unused_token,
    with_groups,
)
from hawse.vfio.allowed import check_allowed
from hawse.vfio.emulated import EmulatedGroup
from hawse.vfio.groups import HostGroup
from hawse.vfio.node import VfioNode
from hawse.vfio.requests import Request, find_request
from hawse.vm.capabilities import Capabilities


@dataclass(frozen=True)
class DeviceChecks:
    """The questions about devices that this host and the VM answer.

    ``present`` are groups that the VM has already. ``fit`` raises :class:`DeviceError` if the VM has no free ports for
    groups. ``ask`` returns what QEMU can do; it is called if a device needs it.
    """

    options: DeviceOptions
    emulated: Mapping[int, EmulatedGroup]
    present: Collection[int]
    fit: Callable[[Sequence[Group]], object]
    ask: Callable[[], Capabilities]

    def find(self, devices: Sequence[Device]) -> Request:
        """The VFIO nodes among devices. Raises :class:`DeviceError`."""
        return find_request(devices, emulated=self.emulated, managed=self.options.managed)

    def try_last(self, groups: Sequence[Group]) -> None:
        """Whether the last group can be passed beside the others, which have been checked. Raises DeviceError."""
        self.check(groups[-1:], ())
        self.fit(groups)

    def check(self, groups: Sequence[Group], files: Sequence[VfioNode]) -> tuple[frozenset[int], list[Note]]:
        """The groups that QEMU opens by their device files, and warnings. Raises :class:`DeviceError`."""
        new = [group for group in groups if group.number not in self.present]
        check_allowed([group for group in new if isinstance(group, HostGroup)], self.options.allow)
        chosen, fallbacks = by_file(new, files, self.options, self.ask)
        warnings = check_host(new, self.options)
        check_tokens(new, self.options, self.ask)
        return chosen, [warning(text) for text in (*fallbacks, *warnings)]


@dataclass(frozen=True)
class DeviceSelection:
    """``spec`` is the guest's specification with the nodes of all devices, by the host's numbers.

    ``request`` has the VFIO nodes and groups, and ``others`` the block devices and misc devices. ``native`` are the
    groups that the guest's own drivers get, with the rights of their nodes; ``by_file`` are the groups that QEMU opens
    by their device files.
    """

    spec: Document
    request: Request
    others: OtherNodes
    native: dict[int, dict[str, int]]
    by_file: frozenset[int]
    notes: tuple[Note, ...]


def select_devices(bundle: Bundle, guest: GuestPlan, checks: DeviceChecks, *, role: str) -> DeviceSelection:
    """Raises :class:`DeviceError` or :class:`ConfigError` naming the device or the node."""
    options = checks.options
    request, left_out = _find_vfio(bundle.spec.linux or Linux(), checks)
    others, spec = read_nodes(bundle, guest, request, left_out, allow=options.allow)
    request, spec = with_groups(request, spec)
    request, spec = add_named(request, find_groups(options.devices, checks.emulated), spec)
    files, notes = checks.check(request.groups, request.files)
    native: dict[int, dict[str, int]] = {}
    if options.native:
        request, spec, native = take_out(request, spec)
    if role == SINGLE or request.groups:  # a pod's annotations are repeated on all its containers
        notes += [warning(text) for text in unused_token(request.groups, options)]
    return DeviceSelection(spec, request, others, native, files, (*map(warning, others.warnings), *notes))


def _find_vfio(linux: Linux, checks: DeviceChecks) -> tuple[Request, dict[str, DeviceError]]:
    """The VFIO nodes, and by path those that a privileged container goes without, with the reasons."""
    devices: Sequence[Device] = linux.devices or ()
    left_out: dict[str, DeviceError] = {}
    if linux.resources and allows_all(linux.resources.devices or ()):
        devices, left_out = choose(devices, checks.find, checks.try_last)
    return checks.find(devices), left_out
