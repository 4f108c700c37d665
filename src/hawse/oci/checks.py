"""What of a specification makes no sense wherever it is run, found before anything is made. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hawse.errors import ConfigError
from hawse.oci.seccomp import check_seccomp
from hawse.oci.types import Linux, Rlimit, Spec

#: getrlimit(2).
RLIMITS = (
    "AS", "CORE", "CPU", "DATA", "FSIZE", "LOCKS", "MEMLOCK", "MSGQUEUE", "NICE", "NOFILE", "NPROC", "RSS", "RTPRIO",
    "RTTIME", "SIGPENDING", "STACK",
)  # fmt: skip
NAMESPACES = ("cgroup", "ipc", "mount", "network", "pid", "time", "user", "uts")
PROPAGATIONS = ("", "private", "rprivate", "shared", "rshared", "slave", "rslave", "unbindable", "runbindable")
DOMAINS = ("LINUX", "LINUX32")
#: The controllers of cgroup v2 whose files mean the same in a guest.
UNIFIED = ("cpu.", "hugetlb.", "memory.", "pids.")


def check_rlimits(name: str, prefix: str, rlimits: Sequence[Rlimit]) -> None:
    """Raise :class:`ConfigError` for a limit that there is not, that is there twice or whose order is wrong."""
    seen: set[str] = set()
    for index, limit in enumerate(rlimits):
        where = f"{name}: {prefix}rlimits[{index}]"
        if limit.type.removeprefix("RLIMIT_") not in RLIMITS or not limit.type.startswith("RLIMIT_"):
            raise ConfigError(f"{where}.type: {limit.type[:80]!r} is no resource limit", hint="see getrlimit(2)")
        if limit.type in seen:
            raise ConfigError(f"{where}: {limit.type} is there twice", hint="take one of the two out")
        if limit.soft > limit.hard:
            raise ConfigError(f"{where}: {limit.type}: soft {limit.soft} is above hard {limit.hard}", hint="lower it")
        seen.add(limit.type)


def check_linux(name: str, spec: Spec) -> list[str]:
    """What to warn of. Raises :class:`ConfigError` for namespaces, what needs them, propagation, the execution domain,
    seccomp and files of cgroups."""
    linux = spec.linux or Linux()
    kinds: list[str] = []
    for index, namespace in enumerate(linux.namespaces or ()):
        where = f"{name}: linux.namespaces[{index}]"
        if namespace.type not in NAMESPACES:
            raise ConfigError(
                f"{where}.type: {namespace.type[:80]!r} is no kind of namespace", hint=f"one of {', '.join(NAMESPACES)}"
            )
        if namespace.type in kinds:
            raise ConfigError(f"{where}: the {namespace.type} namespace is there twice", hint="take one of the two out")
        kinds.append(namespace.type)
    for field, needs, value in (
        ("linux.uidMappings", "user", linux.uid_mappings),
        ("linux.gidMappings", "user", linux.gid_mappings),
    ):
        if value and needs not in kinds:
            raise ConfigError(
                f"{name}: {field}: the container has no {needs} namespace",
                hint=f"add one to linux.namespaces, or remove {field}",
            )
    if linux.rootfs_propagation not in PROPAGATIONS:
        raise ConfigError(
            f"{name}: linux.rootfsPropagation: {linux.rootfs_propagation[:80]!r} is unknown",
            hint="private, shared, slave or unbindable, with r before it for what is below",
        )
    if linux.personality and linux.personality.domain not in DOMAINS:
        raise ConfigError(
            f"{name}: linux.personality.domain: {linux.personality.domain[:80]!r} is unknown",
            hint=f"one of {', '.join(DOMAINS)}, or remove linux.personality",
        )
    for file in (linux.resources.unified or ()) if linux.resources else ():
        if not file.startswith(UNIFIED) or "/" in file:
            raise ConfigError(
                f"{name}: linux.resources.unified: {file[:80]!r} cannot be set in the guest's cgroup",
                hint=f"files of the controllers {', '.join(prefix.rstrip('.') for prefix in UNIFIED)} can",
            )
    return check_seccomp(name, linux.seccomp) if linux.seccomp else []


def check_options(where: str, options: Sequence[str]) -> None:
    """Raise :class:`ConfigError` for a mount's options that a guest cannot have. ``where`` names the mount.

    crun 1.8.1 makes every mount as private as the root is, whatever its own propagation; that of the host's directories
    ends at the machine.
    """
    for option in options:
        if option in ("shared", "rshared", "unbindable", "runbindable"):
            raise ConfigError(
                f"{where}.options: {option}: mounts in the guest are private, and cannot appear on the host",
                hint="rslave has what the host mounts appear in the container",
            )


def checked_mount(where: str, mount: dict[str, Any], *, bind: bool) -> dict[str, Any]:
    """The mount as the guest's runtime takes it, in the words of runc. ``where`` names it.

    crun 1.8.1 knows a bind by its options only, and refuses tmpcopyup of what is no tmpfs, which runc ignores. Raises
    :class:`ConfigError` for a mount without a type.
    """
    if not bind and not mount.get("type"):
        raise ConfigError(f"{where}.type: missing", hint="name the file system, or add bind to the options")
    options = list(mount.get("options") or ())
    kept = [option for option in options if option != "tmpcopyup" or mount.get("type") == "tmpfs"]
    if bind and not {"bind", "rbind"} & set(kept):
        kept = ["rbind", *kept]
    return mount if kept == options else mount | {"options": kept}
