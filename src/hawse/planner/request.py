"""Read what a container requests from its bundle, and check it on this host, before its devices are placed."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

from hawse.config import Config
from hawse.host import network_namespace, selinux
from hawse.notes import Note, noted
from hawse.oci.guest.host_sockets import patterns_of
from hawse.oci.guest.specification import GuestPlan, plan_guest
from hawse.oci.load import Bundle
from hawse.oci.pods import read_role
from hawse.planner import hugepages
from hawse.planner.devices.device_options import DeviceOptions, device_options
from hawse.planner.devices.selection import DeviceChecks, DeviceSelection, select_devices
from hawse.planner.vm import ask_qemu
from hawse.planner.vm_size import check_lists
from hawse.vfio.emulated import read_table
from hawse.vfio.requests import Group
from hawse.vm.size import host_size

Fit = Callable[[Sequence[Group], DeviceOptions, str], object]
"""Raises :class:`DeviceError` if the VM has no free ports for groups; the last argument is the container's role."""


@dataclass(frozen=True)
class ContainerRequest:
    """What a container requests.

    ``hugepages`` are pairs of page size in KiB and count that the guest reserves for the container; ``vm_hugepages``
    are those that a new VM for it needs memory for. ``role`` is its role in a pod (:mod:`hawse.oci.pods`).
    """

    guest: GuestPlan
    devices: DeviceSelection
    options: DeviceOptions
    role: str
    hugepages: tuple[tuple[int, int], ...]
    vm_hugepages: tuple[tuple[int, int], ...]
    notes: tuple[Note, ...]

    @property
    def groups(self) -> tuple[Group, ...]:
        """The VFIO groups that the container requests."""
        return self.devices.request.groups


def read_request(
    bundle: Bundle, config: Config, fit: Fit, *, name: str, present: Collection[int] = ()
) -> ContainerRequest:
    """Read and check the request. ``present`` are the groups that the VM already has.

    Raises ConfigError, DeviceError, HostError, UsageError and VmError.
    """
    annotations = bundle.spec.annotations or {}
    check_lists(bundle)
    role, _ = read_role(annotations, bundle.process.args)
    forwarded = patterns_of(annotations, config.share.forward_sockets)
    guest = plan_guest(bundle, container=name, role=role, forwarded=forwarded)
    selinux.check(f"{bundle.path}/config.json", guest.label)
    notes = list(guest.notes)
    with noted(notes):
        if guest.namespaces.network:
            os.close(network_namespace.open_path(guest.namespaces.network))
        options = device_options(config, annotations)
        emulated = read_table(config.emulated)
        checks = DeviceChecks(
            options, emulated, present, fit=lambda groups: fit(groups, options, role), ask=lambda: ask_qemu(config)
        )
        devices = select_devices(bundle, guest, checks, role=role)
        notes += devices.notes
        asked = hugepages.asked_by(guest, config, annotations)
        reserved = hugepages.decide(asked, role=role, memory_mib=config.vm.memory_mib, host_mib=host_size()["host_mib"])
    return ContainerRequest(
        guest=guest,
        devices=devices,
        options=options,
        role=role,
        hugepages=reserved,
        vm_hugepages=hugepages.room(asked, reserved, role=role),
        notes=tuple(notes),
    )
