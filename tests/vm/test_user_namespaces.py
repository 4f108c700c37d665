"""A pod with a user namespace, as for ``hostUsers: false``: containers join it by path and have mapped mounts."""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hawse.linux import user_namespaces
from tests.support.bundles import UNLIMITED, add_devices, drop_cgroups, make_bundle, write
from tests.support.host import prove_unchanged, snapshot
from tests.support.netns import run
from tests.support.pod_bundles import FOREVER, role
from tests.support.runtime import Runtime

pytestmark = pytest.mark.vm

UIDS, GIDS = [(0, 100000, 65536)], [(0, 200000, 65536)]
#: Options of containerd for every volume, and for its files in /etc.
MAPPED = {
    "uidMappings": [{"containerID": 0, "hostID": 100000, "size": 65536}],
    "gidMappings": [{"containerID": 0, "hostID": 200000, "size": 65536}],
}


def bundle(directory: Path, name: str, user: str, **more: Any) -> tuple[str, dict[str, Any]]:
    """A bundle of a container of the pod, whose files belong to root of the user namespace."""
    path = str(directory / name)
    spec = make_bundle(path, FOREVER, rlimits=[UNLIMITED])
    for parent, _, files in os.walk(f"{path}/rootfs"):
        for file in ("", *files):
            os.chown(f"{parent}/{file}", 100000, 200000, follow_symlinks=False)
    spec["linux"]["namespaces"].append({"type": "user"} | ({"path": user} if user else {}))
    spec["linux"] |= more
    drop_cgroups(spec)
    spec["annotations"] = role(name)
    return path, spec


@pytest.fixture
def pinned(tmp_path: Path) -> Iterator[str]:
    """A user namespace that an engine has created and mounted, as CRI-O does."""
    path = tmp_path / "userns"
    path.touch()
    namespace = user_namespaces.create(UIDS, GIDS)
    subprocess.run(["mount", "--bind", f"/proc/{os.getpid()}/fd/{namespace}", str(path)], check=True)
    os.close(namespace)
    yield str(path)
    subprocess.run(["umount", str(path)], check=True)


@pytest.fixture
def pod(tmp_path: Path, pinned: str) -> Iterator[Runtime]:
    before = snapshot()
    runtime = Runtime(str(tmp_path))
    runtime.configure('[emulated]\n5 = ["edu"]\n')
    path, spec = bundle(tmp_path, "pod", pinned)
    write(path, spec)
    runtime.run_detached(path, "pod")
    yield runtime
    assert runtime("delete", "--force", "pod").code == 0
    prove_unchanged(before)


def test_container_joins_the_user_namespace_and_has_mapped_mounts(pod: Runtime, pinned: str, tmp_path: Path) -> None:
    volume, hosts = tmp_path / "volume", tmp_path / "hosts"
    (volume / "below").mkdir(parents=True)
    for number, name in ((0, "root"), (1000, "user"), (100000, "other")):
        (volume / name).write_text(name)
        os.chown(volume / name, number, number)
    volume.chmod(0o777)
    hosts.write_text("127.0.0.1 localhost\n")
    pid = pod.state("pod")["pid"]
    # containerd passes the namespaces of the pid from the pid file, together with the mappings.
    path, spec = bundle(tmp_path, "one", f"/proc/{pid}/ns/user", **MAPPED)
    for namespace in spec["linux"]["namespaces"]:
        if namespace["type"] in ("ipc", "uts", "pid"):
            namespace["path"] = f"/proc/{pid}/ns/{namespace['type']}"
    del spec["hostname"]
    spec["mounts"] += [
        {"destination": "/volume", "type": "bind", "source": str(volume), "options": ["rbind", "rprivate"], **MAPPED},
        {"destination": "/etc/hosts", "type": "bind", "source": str(hosts), "options": ["rbind", "ro"], **MAPPED},
        {"destination": "/plain", "type": "bind", "source": str(volume), "options": ["rbind", "ro"]},
    ]
    add_devices(spec, [("/dev/vfio/vfio", 10, 196), ("/dev/vfio/5", 511, 5)])
    spec["linux"]["devices"][1] |= {"fileMode": 0o600, "uid": 1000, "gid": 1000}
    spec["process"]["user"] = {"uid": 1000, "gid": 1000}
    write(path, spec)
    pod.run_detached(path, "one")
    script = (
        "echo $(cat /proc/self/uid_map) / $(cat /proc/self/gid_map); id -u; cd /volume; stat -c '%n %u %g' root user "
        "other /etc/hosts /plain/root /plain/other; cat /etc/hosts; echo made > mine && stat -c '%u %g' mine;"
        "stat -c '%a %u %g' /dev/vfio/5; : <> /dev/vfio/5 && : <> /dev/vfio/vfio && echo opened;"
        "echo out > /dev/stdout"
    )
    seen = pod.shell("one", script)
    assert (seen.code, seen.errors) == (0, ""), seen
    assert seen.output.splitlines() == [
        "0 100000 65536 / 0 200000 65536", "1000",
        "root 0 0", "user 1000 1000", "other 65534 65534", "/etc/hosts 0 0",
        "/plain/root 65534 65534", "/plain/other 0 65534",
        "127.0.0.1 localhost", "1000 1000", "600 1000 1000", "opened", "out",
    ]  # fmt: skip
    status = (volume / "mine").stat()
    assert (status.st_uid, status.st_gid) == (1000, 1000), "on the host the ids are those of the volume"
    assert pod.shell("one", "echo x > /volume/root-made", "--user", "0:0").code == 0
    assert (volume / "root-made").stat().st_uid == 0
    assert pod.shell("one", "echo x > /tmp/file", "--user", "0:0").code == 0
    assert (tmp_path / "one/rootfs/tmp/file").stat().st_uid == 100000
    # Engines see the same owners through the root of the pid (`podman cp`).
    shown = Path(f"/proc/{pod.state('one')['pid']}/root/volume/user").stat()
    assert (shown.st_uid, shown.st_gid) == (101000, 201000)
    # CRI-O passes the path of the sandbox again.
    path, spec = bundle(tmp_path, "two", pinned)
    write(path, spec)
    pod.run_detached(path, "two")
    script = "for n in user ipc uts pid; do busybox readlink /proc/self/ns/$n; done"
    [first, one, two] = [pod.shell(name, script).output.split() for name in ("pod", "one", "two")]
    assert one == first
    assert len(one) == 4
    assert (two[0], two[1:]) == (first[0], [other for other in two[1:] if other not in first])
    # Also for a container without devices, with the ids of the namespace that it has joined.
    assert pod("attach", "two", "5").code == 0
    script = "stat -c '%F %u' /dev/vfio/5; : <> /dev/vfio/vfio && echo opened; grep -c group /dev/hawse/devices.json"
    assert pod.shell("two", script).output.splitlines() == ["character special file 0", "opened", "2"]
    assert pod("detach", "two", "5").code == 0
    for name in ("one", "two"):
        assert pod("delete", "--force", name).code == 0


def test_error_names_a_volume_that_cannot_be_mapped(pod: Runtime, tmp_path: Path) -> None:
    """As under runc; ramfs, for example, does not support mappings."""
    (tmp_path / "ramfs").mkdir()
    subprocess.run(["mount", "-t", "ramfs", "ramfs", f"{tmp_path}/ramfs"], check=True)
    try:
        path, spec = bundle(tmp_path, "one", f"/proc/{pod.state('pod')['pid']}/ns/user", **MAPPED)
        spec["mounts"].append({"destination": "/x", "type": "bind", "source": f"{tmp_path}/ramfs", **MAPPED})
        write(path, spec)
        refused = pod("create", "--bundle", path, "one")
        assert refused.code == 1
        assert (
            f"cannot map the owners of {tmp_path}/ramfs: its file system does not support ID-mapped mounts"
            in refused.errors
        )
    finally:
        subprocess.run(["umount", f"{tmp_path}/ramfs"], check=True)


def test_container_without_a_pod_has_the_same_users_as_with_runc(runtime: Runtime, pinned: str) -> None:
    """An engine has created its user namespace. The one in the guest has the same mappings."""
    # The users of the namespace must find their root file system; only root may search directories of pytest.
    with tempfile.TemporaryDirectory(dir="/tmp") as directory:
        os.chmod(directory, 0o755)
        path, spec = bundle(Path(directory), "one", pinned)
        del spec["annotations"], spec["process"]["rlimits"]  # runc may not raise them everywhere
        spec["process"]["args"][2] = "cat /proc/self/uid_map /proc/self/gid_map; stat -c '%u %g' /bin /proc/1 /tmp"
        write(path, spec)
        ours = runtime("run", "--bundle", path, "one")
        spec["linux"] |= MAPPED  # runc 1.1 requires them together with the path
        write(path, spec)
        theirs = run("runc", "--root", f"{directory}/runc", "run", "--bundle", path, f"one-{os.getpid()}")
    assert (ours.code, ours.output, ours.errors) == (0, theirs, "")
