"""Select the devices of a container from its specification and annotations, and check them on this host.

The steps, in this order: find the VFIO nodes in linux.devices; leave out those that a privileged container cannot get;
plan the other nodes; add nodes for device files and annotations; check each group; and remove the VFIO nodes in the
mode guest-kernel. No step changes the specification that it gets.
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
from hawse.planner.devices.device_options import DeviceOptions
from hawse.planner.devices.group_checks import check_host, check_tokens, unused_token
from hawse.planner.devices.guest_drivers import take_out
from hawse.planner.devices.iommu_backend import by_file
from hawse.planner.devices.named_groups import find_groups
from hawse.planner.devices.other_nodes import OtherNodes, read_nodes
from hawse.planner.devices.privileged import choose
from hawse.planner.devices.vfio_nodes import add_named, with_groups
from hawse.vfio.allowed import check_allowed
from hawse.vfio.emulated import EmulatedGroup
from hawse.vfio.groups import HostGroup
from hawse.vfio.node import VfioNode
from hawse.vfio.requests import Group, Request, find_request
from hawse.vm.qemu_features import Capabilities


@dataclass(frozen=True)
class DeviceChecks:
    """Checks of devices on this host and in the VM.

    ``present`` are groups that the VM already has. ``fit`` raises :class:`DeviceError` if the VM has no free ports for
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
        """Check whether the last group can be passed together with the others, already checked. Raises DeviceError."""
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
    """The selected devices.

    ``spec`` is the guest's specification with the nodes of the selected devices, with the host's numbers; in the mode
    guest-kernel without VFIO nodes. ``request``
    contains the VFIO nodes and groups, and ``others`` the block devices and misc devices. ``native`` are the groups
    that drivers of the guest kernel use, with the rights of their nodes. ``by_file`` are the groups that QEMU opens by
    their device files.
    """

    spec: Document
    request: Request
    others: OtherNodes
    native: dict[int, dict[str, int]]
    by_file: frozenset[int]
    notes: tuple[Note, ...]


def select_devices(bundle: Bundle, guest: GuestPlan, checks: DeviceChecks, *, role: str) -> DeviceSelection:
    """Select and check the devices. Raises ConfigError, DeviceError or UsageError naming the object, and
    HostError or VmError if QEMU does not answer."""
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
    """The VFIO nodes, and the reasons, by path, for nodes that are left out of a privileged container."""
    devices: Sequence[Device] = linux.devices or ()
    left_out: dict[str, DeviceError] = {}
    if linux.resources and allows_all(linux.resources.devices or ()):
        devices, left_out = choose(devices, checks.find, checks.try_last)
    return checks.find(devices), left_out
