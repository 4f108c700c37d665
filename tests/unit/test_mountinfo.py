"""Parsing of /proc/self/mountinfo."""

from __future__ import annotations

import pytest

from hawse.linux import mountinfo
from hawse.linux.mountinfo import Mount


@pytest.mark.parametrize(
    ("line", "mount"),
    [
        ("36 35 98:0 /m1 /m2 rw shared:1 master:2 - ext3 /dev/root rw", Mount(36, 35, "98:0", "/m1", "/m2", "ext3")),
        ("24 1 254:1 / / rw - xfs /dev/vda rw", Mount(24, 1, "254:1", "/", "/", "xfs")),
        (r"40 24 0:30 /a\040b /x\011y\134z rw - tmpfs none rw", Mount(40, 24, "0:30", "/a b", "/x\ty\\z", "tmpfs")),
        (r"41 24 0:31 / /with\040-\040dash rw - tmpfs none rw", Mount(41, 24, "0:31", "/", "/with - dash", "tmpfs")),
    ],
)  # fmt: skip
def test_mountinfo_line_is_parsed(line: str, mount: Mount) -> None:
    assert mountinfo.parse(f"{line}\n") == [mount]


def test_this_process_has_a_root_mount() -> None:
    assert any(mount.point == "/" for mount in mountinfo.read())
