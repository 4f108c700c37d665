"""config-linux.md: namespaces with their settings, default devices and default file systems."""

from __future__ import annotations

import hashlib
import os
import re
import socket
import subprocess
from pathlib import Path

from tests.conformance.subject import Bundle, Subject
from tests.conformance.suite import Answers, Case, Group, Spec, inside

NAMESPACES = "config-linux.md#namespaces"
DEVICES = "config-linux.md#default-devices"
FILES = "config-linux.md#default-filesystems"
LINKS = "runtime-linux.md#dev-symbolic-links"
SYSCTL = "config-linux.md#sysctl"
#: The digest of the command line of this process, which a container without a PID namespace can read.
_OWN_COMMAND_LINE = hashlib.md5(Path("/proc/self/cmdline").read_bytes(), usedforsecurity=False).hexdigest()
#: Device numbers of mem.c and of the terminals (Linux Documentation/admin-guide/devices.txt).
NODES = {"null": (1, 3), "zero": (1, 5), "full": (1, 7), "random": (1, 8), "urandom": (1, 9), "tty": (5, 0)}


def _plain(spec: Spec, bundle: Bundle) -> None:
    bundle.make("rootfs/secret/file", "secret\n")
    bundle.make("rootfs/masked", "secret\n")
    bundle.make("rootfs/fixed/file", "fixed\n")
    spec["hostname"] = "conform.example"
    spec["domainname"] = "domain.example"
    linux = spec["linux"]
    linux["maskedPaths"] += ["/secret", "/masked", "/not/there"]
    linux["readonlyPaths"] += ["/fixed", "/not/there"]
    linux["sysctl"] = {
        "kernel.shm_rmid_forced": "1",
        "fs.mqueue.msg_max": "17",
        "net.ipv4.ip_unprivileged_port_start": "80",
        "net.core.somaxconn": "999",
    }


def _mount(path: str, *fields: int) -> str:
    columns = ",".join(map(str, fields))
    return f"grep ' {path} ' /proc/self/mounts | busybox tail -n 1 | busybox cut -d' ' -f{columns}"


PLAIN = inside(
    "plain",
    _plain,
    [
        Case("pid-namespace", NAMESPACES, "pid: the process is number 1", "1", "echo $$"),
        Case("ipc-namespace", NAMESPACES, "ipc: the runtime's shared memory is not visible", "1",
             "wc -l < /proc/sysvipc/shm"),
        Case("network-namespace", NAMESPACES, "network: a new namespace contains only the loopback", "lo",
             "ls /sys/class/net"),
        Case("network-loopback", NAMESPACES, "network: the loopback is up", re.compile(r"\bUP\b"),
             "busybox ip link show lo"),
        Case("cgroup-namespace", NAMESPACES, "cgroup: the container's cgroup is the root",
             re.compile(r"\A([^\n]*:/\n?)+\Z"), "cat /proc/self/cgroup"),
        Case("hostname", "config.md#hostname", "hostname is set", "conform.example", "busybox hostname"),
        Case("domainname", "config.md#domainname", "domainname is set", "domain.example",
             "cat /proc/sys/kernel/domainname"),
        *(
            Case(f"dev-{name}", DEVICES, f"/dev/{name} exists, for all users", f"{major:x}:{minor:x} 666",
                 f"stat -c '%t:%T %a' /dev/{name}")
            for name, (major, minor) in NODES.items()
        ),
        Case("dev-ptmx", DEVICES, "/dev/ptmx is a link to that of /dev/pts", re.compile("^(/dev/)?pts/ptmx$"),
             "busybox readlink /dev/ptmx"),
        Case("dev-console-none", DEVICES, "/dev/console does not exist without a terminal", "none",
             "test -e /dev/console && echo there || echo none"),
        Case("dev-links", LINKS, "/dev/fd, stdin, stdout and stderr are links",
             "/proc/self/fd /proc/self/fd/0 /proc/self/fd/1 /proc/self/fd/2",
             "echo $(for n in fd stdin stdout stderr; do busybox readlink /dev/$n; done)"),
        Case("dev-shm", FILES, "/dev/shm is a tmpfs with its options",
             re.compile("^tmpfs (?=.*nosuid)(?=.*nodev)(?=.*noexec)(?=.*size=65536k)"), _mount("/dev/shm", 3, 4)),
        Case("proc", FILES, "/proc is mounted", re.compile("^proc proc"), _mount("/proc", 1, 3)),
        Case("sysfs", FILES, "/sys is mounted, read-only with ro", re.compile("^sysfs ro"),
             _mount("/sys", 3, 4)),
        Case("devpts", FILES, "/dev/pts is mounted with its mode", re.compile(r"^devpts .*gid=5,mode=620,ptmxmode=666"),
             _mount("/dev/pts", 3, 4)),
        Case("mqueue", FILES, "/dev/mqueue is mounted", re.compile("^mqueue"), _mount("/dev/mqueue", 3)),
        Case("cgroup-mount", FILES, "/sys/fs/cgroup is mounted, read-only with ro",
             re.compile("Read-only file system"), "cd /sys/fs/cgroup; test -d memory && cd memory; mkdir x"),
        Case("masked-file", "config-linux.md#masked-paths", "a masked file is empty", "", "cat /masked"),
        Case("masked-directory", "config-linux.md#masked-paths", "a masked directory is empty", "", "ls /secret"),
        Case("masked-proc", "config-linux.md#masked-paths", "paths of /proc are masked", "", "cat /proc/keys"),
        Case("readonly-paths", "config-linux.md#readonly-paths", "a path is read-only",
             re.compile("^fixed\n.*Read-only file system"), "cat /fixed/file; touch /fixed/new"),
        Case("readonly-proc", "config-linux.md#readonly-paths", "paths of /proc are read-only",
             re.compile("Read-only file system"), "echo 0 > /proc/sys/kernel/shm_rmid_forced"),
        Case("sysctl-ipc", SYSCTL, "sysctls of the ipc namespace are set", "1 17",
             "echo $(cat /proc/sys/kernel/shm_rmid_forced /proc/sys/fs/mqueue/msg_max)"),
        Case("sysctl-net", SYSCTL, "sysctls of the network namespace are set", "80 999",
             "echo $(cat /proc/sys/net/ipv4/ip_unprivileged_port_start /proc/sys/net/core/somaxconn)"),
    ],
)  # fmt: skip


def _without(spec: Spec, _bundle: Bundle) -> None:
    linux = spec["linux"]
    linux["namespaces"] = [kind for kind in linux["namespaces"] if kind["type"] not in ("pid", "ipc", "uts", "cgroup")]
    del spec["hostname"]
    spec["mounts"] = [mount for mount in spec["mounts"] if mount["destination"] != "/dev/mqueue"]


_SHARED = inside(
    "without namespaces",
    _without,
    [
        Case("pid-namespace-none", NAMESPACES, "without pid: the runtime's processes are visible", "there",
             f"test \"$(md5sum </proc/{os.getpid()}/cmdline)\" = '{_OWN_COMMAND_LINE}  -' && echo there"),
        Case("ipc-namespace-none", NAMESPACES, "without ipc: the runtime's shared memory is visible", "2",
             "wc -l < /proc/sysvipc/shm"),
        Case("uts-namespace-none", NAMESPACES, "without uts: the host name is the host's", socket.gethostname(),
             "busybox hostname"),
    ],
)  # fmt: skip


def _ask_shared(subject: Subject) -> Answers:
    """Answer the cases while a segment of shared memory exists on the host.

    The inode numbers of namespaces do not distinguish two kernels: those of the first namespaces are equal.
    """
    created = subprocess.run(["ipcmk", "--shmem", "4096"], capture_output=True, text=True, check=True)
    try:
        return _SHARED.ask(subject)
    finally:
        subprocess.run(["ipcrm", "--shmem-id", created.stdout.split()[-1]], check=True)


SHARED = Group(_SHARED.name, _SHARED.cases, _ask_shared)


def _mapped(spec: Spec, bundle: Bundle) -> None:
    linux = spec["linux"]
    linux["namespaces"].append({"type": "user"})
    linux["uidMappings"] = [{"containerID": 0, "hostID": 100000, "size": 65536}]
    linux["gidMappings"] = [{"containerID": 0, "hostID": 200000, "size": 65536}]
    owned = bundle.make("rootfs/data/owned", "")
    os.chown(owned, 100005, 200007)
    for path in (bundle.rootfs, f"{bundle.rootfs}/data"):
        os.chown(path, 100000, 200000)


MAPPED = inside(
    "user namespace",
    _mapped,
    [
        Case("user-namespace-uid", "config-linux.md#user-namespace-mappings", "users are mapped",
             "0 100000 65536", "echo $(cat /proc/self/uid_map)"),
        Case("user-namespace-gid", "config-linux.md#user-namespace-mappings", "groups are mapped",
             "0 200000 65536", "echo $(cat /proc/self/gid_map)"),
        Case("user-namespace-files", "config-linux.md#user-namespace-mappings", "files have the mapped owners", "5 7",
             "stat -c '%u %g' /data/owned"),
        Case("user-namespace-nobody", "config-linux.md#user-namespace-mappings", "files of others belong to nobody",
             "65534", "stat -c %u /bin/busybox"),
        Case("user-namespace-proc", FILES, "/proc and /sys are mounted", "proc sysfs",
             f"echo $({_mount('/proc', 3)}; {_mount('/sys', 3)})"),
    ],
)  # fmt: skip

GROUPS = [PLAIN, SHARED, MAPPED]
