"""Groups of a plan: what the port plan needs to know of them, and what QEMU is told to plug."""

from __future__ import annotations

from collections.abc import Sequence

from hawse.container.options import DeviceOptions
from hawse.sandbox import plan
from hawse.vfio import memlock
from hawse.vfio.emulated import MODELS, EmulatedGroup
from hawse.vfio.groups import HostGroup, check_free, check_token, check_viable, reset_warning
from hawse.vm.arguments import NETWORK_MODELS, device_id, plug_emulated, plug_host
from hawse.vm.ports import FunctionShape, GroupShape, Slot

Group = HostGroup | EmulatedGroup
_DEFAULT = DeviceOptions()


def shape(group: Group, *, keep_address: bool = True) -> GroupShape:
    """What the port plan needs to know of a group; ``keep_address``: its function's address is to be the host's."""
    if isinstance(group, EmulatedGroup):
        # The models' memory BARs fit the least window that a port has; only I/O windows are scarce.
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
    groups: Sequence[Group], slots: Sequence[Slot], *, owner: str, options: DeviceOptions = _DEFAULT
) -> list[plan.PlugStep]:
    """What is plugged where, in the order of the slots."""
    by_number = {group.number: group for group in groups}
    steps = []
    for slot in slots:
        group = by_number[slot.group]
        if isinstance(group, EmulatedGroup):
            label = f"emulated {group.models[slot.index]}"
            model = group.models[slot.index]
            commands = plug_emulated(slot, model, network=model in NETWORK_MODELS, owner=owner)
            host, note = "", ""
        else:
            function = group.functions[slot.index]
            host = label = function.address
            # QEMU is told a token where one is asked for alone: the kernel refuses one that is not.
            token = options.vf_token if function.physical_driver == "vfio-pci" else ""
            commands = plug_host(slot, host, rom=options.rom, token=token)
            note = _note(group, slot, keep=options.keep_addresses)
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
            )
        )
    return steps


def check_host(groups: Sequence[Group], options: DeviceOptions) -> list[str]:
    """Look at everything on the host that can be wrong with these groups; what to warn of.

    Raises :class:`DeviceError` naming group and function.
    """
    hosts = [group for group in groups if isinstance(group, HostGroup)]
    for group in hosts:
        check_viable(group)
        check_token(group, options.vf_token)
        check_free(group)
    warnings = [reset_warning(group) for group in hosts]
    if hosts:
        warnings.append(memlock.warning(*memlock.read()))
    return [warning for warning in warnings if warning]


def mirrored_bus(group: HostGroup) -> int | str:
    """The bus that lets the group's function have its address in the guest too, or why it cannot have it.

    A root port of the guest has slot 0 alone, and the guest one PCI domain; bus 00 is its own.
    """
    if len(group.functions) > 1:
        return f"group {group.number} has {len(group.functions)} functions, which are behind one bridge in the guest"
    [function] = group.functions
    domain, bus, slot = function.address.rsplit(".", 1)[0].split(":")
    if int(domain, 16):
        return f"its domain is {domain}, and the guest has 0000 alone"
    if int(bus, 16) == 0:
        return "it is on bus 00, which is the guest's own"
    if slot != "00" or not function.address.endswith(".0"):
        return f"it is {slot}.{function.address[-1]} on its bus, and a port of the guest has 00.0 alone"
    return int(bus, 16)


def _note(group: HostGroup, slot: Slot, *, keep: bool) -> str:
    if group.functions[slot.index].address == slot.guest_address:
        return ""
    if not keep:
        return "devices.keep_addresses is off"
    reason = mirrored_bus(group)
    return reason if isinstance(reason, str) else f"bus {reason:02x} of the guest is taken"
