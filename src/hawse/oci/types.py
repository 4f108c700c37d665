"""The types of config.json (OCI runtime-spec config.md, config-linux.md).

Unknown properties are ignored, as the specification requires. The type and range of known properties are checked, also
of those that hawse does not use, since Go's decoder, and so runc, refuses a wrong type. The document itself is kept as
well. Sections that hawse refuses as a whole have the type Document (:mod:`hawse.oci.fields`).
"""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from msgspec import Meta, Struct

from hawse.json_text import Document
from hawse.oci.seccomp_checks import Seccomp

Uint16 = Annotated[int, Meta(ge=0, le=2**16 - 1)]
Uint32 = Annotated[int, Meta(ge=0, le=2**32 - 1)]
Int64 = Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)]
Uint64 = Annotated[int, Meta(ge=0)]
#: Bytes; -1 means unlimited.
Bytes = Annotated[int, Meta(ge=-1, le=2**63 - 1)]
Text = Annotated[str, Meta(pattern="^[^\\x00]*$")]


class _Part(Struct, frozen=True, kw_only=True, rename="camel"):
    pass


class Root(_Part, frozen=True):
    path: Text
    readonly: bool = False


class User(_Part, frozen=True):
    uid: Uint32 = 0
    gid: Uint32 = 0
    umask: Uint32 | None = None
    additional_gids: list[Uint32] = []
    username: str = ""


class Box(_Part, frozen=True):
    height: Annotated[int, Meta(ge=0, le=65535)]
    width: Annotated[int, Meta(ge=0, le=65535)]


class Rlimit(_Part, frozen=True):
    type: str
    hard: Annotated[int, Meta(ge=0)]
    soft: Annotated[int, Meta(ge=0)]


class Capabilities(_Part, frozen=True):
    bounding: list[str] | None = None
    effective: list[str] | None = None
    inheritable: list[str] | None = None
    permitted: list[str] | None = None
    ambient: list[str] | None = None


class Process(_Part, frozen=True):
    cwd: Text
    args: list[Text] = []
    env: list[Text] = []
    terminal: bool = False
    console_size: Box | None = None
    user: User = User()
    command_line: str = ""
    capabilities: Capabilities | None = None
    rlimits: list[Rlimit] = []
    no_new_privileges: bool = False
    apparmor_profile: str = ""
    selinux_label: str = ""
    oom_score_adj: int | None = None
    scheduler: Document | None = None
    io_priority: Document | None = None
    exec_cpu_affinity: Document | None = msgspec.field(name="execCPUAffinity", default=None)


class IdMapping(_Part, frozen=True):
    container_id: Uint32 = msgspec.field(name="containerID")
    host_id: Uint32 = msgspec.field(name="hostID")
    size: Uint32


class Mount(_Part, frozen=True):
    destination: Text
    type: str = ""
    source: Text = ""
    options: list[str] = []
    uid_mappings: list[IdMapping] | None = None
    gid_mappings: list[IdMapping] | None = None


class Device(_Part, frozen=True):
    path: Text
    type: str
    major: Int64 | None = None
    minor: Int64 | None = None
    file_mode: Annotated[int, Meta(ge=0, le=0o7777777)] | None = None
    uid: Uint32 | None = None
    gid: Uint32 | None = None


class DeviceRule(_Part, frozen=True):
    allow: bool = False
    type: str = "a"
    major: Int64 | None = None
    minor: Int64 | None = None
    access: str = ""


class HugepageLimit(_Part, frozen=True):
    page_size: str
    limit: Annotated[int, Meta(ge=0)]


class Memory(_Part, frozen=True):
    limit: Bytes | None = None
    reservation: Bytes | None = None
    swap: Bytes | None = None
    kernel: Int64 | None = None
    kernel_tcp: Int64 | None = msgspec.field(name="kernelTCP", default=None)
    swappiness: Uint64 | None = None
    disable_oom_killer: bool | None = msgspec.field(name="disableOOMKiller", default=None)
    use_hierarchy: bool | None = None
    check_before_update: bool | None = None


class Cpu(_Part, frozen=True):
    shares: Uint64 | None = None
    quota: Int64 | None = None
    period: Uint64 | None = None
    burst: Uint64 | None = None
    realtime_runtime: Int64 | None = None
    realtime_period: Uint64 | None = None
    idle: Annotated[int, Meta(ge=0, le=1)] | None = None
    cpus: Text = ""
    mems: Text = ""


class Pids(_Part, frozen=True):
    limit: Int64 | None = None


class BlockIo(_Part, frozen=True):
    weight: Uint16 | None = None
    leaf_weight: Uint16 | None = None
    weight_device: list[Document] | None = None
    throttle_read_bps_device: list[Document] | None = None
    throttle_write_bps_device: list[Document] | None = None
    throttle_read_iops_device: list[Document] | None = msgspec.field(name="throttleReadIOPSDevice", default=None)
    throttle_write_iops_device: list[Document] | None = msgspec.field(name="throttleWriteIOPSDevice", default=None)


class Network(_Part, frozen=True):
    class_id: Uint32 | None = msgspec.field(name="classID", default=None)
    priorities: list[Document] | None = None


class Resources(_Part, frozen=True):
    devices: list[DeviceRule] | None = None
    hugepage_limits: list[HugepageLimit] | None = None
    memory: Memory | None = None
    cpu: Cpu | None = None
    pids: Pids | None = None
    block_io: BlockIo | None = msgspec.field(name="blockIO", default=None)
    network: Network | None = None
    rdma: dict[str, Document] | None = None
    unified: dict[str, str] | None = None


class Personality(_Part, frozen=True):
    domain: str = ""
    flags: list[str] | None = None


class Namespace(_Part, frozen=True):
    type: str
    path: Text = ""


class Linux(_Part, frozen=True):
    namespaces: list[Namespace] | None = None
    devices: list[Device] | None = None
    resources: Resources | None = None
    cgroups_path: Text = ""
    sysctl: dict[str, str] | None = None
    masked_paths: list[Text] | None = None
    readonly_paths: list[Text] | None = None
    seccomp: Seccomp | None = None
    uid_mappings: list[IdMapping] | None = None
    gid_mappings: list[IdMapping] | None = None
    rootfs_propagation: str = ""
    mount_label: str = ""
    personality: Personality | None = None
    intel_rdt: Document | None = None
    memory_policy: Document | None = None
    time_offsets: dict[str, Document] | None = None
    net_devices: dict[str, Document] | None = None


class Hook(_Part, frozen=True, omit_defaults=True):
    path: Text
    args: list[Text] = []
    env: list[Text] | None = None
    timeout: int | None = None


class Hooks(_Part, frozen=True):
    prestart: list[Hook] | None = None
    create_runtime: list[Hook] | None = None
    create_container: list[Hook] | None = None
    start_container: list[Hook] | None = None
    poststart: list[Hook] | None = None
    poststop: list[Hook] | None = None

    def by_kind(self) -> dict[str, list[Hook] | None]:
        """The hooks by their names in the document."""
        names = ("prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop")
        return dict(zip(names, msgspec.structs.astuple(self), strict=True))


class Spec(_Part, frozen=True):
    oci_version: str
    root: Root | None = None
    process: Process | None = None
    hostname: str = ""
    domainname: Text = ""
    mounts: list[Mount] | None = None
    hooks: Hooks | None = None
    annotations: dict[str, str] | None = None
    linux: Linux | None = None
    vm: Document | None = None
    windows: Document | None = None
    solaris: Document | None = None
    zos: Document | None = None
    freebsd: Document | None = None


def convert(value: object, kind: type[Any]) -> Any:
    """Convert ``value``, parsed from JSON, to ``kind``. Raises msgspec.ValidationError with the path of the field."""
    return msgspec.convert(value, kind)
