"""From a bundle and the configuration to the plan of a sandbox: all checks of the host, nothing touched."""

from __future__ import annotations

import getpass
import os
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import msgspec

from hawse.config import Config
from hawse.errors import DeviceError, HostError
from hawse.host import network_namespace, selinux
from hawse.linux import attributes, oom_score
from hawse.linux import capabilities as rights
from hawse.oci.device_rules import allows_all
from hawse.oci.guest import pci_environment
from hawse.oci.guest.host_sockets import patterns_of
from hawse.oci.guest.specification import GuestPlan, plan_guest
from hawse.oci.limits.cgroups import CgroupPlan, HostLimits, default_path, plan_cgroup, vm_limits
from hawse.oci.load import Bundle
from hawse.oci.pods import SANDBOX, SINGLE, read_role
from hawse.oci.process.inherited import Inherited
from hawse.oci.process.notify_socket import serve
from hawse.oci.types import Device
from hawse.plan import model as plan
from hawse.plan.capacity import Room
from hawse.planner import cgroup_limits
from hawse.planner import hugepages as pages
from hawse.planner.confinement import plan_jail
from hawse.planner.devices.guest_drivers import drivers, take_out
from hawse.planner.devices.iommu_backend import by_file
from hawse.planner.devices.options import DeviceOptions, device_options
from hawse.planner.devices.other_nodes import Nodes, read_nodes
from hawse.planner.devices.privileged import choose
from hawse.planner.devices.vfio import (
    Group,
    add_named,
    check_host,
    check_tokens,
    describe,
    dma_warning,
    find_groups,
    node_requests,
    plug_steps,
    shape,
    to_bind,
    unused_token,
    with_groups,
)
from hawse.planner.kernel_modules import SHARE as MODULES
from hawse.planner.kernel_modules import check_loaded, find_image, modules_share
from hawse.planner.notify_target import find_notified
from hawse.planner.vm_size import check_lists, check_size, limits_of
from hawse.state.steps import COMMAND, process_start
from hawse.vfio.allowed import check_allowed
from hawse.vfio.emulated import EmulatedGroup, read_table
from hawse.vfio.groups import HostGroup
from hawse.vfio.host import dma_width
from hawse.vfio.requests import Node, Request, find_request
from hawse.vm import acceleration as accel
from hawse.vm import capabilities, templates, virtiofsd
from hawse.vm import host_hugepages as hugepages
from hawse.vm import nvme_disks as disks
from hawse.vm.ports import MIB, PortPlan, Slot, place, plan_ports
from hawse.vm.size import Limits, host_size, machine_size

# Seconds to wait for a guest's report and for a device, by acceleration: without KVM a guest is twenty times slower.
# Podman gives a creation up after 240 s, with no word of why (libpod/define/config.go, ContainerCreateTimeout): less
# than that, so that ours comes first.
_BOOT = {"kvm": 30.0, "tcg": 180.0}
_DEVICE = {"kvm": 15.0, "tcg": 120.0}
#: A pod's machine: ports for the groups of all its containers, and of those the ones for groups of several functions.
POD_PORTS, POD_BRIDGES = 16, 2


class Log(Protocol):
    """Where what the user should know goes."""

    def warning(self, message: str) -> None: ...
    def debug(self, message: str) -> None: ...


def plan_sandbox(
    bundle: Bundle, config: Config, *, name: str, log: Log, timeline: str = "", systemd: bool = False, notify: str = ""
) -> plan.SandboxPlan:
    """The plan of a sandbox and its first container; ``timeline`` is the file for its start's trace, ``notify`` the
    caller's NOTIFY_SOCKET.

    Raises ConfigError, DeviceError, ImageError or HostError: every fault that shows before QEMU starts.
    """
    # The devices of a pod come with its containers, when its machine runs.
    pod = {"least": POD_PORTS, "bridges": POD_BRIDGES, "spare_window": config.devices.pod_window_mib * MIB}

    def fit(groups: Sequence[Group], options: DeviceOptions, role: str, disks: int = 0) -> PortPlan:
        shapes = [shape(group, keep_address=options.keep_addresses) for group in groups]
        return plan_ports(shapes, disks=disks, **pod if role == SANDBOX else {})

    wanted = _read(bundle, config, fit, name=name, log=log)
    groups, options = wanted.request.groups, wanted.options
    ports = fit(groups, options, wanted.role, len(wanted.nodes.disks))
    limits = limits_of(bundle, role=wanted.role, hugepages=wanted.room)
    size = machine_size(config.vm.memory_mib, config.vm.cpus, limits, **host_size())
    machine = plan_machine(config, groups, log, ports, size=size)
    plugs = plug_steps(
        groups, ports.slots, owner=name, options=options, by_file=wanted.by_file, memory_mib=machine.memory_mib
    )
    if warning := dma_warning(plugs):
        log.warning(warning)
    machine = msgspec.structs.replace(machine, label=wanted.guest.label, modules=f"{name}/{MODULES}")
    machine = msgspec.structs.replace(machine, oom_score_adj=_oom_score(wanted.guest.spec))
    # Those that a later container of the pod or an attach may bring have room too.
    disk_mib = disks.total_mib(model for models in config.emulated.values() for model in models)
    of_vm = vm_limits(machine.memory_mib + disk_mib, config.vm.overhead_mib)
    cgroup = _cgroup(bundle, name, systemd=systemd, of_vm=of_vm, pod=wanted.role == SANDBOX)
    if machine.page_kib:
        pages.check_cgroups(cgroup.path, machine.memory_mib, machine.page_kib)
    for warning in check_size(machine, limits, cgroup, hugepages=wanted.hugepages, overhead_mib=config.vm.overhead_mib):
        log.warning(warning)
    if options.cold and plugs:
        # What is part of a machine at its boot would be part of its template.
        cold = [command for step in plugs for command in step.commands]
        machine = msgspec.structs.replace(machine, cold=cold, template=None)
        plugs = [msgspec.structs.replace(step, cold=True) for step in plugs]
    container = _container(wanted, bundle, config, name=name, plugs=plugs, log=log, cgroup=cgroup, notify=notify)
    container["shares"].append(modules_share(machine.kernel))
    return plan.SandboxPlan(
        **container,
        machine=machine,
        ports=list(ports.ports),
        network_port=ports.network,
        pod=wanted.role == SANDBOX,
        steps=[(COMMAND, "plan made", process_start(), time.monotonic())],
        timeline=timeline,
    )


def plan_container(
    bundle: Bundle,
    config: Config,
    room: Room,
    *,
    name: str,
    log: Log,
    systemd: bool = False,
    notify: str = "",
) -> plan.ContainerPlan:
    """The plan of a container that joins a sandbox whose machine has this room. Raises as :func:`plan_sandbox`."""
    there = {plug.group for plug in room.plugs}
    plain = {port.takes_at for port in room.spares if not port.bridge}

    def fit(groups: Sequence[Group], options: DeviceOptions, _role: str) -> list[Slot]:
        free = list(room.spares)
        slots: list[Slot] = []
        for group in [group for group in groups if group.number not in there]:
            placed = place(shape(group, keep_address=options.keep_addresses), free)
            free = [port for port in free if port.takes_at != placed[0].bus]
            slots += placed
        return slots

    wanted = _read(bundle, config, fit, name=name, log=log, there=there)
    groups, options = wanted.request.groups, wanted.options
    if options.cold and groups:
        log.warning("devices.plug is cold, but the virtual machine of the pod runs: its devices are plugged hot")
    slots = fit(groups, options, wanted.role)
    room.check_disks(wanted.nodes.disks, groups=len({slot.bus for slot in slots if slot.bus in plain}))
    plugs = plug_steps(groups, slots, owner=name, options=options, by_file=wanted.by_file, memory_mib=room.memory_mib)
    if warning := dma_warning(plugs):
        log.warning(warning)
    plugs += room.shared([group.number for group in groups], native=options.native)
    cgroup = _cgroup(bundle, name, systemd=systemd)
    fields = _container(wanted, bundle, config, name=name, plugs=plugs, log=log, cgroup=cgroup, notify=notify)
    made = plan.ContainerPlan(**fields)
    said = [
        *room.check_memory(
            "linux.resources.memory.limit",
            limits_of(bundle, role=wanted.role).memory,
            hugepages_mib=made.hugepages_mib,
            host_mib=host_size()["host_mib"],
        ),
        *room.warnings(label=wanted.guest.label),
    ]
    for warning in said:
        log.warning(warning)
    return made


@dataclass(frozen=True)
class _Wanted:
    """What a specification asks for. ``room``: the huge pages that a machine made for it must have room for."""

    guest: GuestPlan
    request: Request
    nodes: Nodes
    options: DeviceOptions
    role: str
    native: dict[int, dict[str, int]]
    by_file: frozenset[int]
    hugepages: tuple[tuple[int, int], ...]
    room: tuple[tuple[int, int], ...]


def _read(
    bundle: Bundle,
    config: Config,
    fit: Callable[[Sequence[Group], DeviceOptions, str], object],
    *,
    name: str,
    log: Log,
    there: Collection[int] = (),
) -> _Wanted:
    """``fit`` raises DeviceError where the machine has no room for groups; those ``there`` it has already."""
    annotations = bundle.spec.annotations or {}
    check_lists(bundle)
    role, _ = read_role(annotations, bundle.spec.process.args if bundle.spec.process else ())
    forwarded = patterns_of(annotations, config.share.forward_sockets)
    guest = plan_guest(bundle, container=name, role=role, forwarded=forwarded)
    selinux.check(f"{bundle.path}/config.json", guest.label)
    for level, text in guest.notes:
        (log.warning if level == "warning" else log.debug)(text)
    if guest.network:
        os.close(network_namespace.open_path(guest.network))
    emulated = read_table(config.emulated)
    options = device_options(config, annotations)

    def find(devices: Sequence[Device]) -> Request:
        return find_request(devices, emulated=emulated, managed=options.managed)

    def check(groups: Sequence[Group]) -> None:
        """The last of them alone, and then whether there is room for all: the others have been looked at before."""
        look([group for group in groups[-1:] if group.number not in there], ())
        fit(groups, options, role)

    def look(groups: Sequence[Group], files: Sequence[Node]) -> tuple[frozenset[int], list[str]]:
        """Those that go by their device files, and what to warn of."""
        check_allowed([group for group in groups if isinstance(group, HostGroup)], options.allow)
        chosen, fallbacks = by_file(groups, files, options, lambda: ask_qemu(config))
        warnings = check_host(groups, options)
        check_tokens(groups, options, lambda: ask_qemu(config))
        return chosen, [*fallbacks, *warnings]

    linux = bundle.spec.linux
    devices: Sequence[Device] = linux.devices or () if linux else ()
    left_out: dict[str, DeviceError] = {}
    if linux and linux.resources and allows_all(linux.resources.devices or ()):
        devices, left_out = choose(devices, find, check)
    request = find(devices)
    nodes = read_nodes(bundle, guest, request, left_out, allow=options.allow)
    request = add_named(with_groups(request, guest.spec), find_groups(options.devices, emulated), guest.spec)
    files, warnings = look([group for group in request.groups if group.number not in there], request.files)
    native: dict[int, dict[str, int]] = {}
    if options.native:
        request, native = take_out(request, guest.spec)
    if role == SINGLE or request.groups:  # a pod's annotations are repeated on all its containers
        warnings += unused_token(request.groups, options)
    for warning in (*nodes.warnings, *warnings):
        log.warning(warning)
    said = pages.wanted(guest, config, annotations)
    huge = pages.decide(said, role=role, memory_mib=config.vm.memory_mib, host_mib=host_size()["host_mib"])
    return _Wanted(guest, request, nodes, options, role, native, files, huge, pages.room(said, huge, role=role))


def _container(
    wanted: _Wanted,
    bundle: Bundle,
    config: Config,
    *,
    name: str,
    plugs: list[plan.PlugStep],
    log: Log,
    cgroup: CgroupPlan,
    notify: str,
) -> dict[str, Any]:
    """The fields of a container's plan."""
    for step in plugs:
        level, text = describe(step, asked=wanted.options.addresses_asked)
        (log.warning if level == "warning" else log.debug)(text)
    guest = wanted.guest
    shares = [
        plan.Share(
            name=s.name,
            source=s.source,
            is_dir=s.is_dir,
            readonly=s.readonly,
            private=s.private,
            recursive=s.recursive,
            readonly_below=s.readonly_below,
            # A socket that is forwarded has a mount of its own, which no container can put another in place of.
            common=s.name != "rootfs" and s.name not in (name for name, _ in guest.sockets),
            uids=list(s.owners.uids) if s.owners else [],
            gids=list(s.owners.gids) if s.owners else [],
            map_below=bool(s.owners and s.owners.recursive),
            overlay=s.overlay,
        )
        for s in guest.shares
    ]
    if wanted.native:
        shares.append(drivers(find_image(config).drivers))
    if wanted.nodes.disks:
        ask_qemu(config).require("virtio-blk-pci")
    process = guest.spec["process"]
    there, variables = plan.addresses(plugs), process.get("env") or ()
    for warning in (
        *pci_environment.warnings("process.env", variables, there),
        *pci_environment.in_arguments("process.args", process["args"], there),
    ):
        log.warning(warning)
    process["env"] = pci_environment.translate(variables, there)
    host = find_notified(bundle, notify, log)
    if host is not None:
        serve(guest.spec, host, container=name)
    return {
        "id": name,
        "bundle": bundle.path,
        "rootfs": bundle.rootfs,
        "oci_version": bundle.spec.oci_version,
        "annotations": bundle.spec.annotations or {},
        "owner": _owner(),
        "spec": guest.spec,
        "shares": shares,
        "plugs": plugs,
        "nodes": node_requests(wanted.request, plugs),
        "hugepages": list(wanted.hugepages),
        "hugetlbfs": [
            plan.Hugetlbfs(name=name, kib=fs.kib, mode=fs.mode, uid=fs.uid, gid=fs.gid) for name, fs in guest.hugetlbfs
        ],
        "memory": list(guest.memory),
        "binds": to_bind(wanted.request.groups, wanted.options),
        "joins": guest.joins,
        "network": guest.network,
        "sysctls": guest.sysctls,
        "native": wanted.native,
        "disks": wanted.nodes.disks,
        "named": wanted.nodes.named,
        "hooks": guest.hooks,
        "cgroup": cgroup,
        "notify": host,
        "inherited": Inherited(rlimits=attributes.rlimits(), oom_score_adj=attributes.oom_score_adj()),
        "oom_score_adj": _oom_score(guest.spec),
        "sockets": [
            plan.ForwardedSocket(name=name, mode=found.mode, uid=found.uid, gid=found.gid)
            for name, found in guest.sockets
        ],
    }


def _oom_score(spec: dict[str, Any]) -> int:
    """That of the container's processes: under runc they have the caller's where the specification has none."""
    value = spec["process"].get("oomScoreAdj")
    return oom_score.read() if value is None else int(value)


def ask_qemu(config: Config) -> capabilities.Capabilities:
    """What the configured QEMU can do. Raises HostError or VmError."""
    return capabilities.ask(config.vm.qemu, directory=config.image.cache)


def _cgroup(
    bundle: Bundle, name: str, *, systemd: bool, of_vm: HostLimits | None = None, pod: bool = False
) -> CgroupPlan:
    linux = bundle.raw.get("linux") or {}
    path = bundle.spec.linux.cgroups_path if bundle.spec.linux else ""
    resources = linux.get("resources") or {}
    default = default_path(name, cgroup_limits.default_parent(), systemd=systemd)
    # Containers that join may ask for CPUs, which the cgroup of the virtual machine then gets.
    path = path or (default if pod else "")
    where = f"{bundle.path}/config.json"
    return plan_cgroup(where, path, resources, systemd=systemd, of_vm=of_vm, default=default)


def plan_machine(
    config: Config,
    groups: Sequence[HostGroup | EmulatedGroup],
    log: Log,
    ports: PortPlan | None = None,
    *,
    size: tuple[int, int] | None = None,
) -> plan.MachinePlan:
    """The machine for these groups, and its template; ``size``: MiB and CPUs, else the configuration's.

    Raises ConfigError, HostError or ImageError.
    """
    memory_mib, cpus = size or machine_size(config.vm.memory_mib, config.vm.cpus, Limits(), **host_size())
    page_kib = hugepages.KIB[config.vm.hugepages] if config.vm.hugepages else 0
    memory_mib = hugepages.round_up(memory_mib, page_kib)
    if page_kib:
        hugepages.check(memory_mib, page_kib)
    ports = ports or plan_ports([shape(group) for group in groups])
    found = find_image(config)
    check_loaded(config.vm.load_modules, found.modules)
    can = ask_qemu(config)
    for group in groups:
        for model in group.models if isinstance(group, EmulatedGroup) else ("vfio-pci",):
            can.require(model)
    acceleration = accel.choose(config.vm.accel, qemu=config.vm.qemu, kernel=found.kernel, directory=config.image.cache)
    # Who configures tcg has been told by the documentation, as with vm.confine = "off".
    if config.vm.accel == "auto" and acceleration.name == "tcg":
        log.warning(
            "guests run under QEMU's TCG, which QEMU does not consider a security boundary, since KVM cannot be used: "
            f'{acceleration.reason} [set vm.accel = "kvm" to refuse that, or "tcg" to end this warning]'
        )
    log.debug(f"acceleration: {acceleration.name} ({acceleration.reason})")
    share, program = config.vm.share, ""
    if share in ("auto", "virtiofs"):
        program = virtiofsd.find(config.vm.virtiofsd) if "vhost-user-fs-pci" in can.devices else ""
        if share == "virtiofs" and not program:
            raise HostError("no virtiofsd was found", hint="install the package virtiofsd, or set vm.share to 9p")
        share = "virtiofs" if program else "9p"
        if share == "9p":
            log.warning(virtiofsd.MISSING)
    if share == "9p" and not can.makes_special_files:
        log.warning(virtiofsd.NO_SPECIAL_FILES.format(can.version))
    if share == "virtiofs" and not rights.effective() >> rights.NUMBERS["SETPCAP"] & 1:
        log.warning(virtiofsd.FEW_RIGHTS)
    machine = plan.MachinePlan(
        qemu=config.vm.qemu,
        accel=acceleration.name,
        one_thread=accel.one_thread(acceleration.name, can, cpus=cpus),
        memory_mib=memory_mib,
        page_kib=page_kib,
        cpus=cpus,
        kernel=found.kernel,
        initrd=found.initrd,
        kernel_append=config.vm.kernel_append,
        bridges=[dict(bridge) for bridge in ports.bridges],
        machine_properties=sorted(can.machine_properties),
        share=share,
        virtiofsd=virtiofsd.arguments(program) if program else [],
        boot_seconds=config.vm.boot_seconds or _BOOT[acceleration.name],
        device_seconds=config.vm.device_seconds or _DEVICE[acceleration.name],
        template=None,
        share_address=ports.share_address,
        address_bits=dma_width.guest_bits(),
        jail=plan_jail(config, share=share, filters="sandbox" in can.options, warn=log.warning),
        load_modules=list(config.vm.load_modules),
    )
    if not config.template.enabled:
        return machine
    return msgspec.structs.replace(machine, template=_template(machine, config, can.version, log))


def _template(machine: plan.MachinePlan, config: Config, version: str, log: Log) -> plan.Template | None:
    """The machine's template, whether it is usable, and None where templates must not be used here."""
    cache, max_age = config.image.cache, config.template.max_age_hours * 3600
    digest = templates.digest_of(plan.shape(machine), version=version)
    found = None
    try:
        templates.is_ours(cache)
    except HostError as error:
        log.warning(f"this start is a cold one: {error.sentence()}")
        return None
    try:
        found = templates.find(cache, digest)
    except HostError as error:
        log.warning(f"this start is a cold one: {error.sentence()}")
    if found is not None and max_age and not 0 <= time.time() - found.created <= max_age:
        log.debug(f"the template {digest[:12]} is older than template.max_age_hours: this start replaces it")
        found = None
    if found is not None:
        templates.touch(found)
    return plan.Template(cache=cache, digest=digest, usable=found is not None)


def _owner() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return ""
