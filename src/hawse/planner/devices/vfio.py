"""Groups of a plan: what the port plan needs to know of them, and what QEMU is told to plug."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Mapping, Sequence

from msgspec.structs import replace

from hawse.errors import DeviceError, UsageError
from hawse.json_text import Document
from hawse.notes import Note, debug, warning
from hawse.oci.document import devices_of, rules_of, with_devices
from hawse.plan import model as plan
from hawse.planner.devices.options import KEEP_ADDRESSES, VF_TOKEN, DeviceOptions
from hawse.vfio import obstacles, resets, sysfs
from hawse.vfio.bind.targets import parse_address
from hawse.vfio.device_rules import of_node
from hawse.vfio.driver_names import is_vfio
from hawse.vfio.emulated import MODELS, EmulatedGroup
from hawse.vfio.groups import Function, HostGroup, check_free, check_viable, read_group
from hawse.vfio.host import dma_mappings, dma_width, locked_memory
from hawse.vfio.node import VfioNode, container_node, group_node
from hawse.vfio.requests import Request
from hawse.vm.arguments import NETWORK_MODELS, device_id, plug_emulated, plug_host
from hawse.vm.capabilities import Capabilities
from hawse.vm.ports import FunctionShape, GroupShape, Slot

Group = HostGroup | EmulatedGroup
_DEFAULT = DeviceOptions()
_RIGHTS = ("fileMode", "uid", "gid")


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
    groups: Sequence[Group],
    slots: Sequence[Slot],
    *,
    owner: str,
    options: DeviceOptions = _DEFAULT,
    by_file: Collection[int] = (),
    memory_mib: int = 0,
) -> list[plan.PlugStep]:
    """What is plugged where, in the order of the slots; the groups ``by_file`` by their device files. ``memory_mib``:
    of the VM."""
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
            token = _token(function, options)
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
    """Where a function is in the guest. ``asked``: an annotation asks for its address."""
    text = f"{step.label} is {step.guest_address} in the guest{': ' if step.note else ''}{step.note}"
    return warning(f"annotations: {KEEP_ADDRESSES}: {text}") if step.note and asked else debug(text)


def dma_warning(plugs: Sequence[plan.PlugStep], *, root: str = "") -> list[str]:
    """A warning about a limit of DMA mappings that is too low and cannot be raised."""
    entries = max((plug.dma_entries for plug in plugs), default=0)
    text = dma_mappings.warning(entries, root=root) if entries else ""
    return [text] if text else []


def check_host(groups: Sequence[Group], options: DeviceOptions, *, root: str = "") -> list[str]:
    """Look at everything on the host that can be wrong with these groups; what to warn of.

    Raises :class:`DeviceError` naming group and function.
    """
    hosts = [group for group in groups if isinstance(group, HostGroup)]
    for group in hosts:
        obstacles.check(group, accepted=options.accepted, root=root)
        obstacles.check_token(group, options.vf_token)
        if to_bind([group], options):
            continue  # what can be wrong with that is looked at when it is bound
        check_viable(group)
        check_free(group, root=root)
    warnings = [resets.warning(group, root=root) for group in hosts]
    if hosts:
        warnings += [
            locked_memory.warning(*locked_memory.read(), confined=options.confined),
            dma_width.warning(root=root),
        ]
    return [warning for warning in warnings if warning]


def check_tokens(groups: Sequence[Group], options: DeviceOptions, ask: Callable[[], Capabilities]) -> None:
    """Raise :class:`DeviceError` for a function that QEMU cannot open: it gives tokens from 8.1 on. ``ask`` asks it."""
    hosts = [group for group in groups if isinstance(group, HostGroup)]
    for function in [function for group in hosts for function in group.functions if _token(function, options)]:
        can = ask()
        if "vf-token" not in can.vfio_properties:
            raise DeviceError(
                f"{function.address} is opened with a token alone, and QEMU {can.version} cannot give one",
                hint="use QEMU 8.1 or a later one: vm.qemu in the configuration",
            )


def unused_token(groups: Sequence[Group], options: DeviceOptions) -> list[str]:
    """A warning about a token that no function is opened with."""
    hosts = [group for group in groups if isinstance(group, HostGroup)]
    if not options.vf_token or any(_token(function, options) for group in hosts for function in group.functions):
        return []
    return [
        f"annotations: {VF_TOKEN} has no effect: the physical function of none of the container's devices is on "
        "vfio-pci [remove it]"
    ]


def _token(function: Function, options: DeviceOptions) -> str:
    """The token that a function is opened with, "" for none: the kernel refuses one that was not asked for."""
    return options.vf_token if function.physical_driver == "vfio-pci" else ""


def find_groups(targets: Sequence[str], emulated: Mapping[int, EmulatedGroup], *, root: str = "") -> list[Group]:
    """The groups of numbers and addresses, each once. Raises :class:`UsageError` or :class:`DeviceError`."""
    groups: dict[int, Group] = {}
    for target in targets:
        if is_number(target):
            number = int(target)
        else:
            address = read_address(target)
            found = sysfs.iommu_group(address, root=root)
            if found is None:
                there = os.path.exists(f"{root}/sys/bus/pci/devices/{address}")
                why = "is in no IOMMU group" if there else "is no PCI function of this host"
                raise DeviceError(f"{address} {why}", hint="`hawse devices` lists those that can be passed")
            number = found
        groups[number] = emulated[number] if number in emulated else read_group(number, root=root)
    return list(groups.values())


def read_address(target: str) -> str:
    """The address of a target that is no number of a group. Raises :class:`UsageError`."""
    try:
        return parse_address(target)
    except UsageError:
        raise UsageError(
            f"{target[:80]!r} is neither a group's number nor a PCI address",
            hint="give 17 or 0000:3b:00.0: `hawse devices` lists them",
        ) from None


def is_number(target: str) -> bool:
    """Whether it names a group."""
    return target.isascii() and target.isdigit() and len(target) < 10


def add_named(request: Request, groups: Sequence[Group], spec: Document) -> tuple[Request, Document]:
    """The request and the specification with the groups that an annotation names, and their nodes."""
    there = {node.host_group for node in request.nodes}
    wanted = [group for group in groups if group.number not in there]
    nodes = [container_node()] if wanted and None not in there else []
    nodes += [group_node(group.number) for group in wanted]
    for node in nodes:
        allowed = {"allow": True, "type": "c", "major": node.major, "minor": node.minor, "access": "rwm"}
        spec = _with_node(spec, node, {"fileMode": 0o666}, [allowed])
    return Request((*request.nodes, *nodes), (*request.groups, *wanted), request.files), spec


def with_groups(request: Request, spec: Document) -> tuple[Request, Document]:
    """The request and the specification with the groups' nodes beside device files, with the rights and rules of these.

    Programs that know groups alone, DPDK and SPDK, find theirs, and so does everyone in a guest whose kernel has no
    other: Debian's are built without CONFIG_IOMMUFD.
    """
    if not request.files:
        return request, spec
    rights = {device["path"]: device for device in devices_of(spec)}
    nodes = list(request.nodes)
    for file in request.files:
        if file.host_group in {node.host_group for node in nodes}:
            continue
        node = container_node() if file.host_group is None else group_node(file.host_group)
        nodes.append(node)
        rules = of_node(rules_of(spec), file.host_numbers, node.host_numbers)
        own = {key: rights[file.path][key] for key in _RIGHTS if key in rights[file.path]}
        spec = _with_node(spec, node, own, rules)
    return Request(tuple(nodes), request.groups, request.files), spec


def planned_nodes(request: Request, plugs: Sequence[plan.PlugStep]) -> list[VfioNode]:
    """The nodes of a request; device files with QEMU's id of the function behind each.

    The functions of an emulated group have no address: its device file is that of function 0, which is plugged last.
    """
    ids: dict[tuple[int | None, str], str] = {(plug.group, plug.host): plug.device for plug in plugs}
    files = [replace(file, device=ids.get((file.host_group, file.function), "")) for file in request.files]
    return [*request.nodes, *files]


def _with_node(spec: Document, node: VfioNode, rights: Document, rules: Sequence[Document]) -> Document:
    """The specification with a node more, and with rules for it at the end."""
    device = {"path": node.path, **rights, "type": "c", "major": node.major, "minor": node.minor}
    return with_devices(spec, [*devices_of(spec), device], [*rules_of(spec), *rules])


def to_bind(groups: Sequence[Group], options: DeviceOptions) -> list[str]:
    """The functions of these groups that are to be given to a VFIO driver first: none, where hawse is not to do it."""
    if not options.managed:
        return []
    hosts = [group for group in groups if isinstance(group, HostGroup)]
    return [f.address for group in hosts for f in group.functions if not is_vfio(f.driver)]


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
