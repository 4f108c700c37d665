"""Root in the guest can change only shared files of the host."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.support.bundles import make_bundle, write
from tests.support.processes import children
from tests.support.runtime import Runtime

pytestmark = pytest.mark.vm

#: Capabilities of a privileged container, with which it reaches the mounts of the agent.
CAPABILITIES = {
    kind: ["CAP_SYS_ADMIN", "CAP_SYS_PTRACE", "CAP_MKNOD", "CAP_DAC_OVERRIDE", "CAP_FOWNER"]
    for kind in ("bounding", "effective", "permitted")
}
#: The whole share, in the mount namespace of the agent. A second mount of it would show the root of a mount below it:
#: virtio_fs_test_super() in fs/fuse/virtio_fs.c compares only the device.
SHARE = "/proc/1/root/run/hawse/share"
#: Tries to create entries in the root of the share and in the directory of the container; prints the results.
SCRIPT = f"""
for place in {SHARE} {SHARE}/c1; do
    busybox ln -s {{outside}} $place/link && echo linked
    busybox mkfifo $place/fifo && echo fifo
    busybox mknod $place/node c 1 3 && echo node
    busybox mkdir $place/directory && echo directory
    busybox touch $place/file && echo file
    busybox mv $place/rootfs $place/other && echo moved
done 2>/tmp/said
busybox grep -c 'Read-only file system' /tmp/said
echo written >{SHARE}/c1/rootfs/written
"""


def in_the_guests_process_namespace(bundle: str, script: str) -> dict[str, Any]:
    """A bundle without a PID namespace, whose container sees the agent."""
    spec = make_bundle(bundle, ["/bin/sh", "-c", script], capabilities=CAPABILITIES)
    spec["linux"]["namespaces"] = [each for each in spec["linux"]["namespaces"] if each["type"] != "pid"]
    write(bundle, spec)
    return spec


def test_root_of_the_share_is_read_only(runtime: Runtime, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    (outside / "directory").mkdir(parents=True)
    (outside / "empty").touch()
    os.mkfifo(outside / "fifo")
    runtime.configure('[vm]\nshare = "virtiofs"\n')
    bundle = str(tmp_path / "bundle")
    in_the_guests_process_namespace(bundle, SCRIPT.format(outside=outside))
    before = sorted(os.listdir(outside))
    result = runtime("run", "--keep", "--bundle", bundle, "c1")
    assert (result.code, result.output) == (0, "11\n"), result
    assert Path(f"{bundle}/rootfs/written").read_text() == "written\n", "shared directories are writable"
    assert os.listdir(f"{runtime.root}/c1/share") == [], "no file of the share is on the host's file system"
    assert runtime("delete", "c1").code == 0
    assert sorted(os.listdir(outside)) == before


def test_environment_of_the_engine_does_not_reach_the_guest(
    runtime: Runtime, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may contain passwords of proxies and registries."""
    monkeypatch.setenv("ENGINES_SECRET", "a password")
    bundle = str(tmp_path / "bundle")
    make_bundle(bundle, ["/bin/sleep", "1000"])
    proxy = runtime.run_detached(bundle, "c1")
    monitor = runtime.monitor("c1")
    seen = {}
    for pid in (proxy, monitor, *children(monitor)):
        seen[Path(f"/proc/{pid}/comm").read_text().strip()] = Path(f"/proc/{pid}/environ").read_bytes()
    assert {"qemu-system-x86", "virtiofsd"} <= seen.keys() and len(seen) >= 4
    assert [name for name, text in seen.items() if b"a password" in text] == []


def test_files_below_a_recursively_read_only_mount_are_read_only(runtime: Runtime, tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    (tree / "below").mkdir(parents=True)
    runtime.configure('[vm]\nshare = "virtiofs"\n')
    bundle = str(tmp_path / "bundle")
    script = f"echo x >{SHARE}/@/1/below/written"
    spec = in_the_guests_process_namespace(bundle, script)
    spec["mounts"].append(
        {"destination": "/data", "type": "bind", "source": str(tree), "options": ["rbind", "ro", "rro"]}
    )
    write(bundle, spec)
    subprocess.run(["mount", "-t", "tmpfs", "none", str(tree / "below")], check=True)
    try:
        result = runtime("run", "--bundle", bundle, "c1")
        assert result.code == 1
        assert "below/written: Read-only file system" in result.errors
        assert os.listdir(tree / "below") == []
    finally:
        subprocess.run(["umount", str(tree / "below")], check=True)


@pytest.mark.parametrize("with_dev", [True, False], ids=["tmpfs on /dev", "no mount on /dev"])
def test_device_nodes_are_created_only_on_file_systems_of_the_guest(
    runtime: Runtime, tmp_path: Path, with_dev: bool
) -> None:
    """Nodes of the specification may have any path. A container cannot create a node on a file system of the host."""
    (tmp_path / "volume").mkdir()
    bundle = str(tmp_path / "bundle")
    script = (
        "for place in /rootfs-node /volume/node; do busybox mknod $place c 1 3 2>/dev/null || echo refused; done\n"
        "busybox mknod /dev/node c 1 3 && echo made\n"
        "busybox stat -c '%t:%T %a %u' /opt/null /volume/zero\n"
        "echo x >/opt/null && busybox head -c 2 /volume/zero | busybox od -An -tx1\n"
        "busybox test -c /dev/null && echo null"
    )
    spec = make_bundle(bundle, ["/bin/sh", "-c", script], capabilities=CAPABILITIES)
    spec["mounts"] = [mount for mount in spec["mounts"] if with_dev or not mount["destination"].startswith("/dev")]
    spec["mounts"].append(
        {"destination": "/volume", "type": "bind", "source": f"{tmp_path}/volume", "options": ["rbind"]}
    )
    spec["linux"]["devices"] = [
        {"path": "/opt/null", "type": "c", "major": 1, "minor": 3, "fileMode": 0o640, "uid": 5},
        {"path": "/volume/zero", "type": "c", "major": 1, "minor": 5},
    ]
    spec["linux"]["resources"]["devices"] = [{"allow": True, "access": "rwm"}]
    write(bundle, spec)
    result = runtime("run", "--bundle", bundle, "c1")
    assert (result.code, result.errors) == (0, "")
    assert result.output.split("\n")[:-1] == [
        "refused", "refused", "made", "1:3 640 5", "1:5 666 0", " 00 00", "null",
    ]  # fmt: skip
    for path in (Path(bundle, "rootfs"), tmp_path / "volume"):
        nodes = [str(file) for file in path.rglob("*") if file.is_char_device() or file.is_block_device()]
        assert nodes == []
