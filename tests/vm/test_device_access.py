"""Who may open which device: rules for devices, and owners in a user namespace. The rules are asked of runc, too."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.bundles import add_devices, make_bundle, write
from tests.support.host import prove_unchanged, snapshot
from tests.support.netns import run
from tests.support.runtime import Runtime

pytestmark = pytest.mark.vm

KIND, SANDBOX = "io.kubernetes.cri.container-type", "io.kubernetes.cri.sandbox-id"
FOREVER = ["/bin/sh", "-c", "while :; do sleep 3600; done"]
VFIO, GROUP = ("/dev/vfio/vfio", 10, 196), ("/dev/vfio/5", 511, 5)
#: A device that is not there is still guarded: runc's answer needs none.
OPENS = (
    "for d in /dev/vfio/vfio /dev/vfio/5; do for how in '<' '>>' '<>'; do "
    'case $(eval "( : $how $d )" 2>&1) in *"not permitted"*) echo $d $how denied;; *) echo $d $how;; esac; done; done'
)


def rule(allow: bool, major: int | None = None, minor: int | None = None, access: str = "rwm", **more: Any) -> Any:
    numbers = {key: number for key, number in (("major", major), ("minor", minor)) if number is not None}
    return {"allow": allow, "type": "c", **numbers, "access": access} | more


OWNERS = ("1000:1001", "1001:1001")
NONE, ALL = {"allow": False, "access": "rwm"}, {"allow": True, "access": "rwm"}
RULES: dict[str, list[dict[str, Any]]] = {
    "no-rules": [],
    "group-without-vfio": [NONE, rule(True, 511, 5, "rw")],
    "vfio-read-only": [NONE, rule(True, 511, 5, "rw"), rule(True, 10, 196, "r")],
    "accesses-merge": [NONE, rule(True, 511, 5, "r"), rule(True, 511, 5, "w"), rule(True, 10, 196, "w")],
    "wildcards": [NONE, rule(True, 511, None, "rw"), rule(True, 10, -1, "r")],
    "minor-only": [NONE, rule(True, None, 5, "r"), rule(True, 10, 196, "m")],
    "denied-in-all": [ALL, rule(False, 511, 5, "w"), rule(False, 10, 196, "rwm")],
    "allowed-again": [ALL, rule(False, 511, 5), rule(False, 10, 196), rule(True, 511, 5, "r"), rule(True, 10, 196)],
    "reset": [NONE, rule(True, 511, 5), {"allow": True, "type": "a", "access": "r"}],
    "others": [NONE, rule(True, 511, 6), rule(True, 510), rule(True, 10, 197), rule(True, 511, 5, type="b")],
}


def bundle(directory: Path, name: str, arguments: list[str], **annotations: str) -> tuple[str, dict[str, Any]]:
    path = str(directory / name)
    spec = make_bundle(path, arguments)
    add_devices(spec, [VFIO, GROUP])
    # runc 1.1 cannot mount cgroups on every host that this test runs on.
    spec["mounts"] = [mount for mount in spec["mounts"] if mount["type"] != "cgroup"]
    spec["annotations"] = annotations
    return path, spec


def map_ids(path: str, spec: dict[str, Any]) -> None:
    """Give the container a user namespace, and its files to its root."""
    spec["linux"]["namespaces"].append({"type": "user"})
    for key in ("uidMappings", "gidMappings"):
        spec["linux"][key] = [{"containerID": 0, "hostID": 100000, "size": 65536}]
    for directory, _, files in os.walk(f"{path}/rootfs"):
        for name in ("", *files):
            os.chown(f"{directory}/{name}", 100000, 100000, follow_symlinks=False)


@pytest.fixture
def pod(tmp_path: Path) -> Iterator[Runtime]:
    before = snapshot()
    made = Runtime(str(tmp_path))
    made.configure('[emulated]\n5 = ["edu"]\n6 = ["edu"]\n')
    path, spec = bundle(tmp_path, "pod", FOREVER, **{KIND: "sandbox"})
    del spec["linux"]["devices"]
    write(path, spec)
    made.run_detached(path, "pod")
    yield made
    assert made("delete", "--force", "pod").code == 0
    prove_unchanged(before)


def test_rules_open_what_they_open_with_runc(pod: Runtime, tmp_path: Path) -> None:
    ours, theirs = {}, {}
    for name, rules in RULES.items():
        path, spec = bundle(tmp_path, name, ["/bin/sh", "-c", OPENS], **{KIND: "container", SANDBOX: "pod"})
        spec["linux"]["resources"]["devices"] = rules
        write(path, spec)
        result = pod("run", "--bundle", path, name)
        assert result.code == 0, (name, result)
        # Rules for devices of the host that the container does not have are warned of.
        assert ("has no effect" in result.errors) is (name == "others"), (name, result)
        ours[name] = result.output.splitlines()
        assert pod("delete", "--force", name).code == 0
        asked = run("runc", "--root", f"{tmp_path}/runc", "run", "--bundle", path, f"{name}-{os.getpid()}")
        theirs[name] = asked.splitlines()
    assert ours == theirs
    assert ours["vfio-read-only"] == [
        "/dev/vfio/vfio <", "/dev/vfio/vfio >> denied", "/dev/vfio/vfio <> denied",
        "/dev/vfio/5 <", "/dev/vfio/5 >>", "/dev/vfio/5 <>",
    ]  # fmt: skip


def test_nodes_in_a_user_namespace_have_the_modes_and_owners_of_the_spec(pod: Runtime, tmp_path: Path) -> None:
    """As container ids; those of nodes that are attached later are the ids of the node on the host."""
    path, spec = bundle(tmp_path, "mapped", FOREVER, **{KIND: "container", SANDBOX: "pod"})
    map_ids(path, spec)
    # An emulated group at another path than /dev/vfio/5 is that group all the same.
    spec["linux"]["devices"][1] |= {"path": "/dev/./vfio-mine/5"} | {"fileMode": 0o640, "uid": 1000, "gid": 1001}
    spec["linux"]["devices"] += [
        {"path": "/dev/below/full", "type": "c", "major": 1, "minor": 7, "fileMode": 0o606, "uid": 7, "gid": 100000},
        {"path": "/opt/block", "type": "b", "major": 7, "minor": 3, "fileMode": 0o600},
        {"path": "/dev/unbuffered", "type": "u", "major": 1, "minor": 3},
        {"path": "/dev/pipe", "type": "p", "fileMode": 0o620, "uid": 5},
    ]
    spec["linux"]["resources"]["devices"].append(rule(True, 1, 7))
    write(path, spec)
    pod.run_detached(path, "mapped")
    assert pod("attach", "mapped", "6").code == 0
    script = (
        "cd /dev; stat -c '%n %F %a %u %g' vfio/vfio vfio-mine/5 vfio/6 below/full /opt/block unbuffered pipe;"
        "cat /proc/self/uid_map; : <> vfio/vfio && echo opened; : <> vfio/6 && echo attached;"
        "echo x > below/full; echo out > /dev/stdout; grep -c '\"group\": 6' hawse/devices.json"
    )
    seen = pod("exec", "mapped", "/bin/sh", "-c", script)
    assert seen.output.splitlines() == [
        "vfio/vfio character special file 666 0 0",
        "vfio-mine/5 character special file 640 1000 1001",
        "vfio/6 character special file 666 0 0",
        "below/full character special file 606 7 65534",
        "/opt/block block special file 600 0 0",
        "unbuffered character special file 666 0 0",
        "pipe fifo 620 5 0",
        "         0     100000      65536",
        "opened", "attached", "out", "1",
    ], seen  # fmt: skip
    assert "No space left" in seen.errors
    users = {user: pod("exec", "--user", user, "mapped", "/bin/sh", "-c", ": <> /dev/vfio-mine/5") for user in OWNERS}
    assert [result.code for result in users.values()] == [0, 1], users
    assert pod("detach", "mapped", "6").code == 0
    left = pod("exec", "mapped", "/bin/sh", "-c", "ls /dev/vfio; grep -c vfio/6 /proc/self/mountinfo")
    assert left.output.splitlines()[-1] == "0"
    assert "6" not in left.output.split()
    assert pod("attach", "mapped", "6").code == 0
    assert pod("exec", "mapped", "/bin/sh", "-c", ": <> /dev/vfio/6").code == 0
    assert pod("delete", "--force", "mapped").code == 0


def test_nodes_exist_where_the_guests_own_dev_is_bound(pod: Runtime, tmp_path: Path) -> None:
    """/dev, a directory of it, and in a user namespace. The guest's /dev is as before when they are deleted."""
    whole = {"destination": "/dev", "type": "bind", "source": "/dev", "options": ["rbind", "rprivate"]}
    vfio = {"destination": "/opt/nodes", "type": "bind", "source": "/dev/vfio", "options": ["rbind"]}
    script = (
        "for p in $(echo /dev/vfio/* /opt/nodes/* /dev/mine/full /dev/fuse /dev/null | tr ' ' '\\n' | sort -u); do "
        "test -c $p && stat -c '%n %a %u %g' $p; done; : <> {0}/5 && echo opened; ls /dev/hawse"
    )

    def begin(name: str, mounts: list[Any], group: str, mapped: bool = False) -> list[str]:
        path, spec = bundle(tmp_path, name, FOREVER, **{KIND: "container", SANDBOX: "pod"})
        os.symlink("busybox", f"{path}/rootfs/bin/sort")
        os.symlink("busybox", f"{path}/rootfs/bin/tr")
        if mapped:
            map_ids(path, spec)
        if whole in mounts:
            spec["mounts"] = [mount for mount in spec["mounts"] if not mount["destination"].startswith("/dev")]
        spec["mounts"] += mounts
        spec["linux"]["devices"][1] |= {"path": f"{group}/5", "fileMode": 0o646, "uid": 1000, "gid": 1001}
        if whole in mounts:
            spec["linux"]["devices"] += [
                {"path": "/dev/mine/full", "type": "c", "major": 1, "minor": 7, "fileMode": 0o606, "uid": 7},
                {"path": "/dev/null", "type": "c", "major": 1, "minor": 3, "fileMode": 0o666},
            ]
        write(path, spec)
        pod.run_detached(path, name)
        result = pod("exec", name, "/bin/sh", "-c", script.format(group))
        return [*result.output.splitlines(), *result.errors.splitlines()]

    own = ["/dev/mine/full 606 7 0", "/dev/null 666 0 0"]
    nodes = ["/dev/vfio/{0} 646 1000 1001", "/dev/vfio/5 646 1000 1001", "/dev/vfio/vfio 666 0 0"]
    for name, mapped in (("whole", False), ("mapped", True)):
        seen = begin(name, [whole], "/dev/vfio", mapped)
        guest = pod.state(name)["vfio"][0]["guest"]["group"]
        expected = {line.format(guest) for line in nodes} | set(own)
        assert expected <= set(seen), seen
        assert seen[-2:] == ["opened", "devices.json"], seen
        assert len([line for line in seen if line.startswith("/dev/vfio")]) == len(expected) - len(own), seen
    assert pod("attach", "whole", "6").code == 0
    assert pod("exec", "whole", "/bin/sh", "-c", ": <> /dev/vfio/6").code == 0
    seen = begin("directory", [vfio], "/opt/nodes")
    assert "/opt/nodes/5 646 1000 1001" in seen and seen[-2:] == ["opened", "devices.json"], seen
    for name in ("whole", "mapped", "directory"):
        assert pod("delete", "--force", name).code == 0
    for name, mapped in (("bare", False), ("bare-mapped", True)):
        path, spec = bundle(tmp_path, name, FOREVER, **{KIND: "container", SANDBOX: "pod"})
        if mapped:
            map_ids(path, spec)
        spec["mounts"] = [mount for mount in spec["mounts"] if not mount["destination"].startswith("/dev")] + [whole]
        del spec["linux"]["devices"]
        write(path, spec)
        pod.run_detached(path, name)
        attached = pod("attach", name, "6")
        assert attached.code == 0, attached
        opened = pod("exec", name, "/bin/sh", "-c", "for node in /dev/vfio/*; do : <> $node && echo $node; done")
        guest = pod.state(name)["vfio"][0]["guest"]["group"]
        assert set(opened.output.split()) == {"/dev/vfio/6", f"/dev/vfio/{guest}", "/dev/vfio/vfio"}, opened
        assert pod("detach", name, "6").code == 0
        assert pod("exec", name, "ls", "/dev/vfio").output.split() == ["vfio"]
        assert pod("attach", name, "6").code == 0
        assert pod("delete", "--force", name).code == 0
    path, spec = bundle(tmp_path, "after", ["/bin/sh", "-c", "ls /dev/mine /dev/vfio /dev/hawse"], **{
        KIND: "container", SANDBOX: "pod",
    })  # fmt: skip
    spec["mounts"] = [mount for mount in spec["mounts"] if not mount["destination"].startswith("/dev")] + [whole]
    del spec["linux"]["devices"]
    write(path, spec)
    left = pod("run", "--bundle", path, "after")
    assert left.output.split() == ["/dev/hawse:", "/dev/mine:", "/dev/vfio:", "vfio"], left
