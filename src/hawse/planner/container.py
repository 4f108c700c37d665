"""Create the plan of one container from its request and the plug steps of its devices."""

from __future__ import annotations

import getpass
from collections.abc import Sequence

from hawse.config import Config
from hawse.json_text import Document
from hawse.linux import attributes, oom_score
from hawse.notes import Note, noted, warning
from hawse.oci.document import process_of, with_process
from hawse.oci.guest import pci_environment
from hawse.oci.limits.cgroups import CgroupPlan, HostLimits, default_path, plan_cgroup
from hawse.oci.load import Bundle
from hawse.oci.process.inherited import Inherited
from hawse.oci.process.notify_socket import serve
from hawse.plan.model import ContainerPlan, PlugStep, addresses
from hawse.planner import cgroup_limits
from hawse.planner.devices.group_checks import to_bind
from hawse.planner.devices.guest_drivers import drivers
from hawse.planner.devices.plugs import describe
from hawse.planner.devices.vfio_nodes import planned_nodes
from hawse.planner.kernel_modules import find_image
from hawse.planner.notify_target import find_notified
from hawse.planner.request import ContainerRequest
from hawse.planner.vm import ask_qemu


def container_plan(
    request: ContainerRequest,
    bundle: Bundle,
    config: Config,
    *,
    name: str,
    plugs: list[PlugStep],
    cgroup: CgroupPlan,
    notify: str,
) -> tuple[ContainerPlan, list[Note]]:
    """Create the plan; also returns notes for the log.

    ``notify`` is the caller's NOTIFY_SOCKET, "" for none. Raises HostError and ImageError.
    """
    guest, devices = request.guest, request.devices
    notes = [describe(step, asked=request.options.addresses_asked) for step in plugs]
    with noted(notes):
        shares = [*guest.shares, *([drivers(find_image(config).drivers)] if devices.native else [])]
        if devices.others.disks:
            ask_qemu(config).require("virtio-blk-pci")
    spec, more = _with_addresses(devices.spec, plugs)
    notes += more
    socket, more = find_notified(bundle, notify)
    if socket is not None:
        spec = serve(spec, socket, container=name)
    plan = ContainerPlan(
        id=name,
        bundle=bundle.path,
        rootfs=bundle.rootfs,
        oci_version=bundle.spec.oci_version,
        annotations=bundle.spec.annotations or {},
        owner=_owner(),
        spec=spec,
        shares=shares,
        plugs=plugs,
        nodes=planned_nodes(devices.request, plugs),
        hugepages=list(request.hugepages),
        hugetlbfs=guest.mounts.huge,
        memory=guest.mounts.memory,
        binds=to_bind(devices.request.groups, request.options),
        joins=guest.namespaces.joins,
        network=guest.namespaces.network,
        sysctls=guest.sysctls,
        native=devices.native,
        disks=devices.others.disks,
        named=devices.others.named,
        hooks=guest.hooks,
        cgroup=cgroup,
        notify=socket,
        inherited=Inherited(rlimits=attributes.rlimits(), oom_score_adj=attributes.oom_score_adj()),
        oom_score_adj=oom_score_of(spec),
        sockets=guest.mounts.sockets,
    )
    return plan, [*notes, *more]


def _with_addresses(spec: Document, plugs: Sequence[PlugStep]) -> tuple[Document, list[Note]]:
    """Translate PCI addresses in the environment to the guest's; also returns warnings about untranslated addresses."""
    guest_addresses, process = addresses(plugs), process_of(spec)
    environment = process.get("env") or ()
    texts = [
        *pci_environment.warnings("process.env", environment, guest_addresses),
        *pci_environment.in_arguments("process.args", process["args"], guest_addresses),
    ]
    translated = pci_environment.translate(environment, guest_addresses)
    return with_process(spec, env=translated), [warning(text) for text in texts]


def oom_score_of(spec: Document) -> int:
    """The oom_score_adj of the container's processes; the caller's if the specification sets none, as in runc."""
    value = process_of(spec).get("oomScoreAdj")
    return oom_score.read() if value is None else int(value)


def cgroup_of(
    bundle: Bundle, name: str, *, systemd: bool, of_vm: HostLimits | None = None, pod: bool = False
) -> CgroupPlan:
    """Plan the container's cgroup on the host. ``of_vm`` are the limits of the VM, for the first container of a
    sandbox.

    The VM of a ``pod`` always gets a cgroup: containers that join it later may request CPUs, which this cgroup then
    gets. Raises :class:`ConfigError`.
    """
    resources = (bundle.raw.get("linux") or {}).get("resources") or {}
    path = bundle.spec.linux.cgroups_path if bundle.spec.linux else ""
    default = default_path(name, cgroup_limits.default_parent(), systemd=systemd)
    where = f"{bundle.path}/config.json"
    path = path or (default if pod else "")
    return plan_cgroup(where, path, resources, systemd=systemd, of_vm=of_vm, default=default)


def _owner() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return ""
