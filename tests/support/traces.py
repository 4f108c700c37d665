"""Snapshots of what containers could leave behind in their engine and the host kernel, and of what could grow with
their number, in addition to :mod:`tests.support.host`."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import tempfile
from collections import Counter
from collections.abc import Callable

from hawse.vfio.bind.records import directory_of
from hawse.vm import templates
from hawse.vm.image.store import locate
from tests.support.caches import CACHE
from tests.support.host import difference, snapshot
from tests.support.patience import wait_until
from tests.support.processes import all_pids, command_line, descriptors, program_of

Kinds = dict[str, set[str]]
#: Programs of engines that run for one container, one pod or one network.
_PROGRAMS = re.compile(r"podman|conmon|netavark|aardvark|containerd-shim|docker-proxy|qemu-system|virtiofsd")
_CGROUPS = re.compile(r"libpod|docker|hawse|moby")
#: A directory to which a program may move files before it deletes them.
_TEMPORARY = {tempfile.gettempdir(), "/tmp", "/var/tmp", "/dev/shm", "/run"}


def take(root: str, *directories: str) -> Kinds:
    """Take a snapshot, by kind. ``root``: the runtime's. ``directories``: others, of which every path counts."""
    return snapshot() | {
        "below the root": _below(root),
        "bindings": _names(directory_of(root)),
        "interfaces": {name for _, name in socket.if_nameindex()},  # /sys shows those of another network namespace
        "network namespaces": {name for name in _names("/run/netns") if name.startswith("netns-")},
        "rules": _rules(),
        "programs": _programs(),
        "cgroups": {path for path, _, _ in os.walk("/sys/fs/cgroup") if _is_ours(path)},
        "templates": _templates(),
        "temporary files": {f"{place}/{name}" for place in _TEMPORARY for name in _names(place) if "hawse-" in name},
        "files": {path for directory in directories for path in _below(directory)},
    }


def _is_ours(cgroup: str) -> bool:
    """Whether an engine or a sandbox created the cgroup; sandboxes of other tests use the control cgroup too."""
    return bool(_CGROUPS.search(cgroup)) and not cgroup.endswith("/hawse.control")


def prove_same(before: Kinds, look: Callable[[], Kinds], *, seconds: float = 15) -> None:
    """Raise AssertionError with the difference unless it disappears soon: engines report exits before they clean up."""
    wait_until(
        lambda: not _more(before, look()),
        seconds=seconds,
        what="nothing left behind (+) or gone (-)",
        seen=lambda: _more(before, look()),
    )


def _more(before: Kinds, after: Kinds) -> Kinds:
    """The difference, but without removed temporary files, which may belong to others on the host."""
    changes = difference(before, after)
    if after["temporary files"] <= before["temporary files"]:
        changes.pop("temporary files", None)
    return changes


def held(pid: int) -> Counter[str]:
    """The targets of a process's file descriptors; the inode numbers of pipes and the like are left out."""
    return Counter(re.sub(r"\d+", "N", target) for target in descriptors(pid).values())


def private_kib(pid: int) -> int:
    """KiB of a process's private memory (proc(5), /proc/pid/smaps).

    Guest memory belongs to a file and does not count. QEMU's translated code (without KVM), in executable memory, does
    not count either: it grows with every program that the guest runs, until its buffer is full.
    """
    with open(f"/proc/{pid}/smaps") as file:
        mappings = re.findall(
            r"^[0-9a-f]+-[0-9a-f]+ (\S+) .*\n(?:[A-Z].*\n)*?Anonymous: +(\d+) kB$", file.read(), re.MULTILINE
        )
    return sum(int(kib) for rights, kib in mappings if "x" not in rights)


def _rules() -> set[str]:
    """The firewall's rules, by all three programs that may have created some, without their counters."""
    counts: Counter[str] = Counter()
    for command in (["iptables-save"], ["ip6tables-save"], ["nft", "--stateless", "list", "ruleset"]):
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        lines = [re.sub(r"\[\d+:\d+\]", "", line) for line in done.stdout.splitlines() if not line.startswith("#")]
        counts.update(f"{command[0]}: {line.strip()}" for line in lines)
    return {f"{count} times {line}" for line, count in counts.items()}


def _programs() -> set[str]:
    return {f"{pid} {command_line(pid)[:200]}" for pid in all_pids() if _PROGRAMS.search(program_of(pid))}


def _templates() -> set[str]:
    """The templates of this installation's image: other checkouts on the host have theirs in the same cache."""
    cached = dict(templates.list_all(CACHE))
    initrd = locate(cache=CACHE).initrd
    return {
        name
        for name, template in cached.items()
        if isinstance(template, templates.Template) and template.shape["initrd"] == initrd
    }


def _names(directory: str) -> set[str]:
    return set(os.listdir(directory)) if os.path.isdir(directory) else set()


def _below(directory: str) -> set[str]:
    return {f"{path}/{name}" for path, directories, files in os.walk(directory) for name in (*directories, *files)}
