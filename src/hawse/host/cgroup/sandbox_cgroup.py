"""The cgroups of a sandbox on the host. Engines find them by the proxy's pid. Standard library only.

The directories are recorded in the sandbox's directory before they are created, so that `delete` removes them however
the sandbox ended. docs/cgroups.md describes which processes are in them, and which limits apply there.
"""

from __future__ import annotations

import errno
import os
import threading
import time
from contextlib import suppress

from hawse.errors import HostError
from hawse.host.cgroup import oom
from hawse.linux.files import read_attribute, write_attribute

TYPE_CHECKING = False  # typing's import would cost a hot verb a tenth of its time
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from hawse.linux.processes import Process
    from hawse.oci.limits.cgroups import CgroupPlan, HostLimits

    Enter = Callable[[CgroupPlan, int], list[str]]

#: Files in the sandbox's directory: the paths of the cgroups, one per line, and the name of their systemd unit.
_RECORD, _UNIT = "cgroups", "scope"
_SECONDS = 5.0
#: Files that limits of a running container change, of version 2 and 1. A period comes before its quota.
_LIMITS = (
    "cpu.weight", "cpu.shares", "cpuset.cpus", "cpuset.mems", "cpu.max", "cpu.cfs_period_us", "cpu.cfs_quota_us",
)  # fmt: skip


class Hierarchy:
    """A mounted hierarchy: its ``version``, 1 or 2, and for version 1 its ``controllers``."""

    __slots__ = ("controllers", "mount", "version")

    def __init__(self, mount: str, version: int, controllers: frozenset[str]) -> None:
        self.mount = mount
        self.version = version
        self.controllers = controllers


def hierarchies(mountinfo: str) -> list[Hierarchy]:
    """The hierarchies in the text of /proc/self/mountinfo (proc(5)), each once."""
    mounted: dict[str, Hierarchy] = {}
    for line in mountinfo.split("\n"):
        left, _, right = line.partition(" - ")
        kind, _, options = [*right.split(" "), "", "", ""][:3]
        mount = [*left.split(" "), *[""] * 5][4]
        if kind == "cgroup2":
            mounted.setdefault("", Hierarchy(mount, 2, frozenset()))
        elif kind == "cgroup":
            names = frozenset(word for word in options.split(",") if word not in _MOUNT_OPTIONS)
            mounted.setdefault(",".join(sorted(names)), Hierarchy(mount, 1, names))
    return list(mounted.values())


_MOUNT_OPTIONS = ("rw", "ro", "xattr", "noprefix", "clone_children", "all", "none")


class HostCgroup:
    """The cgroup of one container. ``directory`` is the container's state directory, which contains the record."""

    def __init__(self, plan: CgroupPlan, directory: str) -> None:
        self._plan = plan
        self._directory = directory
        self._lock = threading.Lock()

    @property
    def is_made(self) -> bool:
        """Whether it was created, or its creation was tried."""
        return os.path.exists(f"{self._directory}/{_RECORD}")

    def make(self, *, mountinfo: str = "/proc/self/mountinfo") -> list[str]:
        """Create the directories. Returns warnings.

        Raises :class:`HostError` if a requested limit cannot be set. A container without limits starts without a cgroup
        if none can be created.
        """
        if not self._plan.path or self.is_made:
            return []
        # Imported here, since hot verbs load this module but do not need it.
        from hawse.linux.mountinfo import read_text

        mounted = hierarchies(read_text(mountinfo))
        directories = {f"{hierarchy.mount}{self._plan.path}": hierarchy for hierarchy in mounted}
        with open(f"{self._directory}/{_RECORD}", "w") as file:
            file.write("".join(f"{path}\n" for path in directories))
        missing = []
        for path, hierarchy in directories.items():
            try:
                _make(path, hierarchy)
            except OSError as error:
                missing.append(f"{path}: {error.strerror}")
        if len(missing) == len(directories):
            reason = missing[0] if missing else "none is mounted"
            none = "the host's cgroups cannot be used: engines find no statistics, and the sandbox has no limits there"
            return [*self.limit(self._plan.limits.asked_for), f"{none}: {reason}"]
        return [*self.limit(self._plan.limits), *(f"no cgroup at {text}" for text in missing)]

    def limit(self, limits: HostLimits) -> list[str]:
        """Set the limits of the host's cgroup. Returns warnings for limits that cannot be set.

        Raises :class:`HostError` for CPUs and memory nodes, which nothing else enforces. Shares are also set in the
        guest. The size of the VM already limits memory, tasks and CPU time.
        """
        warnings = []
        for setting in _settings(limits):
            reason, remedy = self._set(setting.files) if setting.value else ("", "")
            if reason:
                value = str(setting.value)[:80]
                text = f"{setting.name}: {value!r} is not set in the host's cgroup: {reason}"
                if setting.required:
                    raise HostError(text, hint=remedy)
                warnings.append(f"{text} [{remedy}]")
        return warnings

    def values(self) -> dict[str, str]:
        """The content of the files that :meth:`limit` writes for an update, by path; for :meth:`restore`."""
        paths = [f"{path}/{name}" for path in _recorded(self._directory) for name in _LIMITS]
        contents = {}
        for path in paths:
            with suppress(OSError):  # a controller that this cgroup lacks
                contents[path] = read_attribute(path)
        return contents

    def restore(self, values: Mapping[str, str]) -> None:
        """Undo :meth:`limit`: write the files that have changed since :meth:`values`. Raises :class:`HostError`."""
        for path, text in values.items():
            try:
                if read_attribute(path) != text:
                    write_attribute(path, text or "\n")  # nothing is written by a write of no bytes
            except OSError as error:
                raise HostError(f"{path} cannot be set back to {text!r}: {error.strerror}") from None

    def inherit(self, name: str) -> None:
        """Set ``cpuset.cpus`` or ``cpuset.mems`` to all that the parent cgroup allows. Raises :class:`HostError`."""
        for path in _recorded(self._directory):
            if not os.path.exists(f"{path}/{name}"):
                continue
            # In version 2 an empty list inherits the parent's (Linux Documentation/admin-guide/cgroup-v2.rst,
            # cpuset.cpus).
            is_v2 = os.path.exists(f"{path}/cgroup.controllers")
            try:
                write_attribute(f"{path}/{name}", "\n" if is_v2 else read_attribute(f"{os.path.dirname(path)}/{name}"))
            except OSError as error:
                raise HostError(f"{path}/{name} cannot be set to the parent cgroup's: {error.strerror}") from None

    def place(
        self, process: Process, *, mountinfo: str = "/proc/self/mountinfo", enter: Enter | None = None
    ) -> list[str]:
        """Move the process into the cgroup, and create the cgroup first if it is missing. Returns warnings.

        ``enter`` asks systemd to create it; directories that are then still missing are created without systemd. Raises
        as :meth:`make`.
        """
        warnings = []
        if not self.is_made and process.is_alive():
            # Imported here, since hot verbs load this module but do not need it.
            from hawse.host.cgroup.systemd import enter_scope

            warnings = (enter or enter_scope)(self._plan, process.pid)
            if self._plan.unit and not warnings:
                with open(f"{self._directory}/{_UNIT}", "w") as file:
                    file.write(self._plan.unit)
            warnings = [*warnings, *self.make(mountinfo=mountinfo)]
        return [*warnings, *self.add(process)]

    def add(self, process: Process) -> list[str]:
        """Move the process into the cgroup; its future children follow. Returns warnings.

        It is not an error if the process has ended. The kernel accepts only a pid here. Another process can get this
        pid only after all other pids were assigned since the check that the process is alive: they are assigned in turn
        (Linux kernel/pid.c, alloc_pid()).
        """
        warnings = []
        with self._lock:
            for path in _recorded(self._directory):
                if not process.is_alive():
                    break
                try:
                    write_attribute(f"{path}/cgroup.procs", str(process.pid))
                except OSError as error:
                    # ENOENT: it could not be created, which was reported then. EBUSY and ENOSPC: the cgroup exists, but
                    # accepts no processes (cgroup-v2.rst, "No Internal Process Constraint"; cgroup-v1/cpusets.rst).
                    if error.errno not in (errno.ENOENT, errno.ESRCH):
                        warnings.append(f"cannot move a process into the cgroup {path}: {error.strerror}")
        return warnings

    def record_oom(self) -> None:
        """Record an OOM kill in the guest for engines, in each cgroup where this is possible. Raises OSError."""
        with self._lock:
            for path in _recorded(self._directory):
                if os.path.isdir(path) and not oom.unfit(path):
                    oom.record(path)

    def _set(self, alternatives: Sequence[dict[str, str]]) -> tuple[str, str]:
        """Write the files of the first alternative that exists. If none can be written, returns the reason and a
        remedy, otherwise ("", "")."""
        paths = [path for path in _recorded(self._directory) if os.path.isdir(path)]
        failure = ""
        for path in paths:
            for files in alternatives:
                name = next(iter(files))
                if not os.path.exists(f"{path}/{name}"):
                    continue
                try:
                    for name, text in files.items():
                        write_attribute(f"{path}/{name}", text)
                except OSError as error:
                    failure = f"{path}/{name}: {error.strerror}"
                    continue
                return "", ""
        if failure:
            return failure, "use a value that the parent cgroup allows"
        if paths:
            controller = next(iter(alternatives[0])).partition(".")[0]
            return f"{paths[0]} has no controller {controller}", f"enable {controller} in its parent cgroups"
        if self._plan.path:
            return "it could not be created", "give hawse write access to the host's cgroups"
        return (
            "the container has no cgroup there: config.json has neither linux.cgroupsPath nor a limit that needs one",
            "set linux.cgroupsPath and create the container again",
        )


class _Setting:
    """A limit: its name for the user, its value, and the files to write by version of the cgroups."""

    def __init__(self, name: str, value: int | str, *files: dict[str, str], required: bool = False) -> None:
        self.name = name
        self.value = value
        self.files = files
        self.required = required


def _settings(limits: HostLimits) -> list[_Setting]:
    """Limits and their files in version 2 and 1 (Linux Documentation/admin-guide/cgroup-v2.rst, cgroup-v1/)."""
    cpu = "linux.resources.cpu"
    # Map the range 2 to 262144 to 1 to 10000, as runc and systemd do.
    weight = 1 + (min(max(limits.shares, 2), 262144) - 2) * 9999 // 262142
    memory, tasks, quota, period = map(str, (limits.memory, limits.tasks, limits.quota, limits.period))
    most = "max" if limits.quota < 0 else quota
    return [
        _Setting(f"{cpu}.shares", limits.shares, {"cpu.weight": str(weight)}, {"cpu.shares": str(limits.shares)}),
        _Setting(f"{cpu}.cpus", limits.cpus, {"cpuset.cpus": limits.cpus}, required=True),
        _Setting(f"{cpu}.mems", limits.mems, {"cpuset.mems": limits.mems}, required=True),
        _Setting(
            f"{cpu}.quota (plus one CPU for the VM)", limits.quota,
            {"cpu.max": f"{most} {period}"}, {"cpu.cfs_period_us": period, "cpu.cfs_quota_us": quota},
        ),
        _Setting(
            "the sandbox's memory in bytes", limits.memory,
            {"memory.max": memory}, {"memory.limit_in_bytes": memory},
        ),
        _Setting("the sandbox's processes and threads", limits.tasks, {"pids.max": tasks}),
    ]  # fmt: skip


def release(
    directory: str, *, end: Callable[[str], None] | None = None, sleep: Callable[[float], None] = time.sleep
) -> list[str]:
    """Remove the recorded cgroups as soon as their last process has ended. Returns warnings.

    ``end`` stops the systemd unit. It is called only for a unit that systemd created for this sandbox, since the path
    in a config may name any unit. ``sleep`` is called between two attempts.
    """
    deadline = time.monotonic() + _SECONDS
    warnings = []
    for path in _recorded(directory):
        while True:
            for name in oom.LEFT:
                with suppress(OSError):
                    os.rmdir(f"{path}/{name}")
            try:
                os.rmdir(path)
            except FileNotFoundError:
                pass
            except OSError as error:
                # Proxies end after their monitor; the kernel does not report when their exit is complete.
                if error.errno == errno.EBUSY and time.monotonic() < deadline:
                    sleep(0.01)
                    continue
                if error.errno not in (errno.EROFS, errno.EACCES, errno.EPERM) or os.path.isdir(path):
                    warnings.append(f"the cgroup {path} cannot be removed: {error.strerror}")
            break
    if os.path.exists(f"{directory}/{_UNIT}") and not any(map(os.path.exists, _recorded(directory))):
        from hawse.host.cgroup.systemd import end_scope  # hot verbs do not need it

        (end or end_scope)(read_attribute(f"{directory}/{_UNIT}"))
    return warnings


def _make(path: str, hierarchy: Hierarchy) -> None:
    below = hierarchy.mount
    for part in path.removeprefix(hierarchy.mount).strip("/").split("/"):
        if hierarchy.version == 2:
            _enable(below)
        above, below = below, f"{below}/{part}"
        try:
            os.mkdir(below, 0o755)
        except FileExistsError:
            pass
        if "cpuset" in hierarchy.controllers:
            # A new cgroup has no CPUs, and accepts no processes until they are set (cgroup-v1/cpusets.rst).
            for name in ("cpuset.cpus", "cpuset.mems"):
                if not read_attribute(f"{below}/{name}"):
                    write_attribute(f"{below}/{name}", read_attribute(f"{above}/{name}"))


def _enable(directory: str) -> None:
    """Enable all available controllers for the children; controllers that cannot be enabled are skipped."""
    with open(f"{directory}/cgroup.controllers") as file:
        controllers = file.read().split()
    for name in controllers:
        try:
            write_attribute(f"{directory}/cgroup.subtree_control", f"+{name}")
        except OSError:
            continue


def _recorded(directory: str) -> list[str]:
    try:
        with open(f"{directory}/{_RECORD}") as file:
            return file.read().splitlines()
    except (FileNotFoundError, NotADirectoryError):
        return []
