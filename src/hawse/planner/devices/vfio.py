"""VFIO groups of a plan: their shapes for the port plan, their checks on the host, and QEMU's plug commands."""

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
    """The note about a function's address in the guest. ``asked``: an annotation requests the host's address."""
    text = f"{step.label} is {step.guest_address} in the guest{': ' if step.note else ''}{step.note}"
    return warning(f"annotations: {KEEP_ADDRESSES}: {text}") if step.note and asked else debug(text)


def dma_warning(plugs: Sequence[plan.PlugStep], *, root: str = "") -> list[str]:
    """A warning about a limit of DMA mappings that is too low and cannot be raised."""
    entries = max((plug.dma_entries for plug in plugs), default=0)
    text = dma_mappings.warning(entries, root=root) if entries else ""
    return [text] if text else []


def check_host(groups: Sequence[Group], options: DeviceOptions, *, root: str = "") -> list[str]:
    """Check everything on the host that these groups depend on. Returns warnings.

    Raises :class:`DeviceError` naming the group and the function.
    """
    hosts = [group for group in groups if isinstance(group, HostGroup)]
    for group in hosts:
        obstacles.check(group, accepted=options.accepted, root=root)
        obstacles.check_token(group, options.vf_token)
        if to_bind([group], options):
            continue  # these checks are made when the functions are bound
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
    """Raise :class:`DeviceError` if a function needs a token and QEMU, asked by ``ask``, is older than 8.1."""
    hosts = [group for group in groups if isinstance(group, HostGroup)]
    for function in [function for group in hosts for function in group.functions if _token(function, options)]:
        can = ask()
        if "vf-token" not in can.vfio_properties:
            raise DeviceError(
                f"{function.address} can be opened only with a token, and QEMU {can.version} does not support tokens",
                hint="use QEMU 8.1 or later: set vm.qemu in the configuration",
            )


def unused_token(groups: Sequence[Group], options: DeviceOptions) -> list[str]:
    """A warning about a token that no function needs."""
    hosts = [group for group in groups if isinstance(group, HostGroup)]
    if not options.vf_token or any(_token(function, options) for group in hosts for function in group.functions):
        return []
    return [
        f"annotations: {VF_TOKEN} has no effect: no device of the container has a physical function that is bound to "
        "vfio-pci [remove it]"
    ]


def _token(function: Function, options: DeviceOptions) -> str:
    """The token to open a function, "" for none: the kernel refuses a token that it did not request."""
    return options.vf_token if function.physical_driver == "vfio-pci" else ""


def find_groups(targets: Sequence[str], emulated: Mapping[int, EmulatedGroup], *, root: str = "") -> list[Group]:
    """Find groups by number or address, each once. Raises :class:`UsageError` or :class:`DeviceError`."""
    groups: dict[int, Group] = {}
    for target in targets:
        if is_number(target):
            number = int(target)
        else:
            address = read_address(target)
            iommu_group = sysfs.iommu_group(address, root=root)
            if iommu_group is None:
                exists = os.path.exists(f"{root}/sys/bus/pci/devices/{address}")
                why = "is not in an IOMMU group" if exists else "is not a PCI function of this host"
                raise DeviceError(f"{address} {why}", hint="`hawse devices` lists those that can be passed")
            number = iommu_group
        groups[number] = emulated[number] if number in emulated else read_group(number, root=root)
    return list(groups.values())


def read_address(target: str) -> str:
    """Parse a target that is a PCI address. Raises :class:`UsageError`."""
    try:
        return parse_address(target)
    except UsageError:
        raise UsageError(
            f"{target[:80]!r} is neither a group's number nor a PCI address",
            hint="give 17 or 0000:3b:00.0: `hawse devices` lists them",
        ) from None


def is_number(target: str) -> bool:
    """Whether a target is the number of a group."""
    return target.isascii() and target.isdigit() and len(target) < 10


def add_named(request: Request, groups: Sequence[Group], spec: Document) -> tuple[Request, Document]:
    """Add the groups that an annotation lists, and their nodes, to the request and the specification."""
    present = {node.host_group for node in request.nodes}
    new = [group for group in groups if group.number not in present]
    nodes = [container_node()] if new and None not in present else []
    nodes += [group_node(group.number) for group in new]
    for node in nodes:
        allowed = {"allow": True, "type": "c", "major": node.major, "minor": node.minor, "access": "rwm"}
        spec = _with_node(spec, node, {"fileMode": 0o666}, [allowed])
    return Request((*request.nodes, *nodes), (*request.groups, *new), request.files), spec


def with_groups(request: Request, spec: Document) -> tuple[Request, Document]:
    """Add the groups' nodes for requested device files to the request and the specification, with the same rights.

    Programs that support only groups, such as DPDK and SPDK, need these nodes. So does every program if the guest
    kernel does not support device files: Debian's kernels are built without CONFIG_IOMMUFD.
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
    """The nodes of a request; device files contain QEMU's id of their function.

    The functions of an emulated group have no host address: its device file belongs to function 0, which is plugged
    last.
    """
    ids: dict[tuple[int | None, str], str] = {(plug.group, plug.host): plug.device for plug in plugs}
    files = [replace(file, device=ids.get((file.host_group, file.function), "")) for file in request.files]
    return [*request.nodes, *files]


def _with_node(spec: Document, node: VfioNode, rights: Document, rules: Sequence[Document]) -> Document:
    """The specification with an additional node, and with rules for it at the end."""
    device = {"path": node.path, **rights, "type": "c", "major": node.major, "minor": node.minor}
    return with_devices(spec, [*devices_of(spec), device], [*rules_of(spec), *rules])


def to_bind(groups: Sequence[Group], options: DeviceOptions) -> list[str]:
    """The functions of these groups that hawse binds to a VFIO driver first; none if ``managed`` is off."""
    if not options.managed:
        return []
    hosts = [group for group in groups if isinstance(group, HostGroup)]
    return [f.address for group in hosts for f in group.functions if not is_vfio(f.driver)]


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
