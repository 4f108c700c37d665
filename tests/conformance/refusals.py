"""Invalid fields, and fields that cannot be applied, are errors (runtime.md, create). The error names the field."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tests.conformance.subject import Bundle
from tests.conformance.suite import Spec, refused

Edit = Callable[[Spec, Bundle], None]


def put(path: str, value: Any) -> Edit:
    """An edit that sets one field, such as "linux.resources.network"."""

    def edit(spec: Spec, _bundle: Bundle) -> None:
        part = spec
        *parents, last = path.split(".")
        for name in parents:
            part = part.setdefault(name, {})
        part[last] = value

    return edit


def add(path: str, *entries: Any) -> Edit:
    """An edit that appends to a list."""

    def edit(spec: Spec, _bundle: Bundle) -> None:
        part: Any = spec
        for name in path.split("."):
            part = part.setdefault(name, {}) if name != path.split(".")[-1] else part.setdefault(name, [])
        part += entries

    return edit


def _no_uts(spec: Spec, _bundle: Bundle) -> None:
    spec["linux"]["namespaces"] = [kind for kind in spec["linux"]["namespaces"] if kind["type"] != "uts"]


def _limit(kind: str, soft: int = 5, hard: int = 5) -> dict[str, Any]:
    return {"type": kind, "soft": soft, "hard": hard}


WRONG = refused(
    "invalid values",
    "runtime.md#create",
    [
        ("oci-version", "ociVersion with another major version", "(?i)version", put("ociVersion", "2.0.0")),
        ("oci-version-none", "ociVersion that is not a version", "(?i)version", put("ociVersion", "newest")),
        ("rlimit-unknown", "an unknown resource limit", "(?i)rlimit",
         add("process.rlimits", _limit("RLIMIT_X"))),
        ("rlimit-duplicate", "the same resource limit twice", "(?i)rlimit",
         add("process.rlimits", _limit("RLIMIT_CORE"), _limit("RLIMIT_CORE", 3, 3))),
        ("rlimit-order", "a soft limit above the hard one", "(?i)rlimit",
         add("process.rlimits", _limit("RLIMIT_CORE", 6))),
        ("namespace-unknown", "an unknown type of namespace", "(?i)namespace",
         add("linux.namespaces", {"type": "galaxy"})),
        ("namespace-duplicate", "the same type of namespace twice", "(?i)(namespace|ns)",
         add("linux.namespaces", {"type": "ipc"})),
        ("namespace-path-wrong", "a path of a namespace that does not exist", "(?i)(namespace|no such file)",
         put("linux.namespaces", [{"type": "network", "path": "/no/such/namespace"}, {"type": "mount"}])),
        ("hostname-without-uts", "hostname without a uts namespace", "(?i)(hostname|uts)", _no_uts),
        ("mappings-without-user", "uidMappings without a user namespace", "(?i)(mapping|user namespace)",
         put("linux.uidMappings", [{"containerID": 0, "hostID": 9, "size": 1}])),
        ("sysctl-of-the-kernel", "a sysctl that belongs to no namespace", "(?i)sysctl",
         put("linux.sysctl", {"vm.swappiness": "10"})),
        ("sysctl-unknown", "an unknown sysctl", "(?i)(sysctl|no such file)",
         put("linux.sysctl", {"net.of_tomorrow": "1"})),
        ("seccomp-action", "an unknown seccomp action", "(?i)(seccomp|action)",
         put("linux.seccomp", {"defaultAction": "SCMP_ACT_HOPE"})),
        ("seccomp-architecture", "an unknown seccomp architecture", "(?i)arch",
         put("linux.seccomp", {"defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_PDP11"]})),
        ("mount-type", "an unknown file system", "(?i)(mount|no such device)",
         add("mounts", {"destination": "/x", "type": "floppyfs", "source": "none"})),
        ("mount-source", "a bind of a missing source", "(?i)(no such file|does not exist)",
         add("mounts", {"destination": "/x", "type": "bind", "source": "/no/such/source", "options": ["bind"]})),
        ("cwd-relative", "a cwd that is not absolute", "(?i)cwd", put("process.cwd", "tmp")),
        ("args-empty", "args without a program", "(?i)args", put("process.args", [])),
        ("personality-domain", "an unknown personality", "(?i)persona",
         put("linux.personality", {"domain": "SOLARIS"})),
        ("rootfs-propagation", "an unknown propagation", "(?i)(rootfs|propagation)",
         put("linux.rootfsPropagation", "viral")),
        ("unified-unknown", "an unknown file of the cgroup", "(?i)unified",
         put("linux.resources.unified", {"memory.of_tomorrow": "1"})),
        ("device-type", "an unknown type of device", "(?i)(device|type)",
         put("linux.devices", [{"path": "/dev/x", "type": "q", "major": 1, "minor": 3}])),
    ],
)  # fmt: skip

GROUPS = [WRONG]
