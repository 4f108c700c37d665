"""The plan of a sandbox: everything that the monitor has to create, decided before anything is changed.

The command writes the plan as JSON, and the monitor reads it. Plans can be printed and compared.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from hawse.json_text import Document
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

#: The value of ``group`` in a step that plugs a disk.
NO_GROUP = -1


class PlugStep(msgspec.Struct, frozen=True, kw_only=True):
    """One function to plug: its group, the QMP commands, QEMU's device id, and its address in the guest.

    ``label`` describes it in messages. ``host`` is its address on the host, "" for an emulated function. ``note`` is
    the reason why its address in the guest is different. ``bus`` is QEMU's id of the port or bridge into which it is
    plugged. ``cold``: QEMU starts with it, with options of the same names as the commands. ``shared``: it is already
    plugged for another container. ``bars`` are pairs of the number and the size in bytes of its BARs on the host.
    ``dma_entries``: the DMA mappings that its VFIO container may need on the host
    (:mod:`hawse.vfio.host.dma_mappings`), 0 for an emulated function. ``unsafe_interrupts``: an administrator accepts a
    device whose interrupts are not remapped.
    """

    group: int
    label: str
    host: str
    note: str
    commands: list[tuple[str, Document]]
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
        """A description for errors. A disk has no group."""
        return self.label if self.group == NO_GROUP else f"{self.label} of group {self.group}"

    @property
    def by_file(self) -> bool:
        """Whether QEMU opens the function's device file, and not its group's node."""
        return any("iommufd" in arguments for _, arguments in self.commands)


class DiskPlan(msgspec.Struct, frozen=True, kw_only=True):
    """A block device of the host to pass; ``logical`` and ``physical`` are its sector sizes in bytes."""

    major: int
    minor: int
    name: str
    writable: bool
    logical: int = 512
    physical: int = 512


class Template(msgspec.Struct, frozen=True, kw_only=True):
    """The template of the VM: its cache directory and digest. ``usable``: it exists; otherwise the start builds it."""

    cache: str
    digest: str
    usable: bool


class JailPlan(msgspec.Struct, frozen=True, kw_only=True):
    """The jail of QEMU.

    ``tree`` is the directory with the files that QEMU sees (:mod:`hawse.jail.tree`). QEMU gets a user ID in the range
    ``first_user`` to ``last_user``. ``filters``: it can filter its system calls itself. ``required``: nothing is
    started without a jail. ``file_bytes`` is the maximum size of files that it writes, the disks of emulated devices.
    """

    tree: str
    first_user: int
    last_user: int
    filters: bool
    required: bool = False
    file_bytes: int = 0


class MachinePlan(msgspec.Struct, frozen=True, kw_only=True):
    """The virtual machine. ``shape`` is the hardware that the guest sees; the other fields apply to the host.

    Times are in seconds. ``page_kib`` is the size in KiB of the host's huge pages that back its memory, 0 for normal
    pages; the guest cannot see it. ``label`` is the SELinux label of the VM's programs, "" for none. ``jail`` is None
    if QEMU is not confined. ``modules`` is the directory below the share with modules for the guest kernel, "" for
    none; ``load_modules`` are the modules that the guest loads at its start. ``oom_score_adj`` (proc(5)) is the value
    for the VM's programs, None for that of the monitor.
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

    ``spec`` is the guest's specification, with the host's device numbers, and ``shares`` are its shares.

    Devices: ``nodes`` has a node for each group except those in ``native``. ``binds`` are functions that are bound to a
    VFIO driver first, and restored at the end. ``native`` are groups that drivers of the guest kernel use, with the
    rights of their nodes. ``named`` are misc devices as (major, minor, name) on the host; their numbers in the guest
    are found by the name.

    Memory: ``memory`` maps names of shared-memory file systems to their sizes in bytes. ``hugepages`` are pairs of page
    size in KiB and count to reserve, the largest first, and ``hugetlbfs`` are their file systems by name.

    Namespaces: ``joins`` maps a kind of namespace to the path, in the specification, of a namespace of another
    container of the sandbox. ``network`` is the path of the network namespace on the host, "" for the namespace of the
    first process's proxy; ``sysctls`` are settings of the guest's network.

    Host: ``hooks`` and ``cgroup`` are those of the host. ``inherited`` are the attributes that the process inherits
    from its creator. ``notify`` is the host's socket for its notifications, None for none. ``oom_score_adj`` is the
    value for its processes. ``sockets`` are the host's sockets to which connections are forwarded, by the names of
    their shares.
    """

    id: str
    bundle: str
    rootfs: str
    oci_version: str
    annotations: dict[str, str]
    owner: str
    spec: Document
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
    hooks: dict[str, list[Document]] = {}
    cgroup: CgroupPlan = CgroupPlan()
    inherited: Inherited = Inherited()
    notify: Notify | None = None
    oom_score_adj: int = 0
    sockets: dict[str, Special] = {}

    @property
    def hugepages_mib(self) -> int:
        """The guest memory in MiB that is reserved for its huge pages."""
        return sum(kib * count for kib, count in self.hugepages) // 1024


class SandboxPlan(msgspec.Struct, frozen=True, kw_only=True):
    """A sandbox with its first ``container``, whose id is also the sandbox's.

    ``timeline`` is the file for the trace of its start, "" for none. Devices are plugged into ``ports``, network
    interfaces into ``network_port``. ``pod``: other containers may join it. ``log_file`` is the path and the format of
    the file for later warnings of the monitor; with the path "", they go only to the monitor's log.
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
    """One group to attach to a running sandbox, and the mode and owners of its nodes in the container."""

    plugs: list[PlugStep]
    nodes: list[VfioNode]
    mode: int
    uid: int
    gid: int


def addresses(plugs: Sequence[PlugStep]) -> dict[str, str]:
    """Map the host addresses of functions to their guest addresses."""
    return {plug.host: plug.guest_address for plug in plugs if plug.host}


def decode(data: bytes) -> SandboxPlan:
    """Parse a plan from its JSON."""
    return msgspec.json.decode(data, type=SandboxPlan)
