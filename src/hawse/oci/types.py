"""The parts of config.json that hawse looks at (OCI runtime-spec config.md, config-linux.md).

Unknown properties are ignored, as the specification demands; what is known is checked for its type and range. The
document itself is kept beside these objects, so that what is not listed here reaches the guest unchanged.
"""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from msgspec import Meta, Struct

Uint32 = Annotated[int, Meta(ge=0, le=2**32 - 1)]
Int64 = Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)]
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


class Box(_Part, frozen=True):
    height: Annotated[int, Meta(ge=0, le=65535)]
    width: Annotated[int, Meta(ge=0, le=65535)]


class Rlimit(_Part, frozen=True):
    type: str
    hard: Annotated[int, Meta(ge=0)]
    soft: Annotated[int, Meta(ge=0)]


class Process(_Part, frozen=True):
    cwd: Text
    args: list[Text] = []
    env: list[Text] = []
    terminal: bool = False
    console_size: Box | None = None
    user: User = User()
    capabilities: dict[str, list[str]] | None = None
    rlimits: list[Rlimit] = []
    no_new_privileges: bool = False
    apparmor_profile: str = ""
    selinux_label: str = ""
    oom_score_adj: int | None = None


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
    limit: int | None = None


class Cpu(_Part, frozen=True):
    shares: Annotated[int, Meta(ge=0)] | None = None
    quota: int | None = None
    period: int | None = None
    burst: Annotated[int, Meta(ge=0)] | None = None
    cpus: Text = ""
    mems: Text = ""


class Resources(_Part, frozen=True):
    devices: list[DeviceRule] | None = None
    hugepage_limits: list[HugepageLimit] | None = None
    memory: Memory | None = None
    cpu: Cpu | None = None
    unified: dict[str, str] | None = None


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
    seccomp: dict[str, Any] | None = None
    uid_mappings: list[IdMapping] | None = None
    gid_mappings: list[IdMapping] | None = None
    rootfs_propagation: str = ""


class Hook(_Part, frozen=True, omit_defaults=True):
    path: Text
    args: list[Text] = []
    env: list[Text] | None = None
    timeout: int | None = None


class Spec(_Part, frozen=True):
    oci_version: str
    root: Root | None = None
    process: Process | None = None
    hostname: str = ""
    domainname: Text = ""
    mounts: list[Mount] | None = None
    hooks: dict[str, list[Hook] | None] | None = None
    annotations: dict[str, str] | None = None
    linux: Linux | None = None


def convert(value: object, kind: type[Any]) -> Any:
    """``value``, from JSON, as ``kind``; raises msgspec.ValidationError with the path of the field."""
    return msgspec.convert(value, kind)
