"""Mount attributes that the guest's runtime would drop: those of the specification, and those of the mount at a
path."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from hawse.agent.mounts import flags
from hawse.agent.mounts.container_sysfs import with_bound_sysfs
from tests.support.mount_table import mounts_of

NOSUID, NODEV, NOEXEC, NOATIME, STRICTATIME, NODIRATIME = 2, 4, 8, 0x10, 0x20, 0x80


@pytest.mark.parametrize(
    ("options", "attributes"),
    [
        ("", 0), ("rbind rprivate ro", 0), ("nosuid nodev noexec", NOSUID | NODEV | NOEXEC), ("nosuid suid", 0),
        ("suid nosuid", NOSUID), ("noexec exec dev", 0), ("noatime", NOATIME), ("noatime relatime", 0),
        ("noatime strictatime", STRICTATIME), ("strictatime noatime", NOATIME), ("noatime atime", 0),
        ("nodiratime noatime", NODIRATIME | NOATIME), ("nodiratime diratime", 0), ("size=5m nodev", NODEV),
    ],
)  # fmt: skip
def test_options_are_read_in_their_order(options: str, attributes: int) -> None:
    assert flags.of_options(options.split()) == attributes


def bind(destination: str, *options: str) -> dict[str, Any]:
    return {"destination": destination, "source": "/s", "options": ["bind", *options]}


def test_binds_with_attributes_are_found() -> None:
    """Attributes that a later mount hides do not count."""
    mounts = [
        bind("/hidden", "nodev"), bind("/below/it", "nodev"), bind("/twice", "nodev"), bind("/twice/", "noexec"),
        {"destination": "/tmp", "type": "tmpfs", "options": ["nodev"]}, bind("relative/x", "nosuid"), bind("/plain"),
        {"destination": "/typed", "type": "bind", "options": ["nosuid"]}, {"destination": "/hidden", "type": "tmpfs"},
        {"destination": "/below", "type": "tmpfs"},
    ]  # fmt: skip
    assert flags.bind_attributes({"mounts": mounts}) == {"/twice": NOEXEC, "/relative/x": NOSUID, "/typed": NOSUID}
    assert flags.bind_attributes({}) == {}


TABLE = """\
30 1 0:1 / / rw,relatime - rootfs rootfs rw
31 30 0:2 / /proc rw,nosuid,nodev,noexec,noatime shared:3 - proc proc rw
32 31 0:2 /sys /proc/sys ro,relatime - proc proc rw
"""


@pytest.mark.parametrize(("number", "kept"), [(32, NOSUID | NODEV | NOEXEC | NOATIME), (31, 0), (30, 0), (99, 0)])
def test_attributes_of_the_mount_below_are_read(number: int, kept: int) -> None:
    assert flags.parent_attributes(TABLE, number) == kept


def test_attributes_are_set_only_in_the_other_mount_namespace(tmp_path: Path) -> None:
    for name in ("bound", "over", "plain"):
        (tmp_path / name).mkdir()
    script = (
        f"mount -t tmpfs -o nosuid,noexec x {tmp_path}/over; mkdir {tmp_path}/over/inner;"
        f"mount --bind {tmp_path}/over/inner {tmp_path}/over/inner;"
        f"mount -o remount,bind,ro,suid,exec {tmp_path}/over/inner;"
        f"mount --bind {tmp_path}/plain {tmp_path}/bound; echo; exec sleep 1000"
    )
    spec = {
        "mounts": [bind(str(tmp_path / "bound"), "nodev", "noatime"), bind(str(tmp_path / "none"), "nodev")],
        "linux": {"readonlyPaths": [f"{tmp_path}/over/inner", f"{tmp_path}/plain", "/none"]},
    }
    before = Path("/proc/self/mountinfo").read_text()
    with subprocess.Popen(["unshare", "-m", "sh", "-c", script], stdout=subprocess.PIPE) as inside:
        try:
            assert inside.stdout is not None
            inside.stdout.readline()
            for pid in (inside.pid, os.getpid()):
                process = os.open(f"/proc/{pid}", os.O_RDONLY)
                flags.restore(spec, process, mapped=True)
                os.close(process)
            options = {mount.point: mount.options for mount in mounts_of(inside.pid)}
        finally:
            inside.kill()
    assert {"nodev", "noatime"} <= options[f"{tmp_path}/bound"]
    assert {"ro", "nosuid", "noexec"} <= options[f"{tmp_path}/over/inner"]
    assert Path("/proc/self/mountinfo").read_text() == before


@pytest.mark.parametrize("network", [False, True])
def test_sysfs_is_bound_unless_the_container_has_a_network(network: bool) -> None:
    sysfs = {"destination": "/sys", "type": "sysfs", "source": "sysfs", "options": ["nosuid", "ro"]}
    proc = {"destination": "/proc", "type": "proc"}
    spec: dict[str, Any] = {"mounts": [proc, sysfs], "linux": {"namespaces": [{"type": "user"}]}}
    if network:
        spec["linux"]["namespaces"].append({"type": "network"})
    result = with_bound_sysfs(spec)
    bound = {"destination": "/sys", "type": "bind", "source": "/sys", "options": ["bind", "nosuid", "ro"]}
    assert result["mounts"] == [proc, sysfs if network else bound]
