"""Attach VFIO groups to a running container, and detach them."""

from __future__ import annotations

import os
import stat
from contextlib import ExitStack

import msgspec

from hawse.commands.client import call, check_version
from hawse.config import ANNOTATIONS, Config
from hawse.errors import HawseError, StateError, UsageError
from hawse.host.vfio_functions import bind_functions, restore_drivers
from hawse.json_text import Document
from hawse.plan.capacity import Room
from hawse.plan.model import Attachment, PlugStep
from hawse.planner.devices.device_options import DeviceOptions, accepted_risks, device_options
from hawse.planner.devices.group_checks import check_host, check_tokens, to_bind
from hawse.planner.devices.iommu_backend import by_file
from hawse.planner.devices.named_groups import find_groups, is_number, read_address
from hawse.planner.devices.plugs import dma_warning, plug_steps, shape
from hawse.planner.devices.vfio_nodes import planned_nodes
from hawse.planner.vm import ask_qemu
from hawse.state.store import GUEST_DEVICES, STOPPED, Store
from hawse.vfio import obstacles
from hawse.vfio.allowed import check_allowed
from hawse.vfio.bind.targets import exists
from hawse.vfio.emulated import read_table
from hawse.vfio.groups import HostGroup
from hawse.vfio.node import VfioNode
from hawse.vfio.requests import Group, Request, device_files
from hawse.vm.ports import place


def attach(store: Store, targets: list[str], config: Config) -> tuple[list[Document], list[str]]:
    """Attach the groups, all or none. Returns the state entries of their functions, and warnings.

    ``targets`` are numbers of groups, or addresses of functions, each of which stands for its whole group. The host is
    checked for all groups before the first one is attached. Raises DeviceError, StateError or UsageError.
    """
    entries: list[Document] = []
    undo = ExitStack()
    try:
        groups, options = _find_groups(store, targets, config)
        check_version(store, "attach")
        # Check before hawse binds a function: afterwards the function has the driver that hawse chose.
        check_allowed([group for group in groups if isinstance(group, HostGroup)], options.allow)
        if addresses := to_bind(groups, options):
            undo.callback(restore_drivers, store, bind_functions(addresses, store))
        calls, warnings = prepare(store, targets, config)
        for attachment in calls:
            answer = call(store, "attach", attachment)
            undo.callback(call, store, "detach", {"group": attachment["plugs"][0]["group"], "force": False})
            entries += answer if isinstance(answer, list) else []
    except HawseError as failure:
        try:
            undo.close()
        except HawseError as problem:
            raise failure.followed_by(problem) from None
        raise
    return entries, warnings


def prepare(store: Store, targets: list[str], config: Config) -> tuple[list[Document], list[str]]:
    """Plan the attachment without changing anything. Returns the parameters of a monitor call for each group, and
    warnings. Raises the same errors as attach()."""
    groups, options = _find_groups(store, targets, config)
    files = [file for group in groups for file in device_files(group)] if call(store, "wants_files", {}) else []
    room = msgspec.convert(call(store, "room", {}), Room)
    attached_plugs = {group.number: room.shared([group.number], native=options.native) for group in groups}
    new = [group for group in groups if not attached_plugs[group.number]]
    groups_by_file, warnings = by_file(new, files, options, lambda: ask_qemu(config))
    warnings += check_host(new, options)
    check_tokens(new, options, lambda: ask_qemu(config))
    spares = room.spares
    calls = []
    for group in groups:
        plugs = attached_plugs[group.number]
        if not plugs:
            slots = place(shape(group, keep_address=options.keep_addresses), spares)
            spares = [spare for spare in spares if spare.takes_at != slots[0].bus]
            plugs = plug_steps(
                [group], slots, owner=store.name, options=options, by_file=groups_by_file, memory_mib=room.memory_mib
            )
            warnings += dma_warning(plugs)
        calls.append(msgspec.to_builtins(_attachment(group, files, plugs)))
    return calls, warnings


def _find_groups(store: Store, targets: list[str], config: Config) -> tuple[list[Group], DeviceOptions]:
    """Find the groups, and check that none is attached yet. Returns them and the container's device options.

    Raises the same errors as attach().
    """
    state = store.read()
    if state["status"] == STOPPED:
        raise StateError(f"container not running: {store.name} is {state['status']}")
    attached = {entry["host"]["group"] for entry in state.get("vfio", ())}
    for target in targets:
        if not is_number(target) and not exists(read_address(target)):
            _refuse_guest_address(state, target, "it is attached already")
    groups = find_groups(targets, read_table(config.emulated))
    for group in groups:
        if group.number in attached:
            raise StateError(f"group {group.number} is attached to {store.name} already")
        if isinstance(group, HostGroup):
            obstacles.check(group, accepted=accepted_risks(config))
    # All annotations are accepted: they were checked against the configuration when the container was created.
    annotations = {name: text for name, text in (state.get("annotations") or {}).items() if name != GUEST_DEVICES}
    return groups, device_options(config, annotations, allowed=ANNOTATIONS)


def detach(store: Store, targets: list[str], config: Config, *, force: bool) -> None:
    """Detach the groups one after the other, and restore the drivers of functions that hawse bound for the container.

    ``targets`` may name a group several times, by its functions say.

    Raises DeviceError, StateError or UsageError.
    """
    state = store.read()
    by_address = {entry["host"]["address"]: entry["host"]["group"] for entry in state.get("vfio", ())}
    numbers = []
    for target in targets:
        # Prefer the container's record: a device that was removed is missing in the host's sysfs.
        number = int(target) if is_number(target) else by_address.get(read_address(target))
        if number is None:
            _refuse_guest_address(state, target, f"`hawse detach {store.name} {{}}`")
            number = find_groups([target], read_table(config.emulated))[0].number
        numbers.append(number)
    for number in dict.fromkeys(numbers):
        call(store, "detach", {"group": number, "force": force})
        restore_drivers(store, [address for address, group in by_address.items() if group == number])


def _refuse_guest_address(state: Document, target: str, remedy: str) -> None:
    """Raise :class:`UsageError` if the target is the guest's address of a function of the container.

    ``remedy``: "{}" is replaced by the function's name on the host: its address, or its group if it is emulated.
    """
    address = read_address(target)
    for entry in state.get("vfio", ()):
        if entry["guest"]["address"] == address:
            host = entry["host"]
            where = host["address"] or f"the emulated group {host['group']}"
            raise UsageError(
                f"{address} is an address in the guest; on the host this is {where}",
                hint=remedy.format(host["address"] or host["group"]),
            )


def _attachment(group: Group, files: list[VfioNode], plugs: list[PlugStep]) -> Attachment:
    path = f"/dev/vfio/{group.number}"
    mode, uid, gid, numbers = 0o666, 0, 0, (0, 0)
    if isinstance(group, HostGroup) and os.path.exists(path):
        # Engines give the node in the container the mode and the owners of the host's node.
        status = os.stat(path)
        mode, uid, gid = stat.S_IMODE(status.st_mode), status.st_uid, status.st_gid
        numbers = (os.major(status.st_rdev), os.minor(status.st_rdev))
    node = VfioNode(path=path, major=numbers[0], minor=numbers[1], host_group=group.number)
    request = Request((node,), (group,), tuple(file for file in files if file.host_group == group.number))
    return Attachment(plugs=plugs, nodes=planned_nodes(request, plugs), mode=mode, uid=uid, gid=gid)
