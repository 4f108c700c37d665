"""From a bundle and the configuration to the plan of a sandbox: all checks of the host, nothing touched."""

from __future__ import annotations

import getpass
import time
from collections.abc import Sequence
from typing import Protocol

import msgspec

from hawse.config import Config
from hawse.container.backend import by_file
from hawse.container.devices import (
    add_named,
    check_host,
    find_groups,
    node_requests,
    plug_steps,
    shape,
    to_bind,
    with_groups,
)
from hawse.container.options import device_options
from hawse.errors import HostError
from hawse.oci.addresses import translate
from hawse.oci.guest import plan_guest
from hawse.oci.load import Bundle
from hawse.sandbox import plan
from hawse.sandbox.steps import COMMAND, process_start
from hawse.vfio.devices import find_request
from hawse.vfio.emulated import EmulatedGroup, read_table
from hawse.vfio.groups import HostGroup
from hawse.vm import accel, capabilities, image, template, virtiofsd
from hawse.vm.ports import PortPlan, plan_ports

# Seconds to wait for a guest's report and for a device, by acceleration: without KVM a guest is twenty times slower,
# and inside of another such guest twenty times more.
_BOOT = {"kvm": 30.0, "tcg": 600.0}
_DEVICE = {"kvm": 15.0, "tcg": 240.0}


class Log(Protocol):
    """Where what the user should know goes."""

    def warning(self, message: str) -> None: ...
    def debug(self, message: str) -> None: ...


def plan_sandbox(bundle: Bundle, config: Config, *, name: str, log: Log, timeline: str = "") -> plan.SandboxPlan:
    """The plan; ``timeline`` is the file for its start's trace.

    Raises ConfigError, DeviceError, ImageError or HostError: every fault that shows before QEMU starts.
    """
    guest = plan_guest(bundle, container=name)
    linux = bundle.spec.linux
    emulated = read_table(config.emulated)
    options = device_options(config, bundle.spec.annotations or {})
    request = find_request(linux.devices or () if linux else (), emulated=emulated, managed=options.managed)
    request = add_named(with_groups(request, guest.spec), find_groups(options.devices, emulated), guest.spec)
    files, fallbacks = by_file(request.groups, request.files, options, lambda: ask_qemu(config))
    for warning in [*fallbacks, *check_host(request.groups, options)]:
        log.warning(warning)
    ports = plan_ports([shape(group, keep_address=options.keep_addresses) for group in request.groups])
    plugs = plug_steps(request.groups, ports.slots, owner=name, options=options, by_file=files)
    for step in plugs:
        log.debug(f"{step.label} is {step.guest_address} in the guest{': ' if step.note else ''}{step.note}")
    machine = plan_machine(config, request.groups, log, ports)
    if options.cold and plugs:
        # What is part of a machine at its boot would be part of its template.
        cold = [command for step in plugs for command in step.commands]
        machine = msgspec.structs.replace(machine, cold=cold, template=None)
        plugs = [msgspec.structs.replace(step, commands=[]) for step in plugs]
    process = guest.spec["process"]
    process["env"] = translate(process.get("env") or (), plan.addresses(plugs))
    return plan.SandboxPlan(
        id=name,
        bundle=bundle.path,
        rootfs=bundle.rootfs,
        oci_version=bundle.spec.oci_version,
        annotations=bundle.spec.annotations or {},
        owner=_owner(),
        spec=guest.spec,
        machine=machine,
        shares=[plan.Share(name=s.name, source=s.source, is_dir=s.is_dir, readonly=s.readonly) for s in guest.shares],
        plugs=plugs,
        nodes=node_requests(request, plugs),
        hugepages=list(guest.hugepages),
        ports=list(ports.ports),
        binds=to_bind(request.groups, options),
        steps=[(COMMAND, "plan made", process_start(), time.monotonic())],
        timeline=timeline,
    )


def ask_qemu(config: Config) -> capabilities.Capabilities:
    """What the configured QEMU can do. Raises HostError or VmError."""
    return capabilities.ask(config.vm.qemu, directory=config.image.cache)


def plan_machine(
    config: Config, groups: Sequence[HostGroup | EmulatedGroup], log: Log, ports: PortPlan | None = None
) -> plan.MachinePlan:
    """The machine for these groups, and its template. Raises ConfigError, HostError or ImageError."""
    ports = ports or plan_ports([shape(group) for group in groups])
    found = image.locate(cache=config.image.cache, kernel=config.image.kernel, modules=config.image.modules)
    can = ask_qemu(config)
    for group in groups:
        for model in group.models if isinstance(group, EmulatedGroup) else ("vfio-pci",):
            can.require(model)
    acceleration = accel.choose(config.vm.accel, qemu=config.vm.qemu, kernel=found.kernel, directory=config.image.cache)
    if acceleration.fresh and acceleration.name == "tcg":
        log.warning(f"guests run without KVM, some twenty times slower: {acceleration.reason}")
    log.debug(f"acceleration: {acceleration.name} ({acceleration.reason})")
    share, program = config.vm.share, ""
    if share in ("auto", "virtiofs"):
        program = virtiofsd.find(config.vm.virtiofsd) if "vhost-user-fs-pci" in can.devices else ""
        if share == "virtiofs" and not program:
            raise HostError("no virtiofsd was found", hint="install the package virtiofsd, or set vm.share to 9p")
        share = "virtiofs" if program else "9p"
    machine = plan.MachinePlan(
        qemu=config.vm.qemu,
        accel=acceleration.name,
        memory_mib=config.vm.memory_mib,
        cpus=config.vm.cpus,
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
    )
    if not config.template.enabled:
        return machine
    return msgspec.structs.replace(machine, template=_template(machine, config.image.cache, can.version, log))


def _template(machine: plan.MachinePlan, cache: str, version: str, log: Log) -> plan.Template | None:
    """The machine's template, whether it is there, and None where templates must not be used here."""
    digest = template.digest_of(plan.shape(machine), version=version)
    found = None
    try:
        template.is_ours(f"{cache}/templates")
    except HostError as error:
        log.warning(f"this start is a cold one: {error.sentence()}")
        return None
    try:
        found = template.find(cache, digest)
    except HostError as error:
        log.warning(f"this start is a cold one: {error.sentence()}")
    if found is not None:
        template.touch(found)
    return plan.Template(cache=cache, digest=digest, usable=found is not None)


def _owner() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return ""
