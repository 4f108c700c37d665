"""Every field of config.json in the runtime specification 1.3 (config.md, config-linux.md, config-vm.md and those of
other platforms; schema/config-schema.json), with its type, for tests that walk them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

TEXT, TEXTS, BOOL, NUMBER, NUMBERS = "text", "texts", "bool", "number", "numbers"
#: A map of texts, a map of objects, and an object or a list of objects whose fields are not listed one by one.
MAP, OBJECTS, OBJECT, LIST = "map", "objects", "object", "list"

_MAPPING = {"containerID": NUMBER, "hostID": NUMBER, "size": NUMBER}
_HOOK = {"path": TEXT, "args": TEXTS, "env": TEXTS, "timeout": NUMBER}
_DEVICE = {
    "path": TEXT, "type": TEXT, "major": NUMBER, "minor": NUMBER, "fileMode": NUMBER, "uid": NUMBER, "gid": NUMBER,
}  # fmt: skip

#: Field → kind; an object of fields; or a list with the object that its entries are.
FIELDS: dict[str, Any] = {
    "ociVersion": TEXT,
    "root": {"path": TEXT, "readonly": BOOL},
    "mounts": [
        {
            "destination": TEXT, "type": TEXT, "source": TEXT, "options": TEXTS, "uidMappings": [_MAPPING],
            "gidMappings": [_MAPPING],
        }
    ],
    "process": {
        "terminal": BOOL, "consoleSize": {"height": NUMBER, "width": NUMBER}, "cwd": TEXT, "env": TEXTS, "args": TEXTS,
        "commandLine": TEXT, "rlimits": [{"type": TEXT, "soft": NUMBER, "hard": NUMBER}], "apparmorProfile": TEXT,
        "capabilities": {
            "effective": TEXTS, "bounding": TEXTS, "inheritable": TEXTS, "permitted": TEXTS, "ambient": TEXTS,
        },
        "noNewPrivileges": BOOL, "oomScoreAdj": NUMBER,
        "scheduler": {
            "policy": TEXT, "nice": NUMBER, "priority": NUMBER, "flags": TEXTS, "runtime": NUMBER, "deadline": NUMBER,
            "period": NUMBER,
        },
        "selinuxLabel": TEXT, "ioPriority": {"class": TEXT, "priority": NUMBER},
        "execCPUAffinity": {"initial": TEXT, "final": TEXT},
        "user": {"uid": NUMBER, "gid": NUMBER, "umask": NUMBER, "additionalGids": NUMBERS, "username": TEXT},
    },
    "hostname": TEXT,
    "domainname": TEXT,
    "hooks": {
        kind: [_HOOK]
        for kind in ("prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop")
    },
    "annotations": MAP,
    "linux": {
        "namespaces": [{"type": TEXT, "path": TEXT}],
        "uidMappings": [_MAPPING], "gidMappings": [_MAPPING],
        "timeOffsets": OBJECTS,
        "devices": [_DEVICE],
        "netDevices": OBJECTS,
        "cgroupsPath": TEXT,
        "resources": {
            "devices": [{"allow": BOOL, "type": TEXT, "major": NUMBER, "minor": NUMBER, "access": TEXT}],
            "memory": {
                "limit": NUMBER, "reservation": NUMBER, "swap": NUMBER, "kernel": NUMBER, "kernelTCP": NUMBER,
                "swappiness": NUMBER, "disableOOMKiller": BOOL, "useHierarchy": BOOL, "checkBeforeUpdate": BOOL,
            },
            "cpu": {
                "shares": NUMBER, "quota": NUMBER, "burst": NUMBER, "period": NUMBER, "realtimeRuntime": NUMBER,
                "realtimePeriod": NUMBER, "cpus": TEXT, "mems": TEXT, "idle": NUMBER,
            },
            "blockIO": {
                "weight": NUMBER, "leafWeight": NUMBER, "weightDevice": LIST, "throttleReadBpsDevice": LIST,
                "throttleWriteBpsDevice": LIST, "throttleReadIOPSDevice": LIST, "throttleWriteIOPSDevice": LIST,
            },
            "hugepageLimits": [{"pageSize": TEXT, "limit": NUMBER}],
            "network": {"classID": NUMBER, "priorities": LIST},
            "pids": {"limit": NUMBER},
            "rdma": OBJECTS,
            "unified": MAP,
        },
        "intelRdt": {
            "closID": TEXT, "schemata": TEXTS, "l3CacheSchema": TEXT, "memBwSchema": TEXT, "enableMonitoring": BOOL,
            "enableCMT": BOOL, "enableMBM": BOOL,
        },
        "memoryPolicy": {"mode": TEXT, "nodes": TEXT, "flags": TEXTS},
        "sysctl": MAP,
        "seccomp": {
            "defaultAction": TEXT, "defaultErrnoRet": NUMBER, "architectures": TEXTS, "flags": TEXTS,
            "listenerPath": TEXT, "listenerMetadata": TEXT,
            "syscalls": [
                {
                    "names": TEXTS, "action": TEXT, "errnoRet": NUMBER,
                    "args": [{"index": NUMBER, "value": NUMBER, "valueTwo": NUMBER, "op": TEXT}],
                }
            ],
        },
        "rootfsPropagation": TEXT,
        "maskedPaths": TEXTS,
        "readonlyPaths": TEXTS,
        "mountLabel": TEXT,
        "personality": {"domain": TEXT, "flags": TEXTS},
    },
    "vm": {
        "hypervisor": {"path": TEXT, "parameters": TEXTS},
        "kernel": {"path": TEXT, "parameters": TEXTS, "initrd": TEXT},
        "image": {"path": TEXT, "format": TEXT},
        "hwConfig": {
            "deviceTree": TEXT, "vcpus": NUMBER, "memory": NUMBER, "dtdevs": TEXTS, "iomems": LIST, "irqs": NUMBERS,
        },
    },
    "windows": {
        "layerFolders": TEXTS, "devices": LIST, "resources": OBJECT, "credentialSpec": OBJECT, "servicing": BOOL,
        "ignoreFlushesDuringBoot": BOOL, "hyperv": OBJECT, "network": OBJECT,
    },
    "solaris": {
        "milestone": TEXT, "limitpriv": TEXT, "maxShmMemory": TEXT, "anet": LIST, "cappedCPU": OBJECT,
        "cappedMemory": OBJECT,
    },
    "zos": {"namespaces": LIST, "devices": LIST},
    "freebsd": {"devices": LIST, "jail": OBJECT},
}  # fmt: skip

#: What an entry of a list, or an object, needs besides the field that a test sets.
REQUIRED: dict[str, dict[str, Any]] = {
    "mounts": {"destination": "/x", "type": "tmpfs", "source": "tmpfs"},
    "process.rlimits": {"type": "RLIMIT_CORE", "soft": 1, "hard": 1},
    "process.consoleSize": {"height": 1, "width": 1},
    "linux.namespaces": {"type": "time"},
    "linux.devices": {"path": "/dev/x", "type": "c", "major": 1, "minor": 3},
    "linux.resources.devices": {"allow": True, "type": "c", "major": 1, "minor": 3, "access": "rwm"},
    "linux.resources.hugepageLimits": {"pageSize": "2MB", "limit": 0},
    "linux.seccomp": {"defaultAction": "SCMP_ACT_ALLOW"},
    "linux.seccomp.syscalls": {"names": ["read"], "action": "SCMP_ACT_ALLOW"},
    "linux.seccomp.syscalls[].args": {"index": 0, "value": 0, "op": "SCMP_CMP_EQ"},
    "linux.personality": {"domain": "LINUX"},
    **{f"hooks.{kind}": {"path": "/x"} for kind in FIELDS["hooks"]},
    **{
        f"{parent}{kind}": {"containerID": 0, "hostID": 0, "size": 1}
        for parent in ("mounts[].", "linux.")
        for kind in ("uidMappings", "gidMappings")
    },
}
#: File systems of Linux that a container may mount: fs/, net/, kernel/, security/ and drivers/ of 6.1 to 6.12.
MOUNT_TYPES = (
    "9p", "adfs", "affs", "afs", "aio", "anon_inodefs", "apparmorfs", "autofs", "balloon-kvm", "bcachefs", "bdev",
    "befs", "bfs", "binder", "binfmt_misc", "bpf", "btrfs", "ceph", "cgroup", "cgroup2", "cifs", "coda", "configfs",
    "cpuset", "cramfs", "cxl", "dax", "debugfs", "devmem", "devpts", "devtmpfs", "dlmfs", "dmabuf", "drm", "ecryptfs",
    "efivarfs", "efs", "erofs", "exfat", "ext2", "ext3", "ext4", "f2fs", "functionfs", "fuse", "fuseblk", "fusectl",
    "gadgetfs", "gfs2", "gfs2meta", "hfs", "hfsplus", "hgfs", "hostfs", "hpfs", "hugetlbfs", "iomem", "ipathfs",
    "iso9660", "jffs2", "jfs", "minix", "mqueue", "msdos", "nfs", "nfs4", "nfsd", "nilfs2", "nsfs", "ntfs", "ntfs3",
    "nullfs", "ocfs2", "ocfs2_dlmfs", "omfs", "openpromfs", "orangefs", "overlay", "pidfs", "pipefs", "ppc-cmm", "proc",
    "pstore", "pvfs2", "qnx4", "qnx6", "ramfs", "reiserfs", "resctrl", "romfs", "rootfs", "rpc_pipefs", "s390_hypfs",
    "secretmem", "securityfs", "selinuxfs", "smackfs", "smb3", "sockfs", "spufs", "squashfs", "sysfs", "sysv", "tmpfs",
    "tracefs", "ubifs", "udf", "ufs", "v7", "vboxsf", "vfat", "virtiofs", "vmhgfs", "vxfs", "xenfs", "xfs", "xiafs",
    "zonefs",
)  # fmt: skip


def leaves(fields: Any = FIELDS, path: str = "") -> Iterator[tuple[str, str]]:
    """(path, kind) of each field, with "[]" for each list on the way: also of objects and lists themselves."""
    for name, kind in fields.items():
        where = f"{path}{name}"
        if isinstance(kind, dict):
            yield where, OBJECT
            yield from leaves(kind, f"{where}.")
        elif isinstance(kind, list):
            yield where, LIST
            yield from leaves(kind[0], f"{where}[].")
        else:
            yield where, kind


def put(spec: dict[str, Any], path: str, value: Any) -> str:
    """Set a field, in a new entry of each list on its way; its path with the numbers of these entries."""
    part: Any = spec
    where = done = ""
    *parents, last = path.split(".")
    for name in parents:
        key, is_list = name.removesuffix("[]"), name.endswith("[]")
        done = f"{done}.{key}".lstrip(".")
        required = dict(REQUIRED.get(done, {}))
        if is_list:
            entries = part.setdefault(key, [])
            entries.append(required)
            where = f"{where}.{key}[{len(entries) - 1}]".lstrip(".")
            part = entries[-1]
            done += "[]"
        else:
            part = part.setdefault(key, required)
            where = f"{where}.{key}".lstrip(".")
    part[last] = value
    return f"{where}.{last}".lstrip(".")
