"""What becomes of each field of a specification, as a table. Pure.

"If the runtime cannot apply a property as specified in the configuration, it MUST generate an error" (runtime.md,
create). Engines write many fields without a wish behind them. Those ask for nothing, and are taken out here, since crun
takes some of them for a wish that it cannot fulfil. Which values that are is the :class:`Form` of the field, and every
other value of a refused field is refused.

The fields are those of the runtime specification 1.3 (config.md, config-linux.md, config-vm.md).
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from typing import Any

from hawse.errors import ConfigError


class Fate(Enum):
    """Where a field is applied, or why not."""

    GUEST = "in the guest"
    HOST = "on the host"
    BOTH = "on the host and in the guest"
    MOOT = "passed over"
    WARNED = "ignored with a warning"
    REFUSED = "refused"


#: A field of these fates has an effect.
APPLIED = (Fate.GUEST, Fate.HOST, Fate.BOTH)


class Form(Enum):
    """Which values of a field ask for nothing: null always, and those that Go's encoder writes for a field not set."""

    #: false, zero, and a text, a list or a map that is empty.
    VALUE = "null, zero, false, and what is empty"
    #: As that, and -1, which lifts a limit.
    LIMIT = "the same, and -1"
    #: An object of the specification is there or not: an empty one has defaults, or lacks what is required.
    OBJECT = "null"


@dataclass(frozen=True)
class Field:
    """``path`` is from the document's root, with "[]" for each entry of a list. ``why`` ends the sentence of a refusal,
    is the reason of one that is passed over, and of others what there is to say of where they are applied. ``form``
    says which values of one that is refused or ignored ask for nothing."""

    path: str
    fate: Fate
    why: str = ""
    hint: str = "remove it"
    form: Form = Form.VALUE

    def asks(self, value: object) -> bool:
        """Whether a value of the field asks for something."""
        if self.form is Form.OBJECT:
            return value is not None
        return bool(value) and not (self.form is Form.LIMIT and value == -1)


def _fields(
    fate: Fate, paths: str, why: str = "", hint: str = "remove it", form: Form = Form.VALUE
) -> tuple[Field, ...]:
    return tuple(Field(path, fate, why, hint, form) for path in paths.split())


POLICY = "the guest's kernel has no policy of the host's security modules, and its processes cannot reach the host"
_DISK = "the container's files come over a shared directory: the guest has no disk to limit"
_PLATFORM = "a container of another platform cannot be run"
_VM = "the virtual machine is what hawse's configuration says"
_CPUS = "the host's CPUs are not the guest's"

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
    *_fields(Fate.HOST, "mounts[].uidMappings mounts[].gidMappings", "the directory is mapped before it is shared"),
    *_fields(
        Fate.HOST,
        "process.selinuxLabel",
        "QEMU and virtiofsd have the label of the first container; without SELinux it is an error, as under runc",
    ),
    *_fields(
        Fate.WARNED,
        "process.apparmorProfile",
        POLICY,
        "have the engine ask for none: --security-opt apparmor=unconfined",
    ),
    *_fields(Fate.WARNED, "linux.resources.memory.swappiness", "the guest has no swap"),
    *_fields(Fate.WARNED, "process.commandLine process.user.username", "it is of containers of Windows"),
    *_fields(Fate.MOOT, "linux.mountLabel", POLICY),
    *_fields(
        Fate.MOOT,
        "linux.resources.memory.useHierarchy",
        "every cgroup of version 2, which the guest has, is one of a tree",
    ),
    *_fields(
        Fate.MOOT, "linux.resources.memory.checkBeforeUpdate", "it is of updates, and a new container uses nothing"
    ),
    *_fields(
        Fate.REFUSED, "process.scheduler process.ioPriority", "the guest's runtime cannot set it", form=Form.OBJECT
    ),
    *_fields(Fate.REFUSED, "process.execCPUAffinity", _CPUS, form=Form.OBJECT),
    *_fields(Fate.REFUSED, "linux.intelRdt", "a guest has no cache allocation", form=Form.OBJECT),
    *_fields(
        Fate.REFUSED,
        "linux.seccomp.listenerPath linux.seccomp.listenerMetadata",
        "the guest cannot reach a listener of the host",
    ),
    *_fields(Fate.REFUSED, "linux.personality.flags", "the specification has none"),
    *_fields(Fate.REFUSED, "linux.memoryPolicy", "the host's memory nodes are not the guest's", form=Form.OBJECT),
    *_fields(Fate.REFUSED, "linux.timeOffsets", "the guest's runtime cannot set them"),
    *_fields(
        Fate.REFUSED,
        "linux.netDevices",
        "an interface of the host cannot be moved into a guest",
        "put it into the container's network namespace, or pass its PCI device",
    ),
    *_fields(
        Fate.REFUSED,
        "linux.resources.memory.kernel linux.resources.memory.kernelTCP",
        "cgroup v2, which the guest has, knows no such limit",
        "memory.limit counts the kernel's memory too",
        Form.LIMIT,
    ),
    *_fields(
        Fate.REFUSED,
        "linux.resources.memory.disableOOMKiller",
        "cgroup v2, which the guest has, cannot do without its kills",
    ),
    *_fields(
        Fate.REFUSED,
        "linux.resources.cpu.realtimeRuntime linux.resources.cpu.realtimePeriod",
        "cgroup v2, which the guest has, knows no such limit",
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
#: What engines name where they ask for no policy.
_NO_PROFILE = "unconfined"


def review(name: str, document: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """A copy of a specification without what is ignored or asks for nothing; and warnings.

    Raises :class:`ConfigError`, naming the first field that is refused; ``name`` is the document's.
    """
    spec = copy.deepcopy(document)
    warnings = _review(name, spec, FIELDS, "")
    resources = (spec.get("linux") or {}).get("resources")
    if isinstance(resources, dict):
        _prune(resources)
    return spec, warnings


def review_process(name: str, document: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """As :func:`review`, of a process only, as ``exec`` gets it; its label is that of a VM which runs already."""
    process = copy.deepcopy(document)
    process.pop("selinuxLabel", None)
    fields = [field for field in FIELDS if field.path.startswith(_PROCESS)]
    return process, _review(name, process, fields, _PROCESS)


def is_set(value: object) -> bool:
    """Whether a limit that can be applied asks for something: none of those that can has a meaning below zero but
    "unlimited"."""
    if isinstance(value, dict):
        return any(map(is_set, value.values()))
    if isinstance(value, int | float):
        return value > 0
    return bool(value)


def _review(name: str, document: dict[str, Any], fields: tuple[Field, ...] | list[Field], prefix: str) -> list[str]:
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


def _prune(limits: dict[str, Any]) -> None:
    """Leave of limits what asks for something, since crun refuses sections that it does not know even when empty."""
    for name, value in list(limits.items()):
        if not is_set(value):
            del limits[name]
        elif isinstance(value, dict):
            _prune(value)


def _find(document: Any, path: str, where: str = "") -> Iterator[tuple[dict[str, Any], str, str]]:
    """(object, key, path of it in words) of each place of the field that is there."""
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
