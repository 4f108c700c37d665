"""`hawse features`: what is implemented, in the runtime-spec's words (features.md). Nothing but JSON on stdout."""

from __future__ import annotations

import argparse
import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hawse.cli.settings import Settings

HELP = "print the implemented features as JSON"

FEATURES: dict[str, Any] = {
    "ociVersionMin": "1.0.0",
    "ociVersionMax": "1.2.0",
    "hooks": [],
    "mountOptions": [
        "async", "atime", "bind", "defaults", "dev", "diratime", "dirsync", "exec", "noatime", "nodev", "nodiratime",
        "noexec", "norelatime", "nostrictatime", "nosuid", "private", "rbind", "relatime", "remount", "ro", "rprivate",
        "rshared", "rslave", "rw", "shared", "slave", "strictatime", "suid", "sync",
    ],
    "linux": {
        "namespaces": ["cgroup", "ipc", "mount", "pid", "user", "uts"],
        "cgroup": {"v1": False, "v2": True, "systemd": False, "systemdUser": False},
        "apparmor": {"enabled": False},
        "selinux": {"enabled": False},
        "intelRdt": {"enabled": False},
    },
    "annotations": {},
}  # fmt: skip


def configure(parser: argparse.ArgumentParser) -> None:
    """The verb has no arguments of its own."""


def run(args: argparse.Namespace, settings: Settings) -> int:  # noqa: ARG001  (every verb's signature)
    """Print them."""
    print(json.dumps(FEATURES, indent=2))
    return 0
