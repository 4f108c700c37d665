"""A sandbox's processes in the host's cgroups, where engines look for them by the proxy's pid. Standard library only.

The directories are on record in the sandbox's directory before they are made: whoever deletes the sandbox removes
them, after whatever end. docs/cgroups.md says what is in them and what is not limited there.
"""

from __future__ import annotations

import errno
import os
import threading
import time
from contextlib import suppress

from hawse.errors import HostError
from hawse.host.cgroup import oom

TYPE_CHECKING = False  # typing's import would cost a hot verb a tenth of its time
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from hawse.linux.processes import Process
    from hawse.oci.limits.cgroups import CgroupPlan, HostLimits

    Enter = Callable[[CgroupPlan, int], list[str]]

#: Files with the paths, a line each, and with the name of the unit that systemd made for them.
_RECORD, _UNIT = "cgroups", "scope"
_SECONDS = 5.0
#: Files that limits of a running container change, of version 2 and 1. A period comes before its quota.
_LIMITS = (
    "cpu.weight", "cpu.shares", "cpuset.cpus", "cpuset.mems", "cpu.max", "cpu.cfs_period_us", "cpu.cfs_quota_us",
)  # fmt: skip


class Hierarchy:
    """A mounted hierarchy; ``version`` 1 or 2, ``controllers`` of version 1."""

    __slots__ = ("controllers", "mount", "version")

    def __init__(self, mount: str, version: int, controllers: frozenset[str]) -> None:
        self.mount = mount
        self.version = version
        self.controllers = controllers


def hierarchies(mountinfo: str) -> list[Hierarchy]:
    """Those of /proc/self/mountinfo (proc(5)), each once."""
    found: dict[str, Hierarchy] = {}
    for line in mountinfo.split("\n"):
        left, _, right = line.partition(" - ")
        kind, _, options = [*right.split(" "), "", "", ""][:3]
        mount = [*left.split(" "), *[""] * 5][4]
        if kind == "cgroup2":
            found.setdefault("", Hierarchy(mount, 2, frozenset()))
        elif kind == "cgroup":
            names = frozenset(word for word in options.split(",") if word not in _MOUNT_OPTIONS)
            found.setdefault(",".join(sorted(names)), Hierarchy(mount, 1, names))
    return list(found.values())


_MOUNT_OPTIONS = ("rw", "ro", "xattr", "noprefix", "clone_children", "all", "none")


class HostCgroup:
    """The cgroup of one container; ``directory`` is the container's own, with the record."""

    def __init__(self, plan: CgroupPlan, directory: str) -> None:
        self._plan = plan
        self._directory = directory
        self._lock = threading.Lock()

    @property
    def is_made(self) -> bool:
        """Whether it was made, or that was tried."""
        return os.path.exists(f"{self._directory}/{_RECORD}")

    def make(self, *, mountinfo: str = "/proc/self/mountinfo") -> list[str]:
        """Make the directories; what to warn of. Raises :class:`HostError` where a limit is asked for that cannot be
        set; without limits a container does without the cgroup."""
        if not self._plan.path or self.is_made:
            return []
        from hawse.linux.mountinfo import read_text  # here, since hot verbs load this module, and have no use for it

        mounted = hierarchies(read_text(mountinfo))
        wanted = {f"{hierarchy.mount}{self._plan.path}": hierarchy for hierarchy in mounted}
        with open(f"{self._directory}/{_RECORD}", "w") as file:
            file.write("".join(f"{path}\n" for path in wanted))
        missing = []
        for path, hierarchy in wanted.items():
            try:
                _make(path, hierarchy)
            except OSError as error:
                missing.append(f"{path}: {error.strerror}")
        if len(missing) == len(wanted):
            reason = missing[0] if missing else "none is mounted"
            none = "the host's cgroups cannot be used: engines find no statistics, and the sandbox has no limits there"
            return [*self.limit(self._plan.limits.asked_for), f"{none}: {reason}"]
        return [*self.limit(self._plan.limits), *(f"no cgroup at {text}" for text in missing)]

    def limit(self, limits: HostLimits) -> list[str]:
        """Set the limits of the host's cgroup. Returns warnings for limits that cannot be set.

        Raises :class:`HostError` for CPUs and memory nodes, which nothing else enforces. Shares are set in the guest,
        too; memory, tasks and CPU time are limits of the guest's memory and CPUs already.
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
        found = {}
        for path in paths:
            with suppress(OSError):  # a controller that this cgroup lacks
                found[path] = _read(path)
        return found

    def restore(self, values: Mapping[str, str]) -> None:
        """Undo :meth:`limit`: write the files that have changed since :meth:`values`. Raises :class:`HostError`."""
        for path, text in values.items():
            try:
                if _read(path) != text:
                    _write(path, text or "\n")  # nothing is written by a write of no bytes
            except OSError as error:
                raise HostError(f"{path} cannot be set back to {text!r}: {error.strerror}") from None

    def inherit(self, name: str) -> None:
        """Have ``cpuset.cpus`` or ``cpuset.mems`` be all that the cgroup above allows. Raises :class:`HostError`."""
        for path in _recorded(self._directory):
            if not os.path.exists(f"{path}/{name}"):
                continue
            # Version 2 inherits by an empty list (Linux Documentation/admin-guide/cgroup-v2.rst, cpuset.cpus).
            alike = os.path.exists(f"{path}/cgroup.controllers")
            try:
                _write(f"{path}/{name}", "\n" if alike else _read(f"{os.path.dirname(path)}/{name}"))
            except OSError as error:
                raise HostError(f"{path}/{name} cannot be set to that of the cgroup above: {error.strerror}") from None

    def place(
        self, process: Process, *, mountinfo: str = "/proc/self/mountinfo", enter: Enter | None = None
    ) -> list[str]:
        """Have the process in it, and make it where it is not there: by ``enter``, which asks systemd, and by hand.

        What to warn of. Raises as :meth:`make`.
        """
        warnings = []
        if not self.is_made and process.is_alive():
            # Here, since hot verbs load this module, and have no use for it.
            from hawse.host.cgroup.systemd import enter_scope

            warnings = (enter or enter_scope)(self._plan, process.pid)
            if self._plan.unit and not warnings:
                with open(f"{self._directory}/{_UNIT}", "w") as file:
                    file.write(self._plan.unit)
            warnings = [*warnings, *self.make(mountinfo=mountinfo)]
        return [*warnings, *self.add(process)]

    def add(self, process: Process) -> list[str]:
        """Have the process in it, and what it starts from here on; what to warn of. One that has ended is none.

        The kernel takes a pid here, and nothing else. Another process has it only when all others were given out after
        the process was seen alive, since they are given out in turn (Linux kernel/pid.c, alloc_pid()).
        """
        warnings = []
        with self._lock:
            for path in _recorded(self._directory):
                if not process.is_alive():
                    break
                try:
                    _write(f"{path}/cgroup.procs", str(process.pid))
                except OSError as error:
                    # ENOENT: it could not be made, which was said then. EBUSY and ENOSPC are of a cgroup that is there
                    # and takes none (cgroup-v2.rst, "No Internal Process Constraint"; cgroup-v1/cpusets.rst).
                    if error.errno not in (errno.ENOENT, errno.ESRCH):
                        warnings.append(f"a process is not in the cgroup {path}: {error.strerror}")
        return warnings

    def record_oom(self) -> None:
        """Have engines see that the guest's kernel has killed for want of memory, where that can be. Raises OSError."""
        with self._lock:
            for path in _recorded(self._directory):
                if os.path.isdir(path) and not oom.unfit(path):
                    oom.record(path)

    def _set(self, alternatives: Sequence[dict[str, str]]) -> tuple[str, str]:
        """Write the files of the first alternative that exists. Returns the reason why none could be written and a
        remedy, ("", "") for success."""
        paths = [path for path in _recorded(self._directory) if os.path.isdir(path)]
        failure = ""
        for path in paths:
            for files in alternatives:
                name = next(iter(files))
                if not os.path.exists(f"{path}/{name}"):
                    continue
                try:
                    for name, text in files.items():
                        _write(f"{path}/{name}", text)
                except OSError as error:
                    failure = f"{path}/{name}: {error.strerror}"
                    continue
                return "", ""
        if failure:
            return failure, "use a value that the cgroup above it allows"
        if paths:
            controller = next(iter(alternatives[0])).partition(".")[0]
            return f"{paths[0]} has no controller {controller}", f"enable {controller} in the cgroups above it"
        if self._plan.path:
            return "it could not be created", "give hawse write access to the host's cgroups"
        return (
            "the container has none, because config.json has neither linux.cgroupsPath nor a limit that needs one",
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
    """The files of cgroups of version 2 and 1 (Linux Documentation/admin-guide/cgroup-v2.rst, cgroup-v1/)."""
    cpu = "linux.resources.cpu"
    # From 2 to 262144 onto 1 to 10000, as runc and systemd do it.
    weight = 1 + (min(max(limits.shares, 2), 262144) - 2) * 9999 // 262142
    memory, tasks, quota, period = map(str, (limits.memory, limits.tasks, limits.quota, limits.period))
    most = "max" if limits.quota < 0 else quota
    return [
        _Setting(f"{cpu}.shares", limits.shares, {"cpu.weight": str(weight)}, {"cpu.shares": str(limits.shares)}),
        _Setting(f"{cpu}.cpus", limits.cpus, {"cpuset.cpus": limits.cpus}, required=True),
        _Setting(f"{cpu}.mems", limits.mems, {"cpuset.mems": limits.mems}, required=True),
        _Setting(
            f"{cpu}.quota (with one CPU more for the VM)", limits.quota,
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
    """Remove the cgroups on record there, as soon as their last process has gone; what to warn of.

    ``end`` has systemd forget the unit that it made for them, and no other: what a config calls its path may be
    anybody's. ``sleep`` is called between two attempts.
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
                # Proxies end when their monitor has; nothing tells when the kernel is done with them.
                if error.errno == errno.EBUSY and time.monotonic() < deadline:
                    sleep(0.01)
                    continue
                if error.errno not in (errno.EROFS, errno.EACCES, errno.EPERM) or os.path.isdir(path):
                    warnings.append(f"the cgroup {path} cannot be removed: {error.strerror}")
            break
    if os.path.exists(f"{directory}/{_UNIT}") and not any(map(os.path.exists, _recorded(directory))):
        from hawse.host.cgroup.systemd import end_scope  # hot verbs load this module, and have no use for it

        (end or end_scope)(_read(f"{directory}/{_UNIT}"))
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
            # One that is new, whoever made it, has no CPUs at all, and takes no process (cgroup-v1/cpusets.rst).
            for name in ("cpuset.cpus", "cpuset.mems"):
                if not _read(f"{below}/{name}"):
                    _write(f"{below}/{name}", _read(f"{above}/{name}"))


def _enable(directory: str) -> None:
    """Let children have each controller that is there; one that cannot be given is no reason to stop."""
    with open(f"{directory}/cgroup.controllers") as file:
        controllers = file.read().split()
    for name in controllers:
        try:
            _write(f"{directory}/cgroup.subtree_control", f"+{name}")
        except OSError:
            continue


def _recorded(directory: str) -> list[str]:
    try:
        with open(f"{directory}/{_RECORD}") as file:
            return file.read().splitlines()
    except (FileNotFoundError, NotADirectoryError):
        return []


def _read(path: str) -> str:
    with open(path) as file:
        return file.read().strip()


def _write(path: str, text: str) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, text.encode())
    finally:
        os.close(fd)
