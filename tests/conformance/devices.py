"""config-linux.md, devices and the device rules of the cgroup."""

from __future__ import annotations

import re

from tests.conformance.subject import Bundle
from tests.conformance.suite import Case, Spec, inside

DEVICES = "config-linux.md#devices"
ALLOWED = "config-linux.md#allowed-device-list"


def _devices(spec: Spec, _bundle: Bundle) -> None:
    linux = spec["linux"]
    linux["devices"] = [
        {"path": "/dev/own", "type": "c", "major": 1, "minor": 7, "fileMode": 0o646, "uid": 5, "gid": 6},
        {"path": "/dev/below/block", "type": "b", "major": 7, "minor": 3, "fileMode": 0o600},
        {"path": "/dev/unbuffered", "type": "u", "major": 1, "minor": 3, "fileMode": 0o666},
        {"path": "/dev/pipe", "type": "p", "fileMode": 0o620},
        {"path": "/dev/denied", "type": "c", "major": 1, "minor": 1, "fileMode": 0o666},
        {"path": "/dev/read", "type": "c", "major": 1, "minor": 11, "fileMode": 0o666},
    ]
    linux["resources"]["devices"] += [
        {"allow": True, "type": "c", "major": 1, "minor": 7, "access": "rw"},
        {"allow": True, "type": "c", "major": 1, "minor": 11, "access": "r"},
    ]
    capabilities = ["CAP_SYS_RAWIO", "CAP_SYSLOG", "CAP_MKNOD"]
    spec["process"]["capabilities"] = dict.fromkeys(("bounding", "effective", "permitted"), capabilities)


LISTED = inside(
    "devices",
    _devices,
    [
        Case("device-character", DEVICES, "a character device gets its numbers, mode and owners", "1:7 646 5 6",
             "stat -c '%t:%T %a %u %g' /dev/own"),
        Case("device-block", DEVICES, "a block device is created together with its directory",
             "block special file 7:3 600", "stat -c '%F %t:%T %a' /dev/below/block"),
        Case("device-unbuffered", DEVICES, "type u is a character device", "character special file 1:3",
             "stat -c '%F %t:%T' /dev/unbuffered"),
        Case("device-pipe", DEVICES, "type p is a FIFO", "fifo 620", "stat -c '%F %a' /dev/pipe"),
        Case("device-allowed", ALLOWED, "an allowed device can be used", re.compile("No space left"),
             "echo x > /dev/own"),
        Case("device-denied", ALLOWED, "a device that is not allowed cannot be opened",
             re.compile("Operation not permitted"), "head -c 1 < /dev/denied"),
        Case("device-read-alone", ALLOWED, "a device that is allowed for reading cannot be opened for writing",
             re.compile(r"\Aread\n.*Operation not permitted"), "( : < /dev/read ) && echo read; ( : > /dev/read )"),
        Case("device-default", ALLOWED, "the default devices are always allowed", "0000",
             "head -c 2 /dev/zero | busybox xxd -p"),
    ],
)  # fmt: skip

GROUPS = [LISTED]
