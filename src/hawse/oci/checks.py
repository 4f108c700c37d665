"""Checks of a specification that do not depend on the host, made before anything is created. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from hawse.errors import ConfigError
from hawse.json_text import Document
from hawse.oci.seccomp_checks import check_seccomp
from hawse.oci.types import Linux, Rlimit, Spec

#: The resource limits of getrlimit(2).
RLIMITS = (
    "AS", "CORE", "CPU", "DATA", "FSIZE", "LOCKS", "MEMLOCK", "MSGQUEUE", "NICE", "NOFILE", "NPROC", "RSS", "RTPRIO",
    "RTTIME", "SIGPENDING", "STACK",
)  # fmt: skip
NAMESPACES = ("cgroup", "ipc", "mount", "network", "pid", "time", "user", "uts")
PROPAGATIONS = ("", "private", "rprivate", "shared", "rshared", "slave", "rslave", "unbindable", "runbindable")
DOMAINS = ("LINUX", "LINUX32")
#: Controllers of cgroup v2 whose files mean the same in a guest.
UNIFIED = ("cpu.", "hugetlb.", "memory.", "pids.")


def check_rlimits(name: str, prefix: str, rlimits: Sequence[Rlimit]) -> None:
    """Raise :class:`ConfigError` for an unknown or repeated limit, and for a soft limit above the hard limit."""
    seen: set[str] = set()
    for index, limit in enumerate(rlimits):
        where = f"{name}: {prefix}rlimits[{index}]"
        if limit.type.removeprefix("RLIMIT_") not in RLIMITS or not limit.type.startswith("RLIMIT_"):
            raise ConfigError(f"{where}.type: {limit.type[:80]!r} is not a resource limit", hint="see getrlimit(2)")
        if limit.type in seen:
            raise ConfigError(f"{where}: {limit.type} is listed twice", hint="remove one of the two")
        if limit.soft > limit.hard:
            raise ConfigError(f"{where}: {limit.type}: soft {limit.soft} is above hard {limit.hard}", hint="lower it")
        seen.add(limit.type)


def check_linux(name: str, spec: Spec) -> list[str]:
    """Check the fields of ``linux``. Returns warnings.

    Raises :class:`ConfigError` for invalid namespaces, mappings without a user namespace, propagation, execution
    domain, seccomp filters and cgroup files.
    """
    linux = spec.linux or Linux()
    kinds: list[str] = []
    for index, namespace in enumerate(linux.namespaces or ()):
        where = f"{name}: linux.namespaces[{index}]"
        if namespace.type not in NAMESPACES:
            raise ConfigError(
                f"{where}.type: {namespace.type[:80]!r} is not a kind of namespace",
                hint=f"one of {', '.join(NAMESPACES)}",
            )
        if namespace.type in kinds:
            raise ConfigError(f"{where}: the {namespace.type} namespace is listed twice", hint="remove one of the two")
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
            hint="use private, shared, slave or unbindable, prefixed with r to include the mounts below",
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
    """Raise :class:`ConfigError` for mount options that a guest cannot support. ``where`` names the mount in errors.

    crun 1.8.1 mounts everything with the propagation of the root, and ignores that of the mount. Mounts do not
    propagate from the guest to the directories of the host.
    """
    for option in options:
        if option in ("shared", "rshared", "unbindable", "runbindable"):
            raise ConfigError(
                f"{where}.options: {option}: mounts in the guest are private, and cannot appear on the host",
                hint="with rslave, mounts of the host appear in the container",
            )


def checked_mount(where: str, mount: Document, *, bind: bool) -> Document:
    """Convert a mount that runc accepts to a form that the guest's runtime accepts. ``where`` names it in errors.

    crun 1.8.1 recognizes a bind mount only by its options. It refuses tmpcopyup for file systems other than tmpfs,
    where runc ignores the option. Raises :class:`ConfigError` for a mount without a type.
    """
    if not bind and not mount.get("type"):
        raise ConfigError(f"{where}.type: missing", hint="set the type of the file system, or add bind to the options")
    options = list(mount.get("options") or ())
    kept = [option for option in options if option != "tmpcopyup" or mount.get("type") == "tmpfs"]
    if bind and not {"bind", "rbind"} & set(kept):
        kept = ["rbind", *kept]
    return mount if kept == options else mount | {"options": kept}
