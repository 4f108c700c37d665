"""A table of all fields of a specification: where hawse applies each field, or why it ignores or refuses it. Pure.

"If the runtime cannot apply a property as specified in the configuration, it MUST generate an error" (runtime.md,
create). Engines also write fields with values that request nothing, such as 0. hawse removes these fields, since crun
would try to apply some of them and fail. The :class:`Form` of a field lists its values that request nothing; every
other value of a refused field is an error.

The fields are those of the runtime specification 1.3 (config.md, config-linux.md, config-vm.md).
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from typing import Any

from hawse.errors import ConfigError
from hawse.json_text import Document


class Fate(Enum):
    """Where hawse applies a field, or what it does instead."""

    GUEST = "in the guest"
    HOST = "on the host"
    BOTH = "on the host and in the guest"
    MOOT = "ignored"
    WARNED = "ignored with a warning"
    REFUSED = "refused"


#: Fields with one of these fates have an effect.
APPLIED = (Fate.GUEST, Fate.HOST, Fate.BOTH)


class Form(Enum):
    """The values of a field that request nothing: null, and the values that Go's encoder writes for an unset field."""

    #: false, zero, and an empty text, list or map.
    VALUE = "null, zero, false, and an empty text, list or object"
    #: The same, and -1, which means no limit.
    LIMIT = "the same, and -1"
    #: Only null: an empty object means its defaults, or lacks a required field.
    OBJECT = "null"


@dataclass(frozen=True)
class Field:
    """A row of the table: a field and how hawse handles it.

    ``path`` starts at the document's root, with "[]" for each entry of a list. ``why`` is the reason why a field is
    refused or ignored, and for other fields a remark on where they are applied. ``form`` defines which values of a
    refused or ignored field request nothing.
    """

    path: str
    fate: Fate
    why: str = ""
    hint: str = "remove it"
    form: Form = Form.VALUE

    def asks(self, value: object) -> bool:
        """Whether a value of the field requests something."""
        if self.form is Form.OBJECT:
            return value is not None
        return bool(value) and not (self.form is Form.LIMIT and value == -1)


def _fields(
    fate: Fate, paths: str, why: str = "", hint: str = "remove it", form: Form = Form.VALUE
) -> tuple[Field, ...]:
    return tuple(Field(path, fate, why, hint, form) for path in paths.split())


POLICY = (
    "the guest kernel does not load the policy of the host's security modules, and its processes cannot reach the host"
)
_DISK = "the container's files are in a shared directory: the guest has no disk to limit"
_PLATFORM = "hawse runs Linux containers only"
_VM = "hawse's configuration defines the virtual machine"
_CPUS = "the guest does not number its CPUs as the host does"

FIELDS: tuple[Field, ...] = (
    *_fields(Fate.HOST, "ociVersion annotations root.path linux.cgroupsPath"),
    *_fields(Fate.BOTH, "root.readonly mounts hooks process.terminal linux.namespaces"),
    *_fields(
        Fate.GUEST,
        "hostname domainname process.args process.cwd process.env process.user process.capabilities process.rlimits "
        "process.noNewPrivileges process.oomScoreAdj process.consoleSize linux.uidMappings linux.gidMappings "
        "linux.devices linux.sysctl linux.seccomp linux.rootfsPropagation linux.maskedPaths linux.readonlyPaths "
        "linux.personality",
    ),
    *_fields(
        Fate.GUEST,
        "linux.resources.devices linux.resources.unified linux.resources.hugepageLimits linux.resources.pids.limit "
        "linux.resources.memory.limit linux.resources.memory.reservation linux.resources.memory.swap "
        "linux.resources.cpu.quota linux.resources.cpu.period linux.resources.cpu.burst linux.resources.cpu.idle",
    ),
    *_fields(Fate.BOTH, "linux.resources.cpu.shares"),
    *_fields(Fate.HOST, "linux.resources.cpu.cpus linux.resources.cpu.mems"),
    *_fields(
        Fate.HOST,
        "mounts[].uidMappings mounts[].gidMappings",
        "the owners are mapped on the host before the directory is shared",
    ),
    *_fields(
        Fate.HOST,
        "process.selinuxLabel",
        "QEMU and virtiofsd run with the label of the first container; on a host without SELinux a label is an "
        "error, as under runc",
    ),
    *_fields(
        Fate.WARNED,
        "process.apparmorProfile",
        POLICY,
        "disable it in the engine: --security-opt apparmor=unconfined",
    ),
    *_fields(Fate.WARNED, "linux.resources.memory.swappiness", "the guest has no swap"),
    *_fields(Fate.WARNED, "process.commandLine process.user.username", "it applies to Windows containers only"),
    *_fields(Fate.MOOT, "linux.mountLabel", POLICY),
    *_fields(
        Fate.MOOT,
        "linux.resources.memory.useHierarchy",
        "the guest uses cgroup v2, where every cgroup counts its descendants",
    ),
    *_fields(
        Fate.MOOT,
        "linux.resources.memory.checkBeforeUpdate",
        "it applies to updates only: a new container uses no memory yet",
    ),
    *_fields(
        Fate.REFUSED,
        "process.scheduler process.ioPriority",
        "the guest's runtime does not support it",
        form=Form.OBJECT,
    ),
    *_fields(Fate.REFUSED, "process.execCPUAffinity", _CPUS, form=Form.OBJECT),
    *_fields(Fate.REFUSED, "linux.intelRdt", "the guest cannot allocate CPU cache", form=Form.OBJECT),
    *_fields(
        Fate.REFUSED,
        "linux.seccomp.listenerPath linux.seccomp.listenerMetadata",
        "the guest cannot reach a listener of the host",
    ),
    *_fields(Fate.REFUSED, "linux.personality.flags", "the specification defines no flags"),
    *_fields(Fate.REFUSED, "linux.memoryPolicy", "the guest does not have the host's memory nodes", form=Form.OBJECT),
    *_fields(Fate.REFUSED, "linux.timeOffsets", "the guest's runtime does not support time offsets"),
    *_fields(
        Fate.REFUSED,
        "linux.netDevices",
        "an interface of the host cannot be moved into a guest",
        "put it into the container's network namespace, or pass its PCI device",
    ),
    *_fields(
        Fate.REFUSED,
        "linux.resources.memory.kernel linux.resources.memory.kernelTCP",
        "the guest uses cgroup v2, which has no such limit",
        "memory.limit includes kernel memory",
        Form.LIMIT,
    ),
    *_fields(
        Fate.REFUSED,
        "linux.resources.memory.disableOOMKiller",
        "the guest uses cgroup v2, which cannot disable the OOM killer",
    ),
    *_fields(
        Fate.REFUSED,
        "linux.resources.cpu.realtimeRuntime linux.resources.cpu.realtimePeriod",
        "the guest uses cgroup v2, which has no such limit",
    ),
    *_fields(
        Fate.REFUSED,
        "linux.resources.blockIO.weight linux.resources.blockIO.leafWeight linux.resources.blockIO.weightDevice "
        "linux.resources.blockIO.throttleReadBpsDevice linux.resources.blockIO.throttleWriteBpsDevice "
        "linux.resources.blockIO.throttleReadIOPSDevice linux.resources.blockIO.throttleWriteIOPSDevice",
        _DISK,
    ),
    *_fields(
        Fate.REFUSED,
        "linux.resources.network.classID linux.resources.network.priorities",
        "the guest's cgroups do not mark packets",
    ),
    *_fields(Fate.REFUSED, "linux.resources.rdma", "the guest has no RDMA devices"),
    *_fields(
        Fate.REFUSED,
        "vm.hypervisor vm.kernel vm.image vm.hwConfig vm",
        _VM,
        "see vm and image in the configuration file",
        Form.OBJECT,
    ),
    *_fields(Fate.REFUSED, "windows solaris zos freebsd", _PLATFORM, form=Form.OBJECT),
)

_PROCESS = "process."
#: The profile name with which engines request no policy.
_NO_PROFILE = "unconfined"


def review(name: str, document: Document) -> tuple[Document, list[str]]:
    """Copy a specification without ignored fields and without fields that request nothing; return it and warnings.

    ``name`` is the document's name for errors. Raises :class:`ConfigError` naming the first field that is refused.
    """
    spec = copy.deepcopy(document)
    warnings = _review(name, spec, FIELDS, "")
    resources = (spec.get("linux") or {}).get("resources")
    if isinstance(resources, dict):
        _prune(resources)
    return spec, warnings


def review_process(name: str, document: Document) -> tuple[Document, list[str]]:
    """Like :func:`review`, for the process of an ``exec``. Its SELinux label is removed, since the VM already runs."""
    process = copy.deepcopy(document)
    process.pop("selinuxLabel", None)
    fields = [field for field in FIELDS if field.path.startswith(_PROCESS)]
    return process, _review(name, process, fields, _PROCESS)


def is_set(value: object) -> bool:
    """Whether a limit requests something. For all limits that hawse can apply, a negative value means unlimited."""
    if isinstance(value, dict):
        return any(map(is_set, value.values()))
    if isinstance(value, int | float):
        return value > 0
    return bool(value)


def _review(name: str, document: Document, fields: tuple[Field, ...] | list[Field], prefix: str) -> list[str]:
    warnings = []
    for field in fields:
        if field.fate not in (Fate.REFUSED, Fate.MOOT, Fate.WARNED):
            continue
        for parent, last, where in list(_find(document, field.path.removeprefix(prefix))):
            value = parent.pop(last)
            if not field.asks(value) or value == _NO_PROFILE:
                continue
            if field.fate is Fate.REFUSED:
                raise ConfigError(f"{name}: {where}: {field.why}", hint=field.hint)
            if field.fate is Fate.WARNED:
                about = f": {value[:80]!r}" if isinstance(value, str) else ""
                warnings.append(f"{where}{about} has no effect: {field.why} [{field.hint}]")
    return warnings


def _prune(limits: Document) -> None:
    """Remove limits that request nothing, in place: crun refuses sections that it does not support, even empty ones."""
    for name, value in list(limits.items()):
        if not is_set(value):
            del limits[name]
        elif isinstance(value, dict):
            _prune(value)


def _find(document: Any, path: str, where: str = "") -> Iterator[tuple[Document, str, str]]:
    """Each occurrence of the field: the object that contains it, its key, and its path for messages."""
    head, _, rest = path.partition(".")
    key = head.removesuffix("[]")
    if not isinstance(document, dict) or key not in document:
        return
    if not rest:
        yield document, key, f"{where}{key}"
    elif head == key:
        yield from _find(document[key], rest, f"{where}{key}.")
    else:
        for index, entry in enumerate(document[key] if isinstance(document[key], list) else ()):
            yield from _find(entry, rest, f"{where}{key}[{index}].")
