"""Giving a running container more VFIO groups, and taking groups from it."""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any

import msgspec

from hawse.commands.client import call, check_version
from hawse.config import ANNOTATIONS, Config
from hawse.errors import HawseError, StateError, UsageError
from hawse.host.vfio_functions import give_back, take
from hawse.plan.capacity import Room
from hawse.plan.model import Attachment, PlugStep
from hawse.planner.devices.iommu_backend import by_file
from hawse.planner.devices.options import DeviceOptions, accepted_risks, device_options
from hawse.planner.devices.vfio import (
    Group,
    check_host,
    check_tokens,
    dma_warning,
    find_groups,
    is_number,
    node_requests,
    plug_steps,
    read_address,
    shape,
    to_bind,
)
from hawse.planner.sandbox import ask_qemu
from hawse.state.store import GUEST_DEVICES, STOPPED, Store
from hawse.vfio import obstacles
from hawse.vfio.allowed import check_allowed
from hawse.vfio.bind.targets import exists
from hawse.vfio.emulated import read_table
from hawse.vfio.groups import HostGroup
from hawse.vfio.requests import Node, Request, device_files
from hawse.vm.ports import place


def attach(store: Store, targets: list[str], config: Config) -> tuple[list[dict[str, Any]], list[str]]:
    """Attach the groups, all or none; what there is to say of their functions, and what to warn of.

    ``targets`` are numbers of groups or addresses of functions, whose groups come whole. Everything that can be wrong
    on the host is looked at first, for all of them. Raises DeviceError, StateError or UsageError.
    """
    entries: list[dict[str, Any]] = []
    undo = ExitStack()
    try:
        groups, options = _wanted(store, targets, config)
        check_version(store, "attach")
        # Before one is bound: the driver that it has then is hawse's choice.
        check_allowed([group for group in groups if isinstance(group, HostGroup)], options.allow)
        if addresses := to_bind(groups, options):
            undo.callback(give_back, store, take(addresses, store))
        calls, warnings = prepare(store, targets, config)
        for wanted in calls:
            answer = call(store, "attach", wanted)
            undo.callback(call, store, "detach", {"group": wanted["plugs"][0]["group"], "force": False})
            entries += answer if isinstance(answer, list) else []
    except HawseError as failure:
        try:
            undo.close()
        except HawseError as problem:
            told = f"{failure.message}; and undoing it failed: {problem.message}"
            raise type(failure)(told, hint=failure.hint) from None
        raise
    return entries, warnings


def prepare(store: Store, targets: list[str], config: Config) -> tuple[list[dict[str, Any]], list[str]]:
    """The calls of the monitor that attach the groups, and what to warn of; nothing is touched. Raises as attach()."""
    groups, options = _wanted(store, targets, config)
    files = [file for group in groups for file in device_files(group)] if call(store, "wants_files", {}) else []
    room = msgspec.convert(call(store, "room", {}), Room)
    there = {group.number: room.shared([group.number], native=options.native) for group in groups}
    new = [group for group in groups if not there[group.number]]
    chosen, warnings = by_file(new, files, options, lambda: ask_qemu(config))
    warnings += check_host(new, options)
    check_tokens(new, options, lambda: ask_qemu(config))
    spares = room.spares
    calls = []
    for group in groups:
        plugs = there[group.number]
        if not plugs:
            slots = place(shape(group, keep_address=options.keep_addresses), spares)
            spares = [spare for spare in spares if spare.takes_at != slots[0].bus]
            plugs = plug_steps(
                [group], slots, owner=store.name, options=options, by_file=chosen, memory_mib=room.memory_mib
            )
            warnings += [warning for warning in [dma_warning(plugs)] if warning]
        calls.append(msgspec.to_builtins(_attachment(group, files, plugs)))
    return calls, warnings


def _wanted(store: Store, targets: list[str], config: Config) -> tuple[list[Group], DeviceOptions]:
    """The groups, none of which the container has, and how it has devices. Raises as attach()."""
    state = store.read()
    if state["status"] == STOPPED:
        raise StateError(f"container not running: {store.name} is {state['status']}")
    have = {entry["host"]["group"] for entry in state.get("vfio", ())}
    for target in targets:
        if not is_number(target) and not exists(read_address(target)):
            _refuse_guest_address(state, target, "it is attached already")
    groups = find_groups(targets, read_table(config.emulated))
    for group in groups:
        if group.number in have:
            raise StateError(f"group {group.number} is attached to {store.name} already")
        if isinstance(group, HostGroup):
            obstacles.check(group, accepted=accepted_risks(config))
    # Its annotations were allowed when it was made.
    asked = {name: text for name, text in (state.get("annotations") or {}).items() if name != GUEST_DEVICES}
    return groups, device_options(config, asked, allowed=ANNOTATIONS)


def detach(store: Store, targets: list[str], config: Config, *, force: bool) -> None:
    """Take the groups from the container, one after the other, and give back what was bound for it of them.

    ``targets`` may name a group several times, by its functions say.

    Raises DeviceError, StateError or UsageError.
    """
    state = store.read()
    by_address = {entry["host"]["address"]: entry["host"]["group"] for entry in state.get("vfio", ())}
    numbers = []
    for target in targets:
        # By what was attached, where it is known: the host may have forgotten a device that has gone.
        number = int(target) if is_number(target) else by_address.get(read_address(target))
        if number is None:
            _refuse_guest_address(state, target, f"`hawse detach {store.name} {{}}`")
            number = find_groups([target], read_table(config.emulated))[0].number
        numbers.append(number)
    for number in dict.fromkeys(numbers):
        call(store, "detach", {"group": number, "force": force})
        give_back(store, [address for address, group in by_address.items() if group == number])


def _refuse_guest_address(state: Mapping[str, Any], target: str, remedy: str) -> None:
    """Raise :class:`UsageError` for an address that a function of the container has only in the guest.

    ``remedy``: "{}" is replaced by the host's name of the function: its address, or its group if it is emulated.
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


def _attachment(group: Group, files: list[Node], plugs: list[PlugStep]) -> Attachment:
    path = f"/dev/vfio/{group.number}"
    mode, uid, gid, numbers = 0o666, 0, 0, (0, 0)
    if isinstance(group, HostGroup) and os.path.exists(path):
        # As engines do: the node in the container is as the host's.
        status = os.stat(path)
        mode, uid, gid = stat.S_IMODE(status.st_mode), status.st_uid, status.st_gid
        numbers = (os.major(status.st_rdev), os.minor(status.st_rdev))
    request = Request(
        (Node(path, *numbers, group.number),), (group,), tuple(file for file in files if file.group == group.number)
    )
    return Attachment(plugs=plugs, nodes=node_requests(request, plugs), mode=mode, uid=uid, gid=gid)
