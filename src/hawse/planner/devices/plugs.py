"""The PCI functions of VFIO groups in the plan: their shapes for the port plan, and QEMU's commands to plug them."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from hawse.notes import Note, debug, warning
from hawse.plan import model as plan
from hawse.planner.devices.device_options import KEEP_ADDRESSES, DeviceOptions
from hawse.planner.devices.group_checks import token_of
from hawse.vfio.emulated import MODELS, EmulatedGroup
from hawse.vfio.groups import HostGroup
from hawse.vfio.host import dma_mappings
from hawse.vfio.requests import Group
from hawse.vm.arguments import NETWORK_MODELS, device_id, plug_emulated, plug_host
from hawse.vm.ports import FunctionShape, GroupShape, Slot

_DEFAULT = DeviceOptions()


def shape(group: Group, *, keep_address: bool = True) -> GroupShape:
    """The shape of a group for the port plan. ``keep_address``: its function gets the same address as on the host."""
    if isinstance(group, EmulatedGroup):
        # The models' memory BARs fit into the smallest window of a port; only I/O windows are scarce.
        functions = tuple(FunctionShape(io=32 if MODELS[model] else 0) for model in group.models)
        return GroupShape(group.number, functions, emulated=True)
    bus = mirrored_bus(group) if keep_address else None
    return GroupShape(
        group.number,
        tuple(
            FunctionShape(
                memory=tuple(b.size for b in f.bars if not b.is_io and not (b.is_64bit and b.is_prefetchable)),
                prefetchable=tuple(b.size for b in f.bars if b.is_64bit and b.is_prefetchable),
                io=sum(b.size for b in f.bars if b.is_io),
            )
            for f in group.functions
        ),
        bus=bus if isinstance(bus, int) else None,
    )


def plug_steps(
    groups: Sequence[Group],
    slots: Sequence[Slot],
    *,
    owner: str,
    options: DeviceOptions = _DEFAULT,
    by_file: Collection[int] = (),
    memory_mib: int = 0,
) -> list[plan.PlugStep]:
    """The plug steps in the order of the slots.

    QEMU opens the groups in ``by_file`` by their device files. ``memory_mib`` is the memory of the VM.
    """
    by_number = {group.number: group for group in groups}
    steps = []
    for slot in slots:
        group = by_number[slot.group]
        if isinstance(group, EmulatedGroup):
            label = f"emulated {group.models[slot.index]}"
            model = group.models[slot.index]
            commands = plug_emulated(slot, model, network=model in NETWORK_MODELS, owner=owner)
            host, note = "", ""
            bars: list[tuple[int, int]] = []
        else:
            function = group.functions[slot.index]
            host = label = function.address
            token = token_of(function, options)
            commands = plug_host(slot, host, rom=options.rom, token=token, by_file=slot.group in by_file)
            note = _note(group, slot, keep=options.keep_addresses)
            bars = [(bar.index, bar.size) for bar in function.bars]
        steps.append(
            plan.PlugStep(
                group=slot.group,
                label=label,
                host=host,
                note=note,
                commands=commands,
                device=device_id(slot),
                bus=slot.bus,
                guest_address=slot.guest_address,
                bars=bars,
                dma_entries=dma_mappings.entries(memory_mib) if host and slot.group not in by_file else 0,
                unsafe_interrupts=options.accepted.unsafe_interrupts,
            )
        )
    return steps


def describe(step: plan.PlugStep, *, asked: bool) -> Note:
    """The note about a function's address in the guest. ``asked``: an annotation requests the host's address."""
    text = f"{step.label} is {step.guest_address} in the guest{': ' if step.note else ''}{step.note}"
    return warning(f"annotations: {KEEP_ADDRESSES}: {text}") if step.note and asked else debug(text)


def dma_warning(plugs: Sequence[plan.PlugStep], *, root: str = "") -> list[str]:
    """A warning about a limit of DMA mappings that is too low and cannot be raised."""
    entries = max((plug.dma_entries for plug in plugs), default=0)
    text = dma_mappings.warning(entries, root=root) if entries else ""
    return [text] if text else []


def mirrored_bus(group: HostGroup) -> int | str:
    """The guest's bus on which the group's function keeps its host address, or the reason why it cannot keep it.

    A root port has only slot 0. The guest has a single PCI domain, and its bus 00 is the root bus.
    """
    if len(group.functions) > 1:
        return f"group {group.number} has {len(group.functions)} functions, which share one bridge in the guest"
    [function] = group.functions
    domain, bus, slot = function.address.rsplit(".", 1)[0].split(":")
    if int(domain, 16):
        return f"its domain is {domain}, and the guest has only domain 0000"
    if int(bus, 16) == 0:
        return "it is on bus 00, which is the root bus in the guest"
    if slot != "00" or not function.address.endswith(".0"):
        return f"it is {slot}.{function.address[-1]} on its bus, and a port of the guest has only 00.0"
    return int(bus, 16)


def _note(group: HostGroup, slot: Slot, *, keep: bool) -> str:
    if group.functions[slot.index].address == slot.guest_address:
        return ""
    if not keep:
        return "devices.keep_addresses is off"
    reason = mirrored_bus(group)
    return reason if isinstance(reason, str) else f"bus {reason:02x} of the guest is already in use"
