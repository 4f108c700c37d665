"""The plan of a virtual machine: size, acceleration, share, jail and template."""

from __future__ import annotations

import time
from collections.abc import Sequence

from msgspec.structs import replace

from hawse.config import Config
from hawse.errors import HostError
from hawse.linux import process_capabilities as rights
from hawse.notes import Note, debug, noted, warning
from hawse.plan.model import MachinePlan, Template
from hawse.planner.confinement import plan_jail
from hawse.planner.devices.plugs import shape
from hawse.planner.kernel_modules import check_loaded, find_image
from hawse.vfio.emulated import EmulatedGroup
from hawse.vfio.host import dma_width
from hawse.vfio.requests import Group
from hawse.vm import acceleration, host_hugepages, qemu_features, templates, virtiofsd
from hawse.vm.arguments import VmShape
from hawse.vm.image.store import Image
from hawse.vm.ports import PortPlan, plan_ports
from hawse.vm.qemu_features import Capabilities
from hawse.vm.size import Limits, host_size, machine_size

#: Seconds to wait for a guest's report and for a device, by acceleration: without KVM a guest is twenty times slower.
#: Podman aborts a creation after 240 s without a reason (libpod/define/config.go, ContainerCreateTimeout). hawse's
#: limit is lower, so that users see its error.
_DEVICE = {"kvm": 15.0, "tcg": 120.0}


def ask_qemu(config: Config) -> Capabilities:
    """The capabilities of the configured QEMU. Raises HostError or VmError."""
    return qemu_features.ask(config.vm.qemu, directory=config.image.cache)


def plan_machine(
    config: Config, groups: Sequence[Group], ports: PortPlan | None = None, *, size: tuple[int, int] | None = None
) -> tuple[MachinePlan, list[Note]]:
    """Plan the VM for these groups, and its template. ``size``: MiB and CPUs, None for those of the configuration.

    Raises ConfigError, HostError or ImageError.
    """
    memory_mib, cpus = size or machine_size(config.vm.memory_mib, config.vm.cpus, Limits(), **host_size())
    page_kib = host_hugepages.KIB[config.vm.hugepages] if config.vm.hugepages else 0
    memory_mib = host_hugepages.round_up(memory_mib, page_kib)
    if page_kib:
        host_hugepages.check(memory_mib, page_kib)
    ports = ports or plan_ports([shape(group) for group in groups])
    image = find_image(config)
    check_loaded(config.vm.load_modules, image.modules)
    qemu = ask_qemu(config)
    for group in groups:
        for model in group.models if isinstance(group, EmulatedGroup) else ("vfio-pci",):
            qemu.require(model)
    accel, notes = _acceleration(config, image)
    with noted(notes):
        share, program, more = _share(config, qemu)
        notes += more
        jail, more = plan_jail(config, share=share, filters="sandbox" in qemu.options)
        notes += more
    machine = MachinePlan(
        shape=VmShape(
            qemu=config.vm.qemu,
            accel=accel,
            one_thread=acceleration.one_thread(accel, qemu, cpus=cpus),
            memory_mib=memory_mib,
            cpus=cpus,
            kernel=image.kernel,
            initrd=image.initrd,
            kernel_append=config.vm.kernel_append,
            bridges=[dict(bridge) for bridge in ports.bridges],
            machine_properties=frozenset(qemu.machine_properties),
            share=share,
            address_bits=dma_width.guest_bits(),
        ),
        page_kib=page_kib,
        virtiofsd=virtiofsd.arguments(program) if program else [],
        boot_seconds=config.vm.boot_seconds or acceleration.BOOT_SECONDS[accel],
        device_seconds=config.vm.device_seconds or _DEVICE[accel],
        template=None,
        share_address=ports.share_address,
        jail=jail,
        load_modules=list(config.vm.load_modules),
    )
    if not config.template.enabled:
        return machine, notes
    template, more = _template(machine, config, qemu.version)
    return replace(machine, template=template), [*notes, *more]


def _acceleration(config: Config, image: Image) -> tuple[str, list[Note]]:
    """ "kvm" or "tcg"."""
    chosen = acceleration.choose(
        config.vm.accel, qemu=config.vm.qemu, kernel=image.kernel, initrd=image.initrd, directory=config.image.cache,
        seconds=config.vm.boot_seconds or acceleration.BOOT_SECONDS["kvm"],
    )  # fmt: skip
    notes = [debug(f"acceleration: {chosen.name} ({chosen.reason})")]
    # An administrator who configures tcg knows the documentation, as with vm.confine = "off".
    if config.vm.accel == "auto" and chosen.name == "tcg":
        notes.insert(
            0,
            warning(
                "guests run under QEMU's TCG, which QEMU does not consider a security boundary, since KVM cannot be "
                f'used: {chosen.reason} [set vm.accel = "kvm" to forbid TCG, or "tcg" to disable this warning]'
            ),
        )
    return chosen.name, notes


def _share(config: Config, qemu: Capabilities) -> tuple[str, str, list[Note]]:
    """ "virtiofs" or "9p", and virtiofsd's program."""
    share, program, notes = config.vm.share, "", []
    if share in ("auto", "virtiofs"):
        program = virtiofsd.find(config.vm.virtiofsd) if "vhost-user-fs-pci" in qemu.devices else ""
        if share == "virtiofs" and not program:
            raise HostError("virtiofsd is not installed", hint="install the package virtiofsd, or set vm.share to 9p")
        share = "virtiofs" if program else "9p"
        if share == "9p":
            notes.append(warning(virtiofsd.MISSING))
    if share == "9p" and not qemu.makes_special_files:
        notes.append(warning(virtiofsd.NO_SPECIAL_FILES.format(qemu.version)))
    if share == "virtiofs" and not rights.effective() >> rights.NUMBERS["SETPCAP"] & 1:
        notes.append(warning(virtiofsd.FEW_RIGHTS))
    return share, program, notes


def _template(machine: MachinePlan, config: Config, version: str) -> tuple[Template | None, list[Note]]:
    """The VM's template and whether it is usable; None if templates must not be used here. Also returns notes."""
    cache, max_age = config.image.cache, config.template.max_age_hours * 3600
    digest = templates.digest_of(machine.shape, version=version)
    notes: list[Note] = []
    template = None
    try:
        templates.is_ours(cache)
    except HostError as error:
        return None, [warning(f"this start is a cold one: {error.sentence()}")]
    try:
        template = templates.find(cache, digest)
    except HostError as error:
        notes.append(warning(f"this start is a cold one: {error.sentence()}"))
    if template is not None and max_age and not 0 <= time.time() - template.created <= max_age:
        text = f"the template {digest[:12]} is older than template.max_age_hours; this start replaces it"
        notes.append(debug(text))
        template = None
    if template is not None:
        templates.touch(template)
    return Template(cache=cache, digest=digest, usable=template is not None), notes
