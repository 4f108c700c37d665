"""`hawse features`: print the implemented features in the runtime-spec's format (features.md), as JSON on stdout."""

from __future__ import annotations

import argparse
import json
from typing import TYPE_CHECKING

from hawse.json_text import Document
from hawse.oci.capabilities import CAPABILITIES

if TYPE_CHECKING:
    from hawse.cli.settings import Settings

HELP = "print the implemented features as JSON"

FEATURES: Document = {
    "ociVersionMin": "1.0.0",
    "ociVersionMax": "1.2.0",
    "hooks": ["prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop"],
    "mountOptions": [
        "async", "atime", "bind", "defaults", "dev", "diratime", "dirsync", "exec", "idmap", "noatime", "nodev",
        "nodiratime", "noexec", "norelatime", "nostrictatime", "nosuid", "private", "rbind", "relatime", "ridmap", "ro",
        "rprivate", "rro", "rslave", "rw", "slave", "strictatime", "suid", "sync", "tmpcopyup",
    ],
    "linux": {
        "namespaces": ["cgroup", "ipc", "mount", "network", "pid", "user", "uts"],
        "capabilities": CAPABILITIES,
        # The host's cgroups; the guest's are always version 2.
        "cgroup": {"v1": True, "v2": True, "systemd": True, "systemdUser": False, "rdma": False},
        "seccomp": {
            "enabled": True,
            "actions": [
                "SCMP_ACT_ALLOW", "SCMP_ACT_ERRNO", "SCMP_ACT_KILL", "SCMP_ACT_KILL_PROCESS", "SCMP_ACT_KILL_THREAD",
                "SCMP_ACT_LOG", "SCMP_ACT_TRACE", "SCMP_ACT_TRAP",
            ],
            "operators": [
                "SCMP_CMP_EQ", "SCMP_CMP_GE", "SCMP_CMP_GT", "SCMP_CMP_LE", "SCMP_CMP_LT", "SCMP_CMP_MASKED_EQ",
                "SCMP_CMP_NE",
            ],
            "archs": ["SCMP_ARCH_X32", "SCMP_ARCH_X86", "SCMP_ARCH_X86_64"],
        },
        "apparmor": {"enabled": False},
        "selinux": {"enabled": True},
        "intelRdt": {"enabled": False},
        "mountExtensions": {"idmap": {"enabled": True}},
    },
    "annotations": {},
    # The annotation hawse.devices passes devices that are not in linux.devices.
    "potentiallyUnsafeConfigAnnotations": ["hawse."],
}  # fmt: skip


def configure(parser: argparse.ArgumentParser) -> None:
    """Add nothing: this verb has no arguments."""


def run(args: argparse.Namespace, settings: Settings) -> int:  # noqa: ARG001  (every verb's signature)
    """Print the features."""
    print(json.dumps(FEATURES, indent=2))
    return 0
