"""What the monitor is told to make: the whole of a sandbox, decided before anything is touched.

The command line writes it, the monitor reads it; it can be printed and compared.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from hawse.oci.guest.host_sockets import Special
from hawse.oci.guest.hugetlbfs import Hugetlbfs
from hawse.oci.guest.share import Share
from hawse.oci.limits.cgroups import CgroupPlan
from hawse.oci.process.inherited import Inherited
from hawse.oci.process.notify_socket import Notify
from hawse.state.steps import Step
from hawse.vfio.node import VfioNode
from hawse.vm.arguments import VmShape
from hawse.vm.ports import Port

#: In place of a group's number: the step plugs a disk.
NO_GROUP = -1


class PlugStep(msgspec.Struct, frozen=True, kw_only=True):
    """One function to be hot-plugged: QMP commands, the device's id, where the guest will see it, for which group.

    ``host`` is its address on the host, "" for an emulated one; ``note`` tells why the guest's address is another.
    ``bus`` is QEMU's id of the port or bridge that it is plugged into. ``cold``: it is there when the machine boots,
    made by options of the same names as the commands'. ``shared``: it is there for another container. ``bars`` are
    those that it has on the host, (number, bytes) each. ``dma_entries``: the DMA mappings that its VFIO container may
    need on the host (:mod:`hawse.vfio.host.dma_mappings`), 0 for an emulated function. ``unsafe_interrupts``: an
    administrator accepts a device whose interrupts are not remapped.
    """

    group: int
    label: str
    host: str
    note: str
    commands: list[tuple[str, dict[str, Any]]]
    device: str
    bus: str
    guest_address: str
    cold: bool = False
    shared: bool = False
    unsafe_interrupts: bool = False
    bars: list[tuple[int, int]] = []
    dma_entries: int = 0

    @property
    def what(self) -> str:
        """What it is, for errors; a disk is of no group."""
        return self.label if self.group == NO_GROUP else f"{self.label} of group {self.group}"

    @property
    def by_file(self) -> bool:
        """Whether QEMU opens the function's device file, and not its group's node."""
        return any("iommufd" in arguments for _, arguments in self.commands)


class DiskPlan(msgspec.Struct, frozen=True, kw_only=True):
    """A block device of the host that the container is to have; ``logical`` and ``physical`` are bytes of a sector."""

    major: int
    minor: int
    name: str
    writable: bool
    logical: int = 512
    physical: int = 512


class Template(msgspec.Struct, frozen=True, kw_only=True):
    """The machine's template: in which cache, under which digest, and whether it is there or is to be made."""

    cache: str
    digest: str
    usable: bool


class JailPlan(msgspec.Struct, frozen=True, kw_only=True):
    """How QEMU is confined: the directory of the files that it has (:mod:`hawse.jail.tree`), the user ids that it may
    have one of, and whether it can filter its system calls itself. ``required``: without a jail nothing is started.
    ``file_bytes``: how far it may write a file, which is for the disks of emulated devices."""

    tree: str
    first_user: int
    last_user: int
    filters: bool
    required: bool = False
    file_bytes: int = 0


class MachinePlan(msgspec.Struct, frozen=True, kw_only=True):
    """The virtual machine: its ``shape`` is what the guest sees, and the rest what the host does for it.

    Times in seconds. ``page_kib``: the KiB of the host's huge pages that its memory is made of, 0 for ordinary pages;
    nothing in the guest shows it. ``label`` is the SELinux label of its programs, "" for none. ``jail``: QEMU's, None
    for none. ``modules`` is the directory in the share of modules for the guest's kernel, "" for none, and
    ``load_modules`` are the names of those that are loaded at its start. ``oom_score_adj`` (proc(5)) is that of its
    programs, None for the monitor's.
    """

    shape: VmShape
    virtiofsd: list[str]
    boot_seconds: float
    device_seconds: float
    template: Template | None
    share_address: str
    page_kib: int = 0
    label: str = ""
    jail: JailPlan | None = None
    modules: str = ""
    load_modules: list[str] = []
    oom_score_adj: int | None = None


class ContainerPlan(msgspec.Struct, frozen=True, kw_only=True):
    """One container of a sandbox.

    ``spec`` is the guest's specification, with the host's device numbers, and ``shares`` what is shared for it.
    ``binds`` are functions that are bound to a VFIO driver first, and restored at the end. ``joins``, by kind of
    namespace, is the path in the spec of one that another container of the sandbox has. ``memory`` has the bytes of
    file systems of shared memory, by name; ``hugepages`` are (KiB of a page, count), to be reserved for it, the largest
    first, and ``hugetlbfs`` their file systems, by name. ``native`` are groups that the guest's own drivers get, with
    the rights of their nodes. ``named`` are misc devices, by their numbers on the host, whose number in the guest is
    found by their name. ``hooks`` and ``cgroup`` are those of the host. ``network`` is the path of the network
    namespace on the host, "" for the one that the first process's proxy is in; ``sysctls`` are settings of the guest's
    network. ``inherited`` is what the process has from its creator; ``notify`` is the host's socket for its
    notifications, None for none. ``oom_score_adj`` is that of its processes. ``sockets`` are those of the host that
    connections are forwarded to, by the names of their shares.
    """

    id: str
    bundle: str
    rootfs: str
    oci_version: str
    annotations: dict[str, str]
    owner: str
    spec: dict[str, Any]
    shares: list[Share]
    plugs: list[PlugStep]
    nodes: list[VfioNode]
    hugepages: list[tuple[int, int]]
    hugetlbfs: dict[str, Hugetlbfs] = {}
    memory: dict[str, int] = {}
    binds: list[str]
    joins: dict[str, str] = {}
    network: str
    sysctls: dict[str, str] = {}
    native: dict[int, dict[str, int]] = {}
    disks: list[DiskPlan] = []
    named: list[tuple[int, int, str]] = []
    hooks: dict[str, list[dict[str, Any]]] = {}
    cgroup: CgroupPlan = CgroupPlan()
    inherited: Inherited = Inherited()
    notify: Notify | None = None
    oom_score_adj: int = 0
    sockets: dict[str, Special] = {}

    @property
    def hugepages_mib(self) -> int:
        """The memory of the guest that is reserved for its huge pages."""
        return sum(kib * count for kib, count in self.hugepages) // 1024


class SandboxPlan(msgspec.Struct, frozen=True, kw_only=True):
    """A sandbox with its first ``container``, whose id is its own.

    ``timeline`` is the file for its start's trace, "" for none. ``ports`` take devices, ``network_port`` takes
    interfaces. ``pod``: other containers may join it. ``log_file``: path and format of the file for what the monitor
    warns of later, "" for its own log only.
    """

    container: ContainerPlan
    machine: MachinePlan
    ports: list[Port]
    network_port: Port
    pod: bool = False
    steps: list[Step]
    timeline: str
    log_file: tuple[str, str] = ("", "text")

    def encode(self) -> bytes:
        """The plan as JSON, for the monitor."""
        return msgspec.json.encode(self)


class Attachment(msgspec.Struct, frozen=True, kw_only=True):
    """One group to be attached to a running sandbox; its nodes have this mode and these owners in the container."""

    plugs: list[PlugStep]
    nodes: list[VfioNode]
    mode: int
    uid: int
    gid: int


def addresses(plugs: Sequence[PlugStep]) -> dict[str, str]:
    """The guest's address of each function of the host."""
    return {plug.host: plug.guest_address for plug in plugs if plug.host}


def decode(data: bytes) -> SandboxPlan:
    """The plan from its JSON."""
    return msgspec.json.decode(data, type=SandboxPlan)
