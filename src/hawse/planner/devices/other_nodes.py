"""Plan the device nodes other than VFIO nodes: the disks to pass, and the devices of the guest's specification."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial

from hawse.errors import ConfigError, DeviceError
from hawse.json_text import Document
from hawse.nodes import block, character
from hawse.nodes.block import BlockDevice
from hawse.nodes.decide import Decision, Host, Wish, decide, is_whole
from hawse.nodes.numbers import Numbers, strangers, without_strangers
from hawse.oci.document import devices_of, rules_of, with_devices
from hawse.oci.guest.mounts import BoundNode
from hawse.oci.guest.specification import GuestPlan
from hawse.oci.load import Bundle
from hawse.oci.types import Device, DeviceRule
from hawse.plan.model import DiskPlan
from hawse.planner.devices.privileged import leave_out
from hawse.vfio.requests import Request, find_request


@dataclass(frozen=True)
class OtherNodes:
    """Block devices, misc devices with their numbers on the host, and warnings."""

    disks: list[DiskPlan] = field(default_factory=list)
    named: list[tuple[int, int, str]] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


def read_nodes(
    bundle: Bundle,
    guest: GuestPlan,
    request: Request,
    left_out: dict[str, DeviceError],
    *,
    allow: Sequence[str],
    root: str = "",
) -> tuple[OtherNodes, Document]:
    """Plan these nodes; also returns the guest's specification. ``left_out`` are VFIO nodes that are not passed.

    ``allow`` are the patterns of devices that may be passed. Raises :class:`DeviceError` or :class:`ConfigError` naming
    a node that is refused.
    """
    linux = bundle.spec.linux
    listed: Sequence[Device] = (linux.devices or ()) if linux else ()
    rules: Sequence[DeviceRule] = (linux.resources.devices or ()) if linux and linux.resources else ()
    name = f"{bundle.path}/config.json"
    vfio = (*request.nodes, *request.files)
    taken = {node.path for node in vfio} | left_out.keys()
    wishes = [_wish(device) for device in listed if device.path not in taken]
    wishes += [_bound(name, node, root) for node in guest.mounts.bound]
    decision = decide(wishes, rules, disk_host(allow, root), whole=is_whole(listed, rules))
    numbers = {("c", node.major, node.minor) for node in vfio} | _passed(decision)
    spec = with_devices(guest.spec, devices_of(guest.spec), without_strangers(rules_of(guest.spec), numbers))
    spec, omitted = leave_out(spec, left_out | decision.left_out)
    others = OtherNodes(
        [_plan(disk.device, writable=disk.writable) for disk in decision.disks],
        [(*numbers, name) for numbers, name in decision.named.items()],
        [text for text in (omitted, *strangers(rules_of(bundle.raw), numbers)) if text],
    )
    return others, spec


def _wish(device: Device) -> Wish:
    return Wish(f"linux.devices: {device.path}", device.path, device.type, device.major or 0, device.minor or 0)


def _bound(name: str, node: BoundNode, root: str) -> Wish:
    """Convert a bound node. Raises :class:`ConfigError` for a VFIO node: these are supported in linux.devices only."""
    where = f"mounts[{node.index}].source: {node.source[:200]}"
    kind, major, minor = (node.device[key] for key in ("type", "major", "minor"))
    device = Device(path=node.destination, type=kind, major=major, minor=minor)
    vfio = find_request([device], emulated={}, root=root)
    if vfio.nodes or vfio.files:
        raise ConfigError(
            f"{name}: {where} is a VFIO device of the host, which cannot be passed by a mount",
            hint="list it in linux.devices: use --device instead of --volume",
        )
    return Wish(where, node.destination, kind, major, minor, usable=not node.nodev)


def disk_host(allow: Sequence[str], root: str) -> Host:
    """Questions about the host's devices. Block devices that the patterns do not allow are refused."""

    def read(major: int, minor: int) -> BlockDevice:
        device = block.read(major, minor, root=root)
        block.check_allowed(device, allow)
        return device

    return Host(read, partial(character.read, root=root))


def _passed(decision: Decision) -> set[Numbers]:
    disks: set[Numbers] = {("b", disk.device.major, disk.device.minor) for disk in decision.disks}
    return disks | {("c", *numbers) for numbers in decision.named}


def _plan(device: BlockDevice, *, writable: bool) -> DiskPlan:
    return DiskPlan(
        major=device.major,
        minor=device.minor,
        name=device.name,
        writable=writable,
        logical=device.logical,
        physical=device.physical,
    )
