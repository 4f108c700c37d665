"""Sources of bind mounts: views of the host kernel (such as /proc) are recognized through symbolic links."""

from __future__ import annotations

import errno

import pytest

from hawse.oci.guest.bind_sources import kernel_view, no_devices

LINKS = {
    "/x": "/proc",
    "/chain": "/x/sys",
    "/relative": "dev/shm",
    "/a/up": "../sys/class",
    "/var/run": "/run",
    "/etc/mtab": "../proc/self/mounts",
    "/proc/self": "1234",
    "/loop": "/loop",
    "/back": "/dev/../etc",
    "/trailing": "/sys/",
    "/run/shm": "/dev/shm",
    "/b": "/run/deep",
    "/a/over": "b/../../b/../../dev/null",
    "/a/b": "/run/deep",
}


def readlink(path: str) -> str:
    try:
        return LINKS[path]
    except KeyError:
        raise OSError(errno.EINVAL, "Invalid argument", path) from None


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("/proc", "/proc"),
        ("/proc/self/mounts", "/proc/self/mounts"),
        ("/sys/class/net", "/sys/class/net"),
        ("/x", "/proc"),
        ("/x/sys/net", "/proc/sys/net"),
        ("/chain/kernel", "/proc/sys/kernel"),
        ("/relative", ""),
        ("/run/shm/cache", ""),
        ("/dev/shm/cache", "/dev/shm/cache"),
        ("/a/over", "/dev/null"),
        ("/dev/../a/b/../../x", "/proc"),
        ("/a/up/net", "/sys/class/net"),
        ("/etc/mtab", "/proc/self/mounts"),
        ("/trailing", "/sys"),
        ("/back", ""),
        ("/back/../x", "/proc"),
        ("/var/run/docker.sock", ""),
        ("/procfs", ""),
        ("/a/proc", ""),
        ("/loop", ""),
        ("/", ""),
        ("/home/data", ""),
    ],
)
def test_kernel_view_is_recognized_through_links(source: str, expected: str) -> None:
    assert kernel_view(source, readlink=readlink) == expected


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ([], False),
        (["nodev"], True),
        (["nodev", "dev"], False),
        (["rnodev"], True),
        (["rnodev", "dev"], True),
        (["nodev", "rdev"], False),
        (["rdev", "rnodev"], True),
        (["nosuid"], False),
    ],
)
def test_last_option_decides_whether_nodes_can_be_opened(options: list[str], expected: bool) -> None:
    assert no_devices(options) is expected
