"""Access to devices: device rules, compared with runc, and owners of nodes in a user namespace."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.bundles import add_devices, drop_cgroups, make_bundle, write
from tests.support.netns import run
from tests.support.pod_bundles import FOREVER, KIND, SANDBOX, role
from tests.support.running import running_container
from tests.support.runtime import Runtime

pytestmark = pytest.mark.vm

VFIO, GROUP = ("/dev/vfio/vfio", 10, 196), ("/dev/vfio/5", 511, 5)
#: The device need not exist for the rules to apply, so runc needs none.
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
    drop_cgroups(spec)
    spec["annotations"] = annotations
    return path, spec


def map_ids(path: str, spec: dict[str, Any]) -> None:
    """Add a user namespace, and change the owner of the container's files to its root."""
    spec["linux"]["namespaces"].append({"type": "user"})
    for key in ("uidMappings", "gidMappings"):
        spec["linux"][key] = [{"containerID": 0, "hostID": 100000, "size": 65536}]
    for directory, _, files in os.walk(f"{path}/rootfs"):
        for name in ("", *files):
            os.chown(f"{directory}/{name}", 100000, 100000, follow_symlinks=False)


@pytest.fixture
def pod(tmp_path: Path) -> Iterator[Runtime]:
    path, spec = bundle(tmp_path, "pod", FOREVER, **role("pod"))
    del spec["linux"]["devices"]
    write(path, spec)
    with running_container(str(tmp_path), path, "pod", configuration='[emulated]\n5 = ["edu"]\n6 = ["edu"]\n') as pod:
        yield pod


def test_rules_allow_the_same_accesses_as_with_runc(pod: Runtime, tmp_path: Path) -> None:
    ours, theirs = {}, {}
    for name, rules in RULES.items():
        path, spec = bundle(tmp_path, name, ["/bin/sh", "-c", OPENS], **role(name))
        spec["linux"]["resources"]["devices"] = rules
        write(path, spec)
        result = pod("run", "--bundle", path, name)
        assert result.code == 0, (name, result)
        # hawse warns of rules for devices of the host that the container does not have.
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
    """Owners are ids of the container. Nodes that are attached later have the ids of the host's node."""
    path, spec = bundle(tmp_path, "mapped", FOREVER, **role("mapped"))
    map_ids(path, spec)
    # The path of the node of an emulated group may differ from /dev/vfio/5.
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


def test_nodes_exist_in_a_bound_dev_of_the_guest(pod: Runtime, tmp_path: Path) -> None:
    """For /dev, for a directory in it, and in a user namespace. Afterwards the /dev of the guest is unchanged."""
    whole = {"destination": "/dev", "type": "bind", "source": "/dev", "options": ["rbind", "rprivate"]}
    vfio = {"destination": "/opt/nodes", "type": "bind", "source": "/dev/vfio", "options": ["rbind"]}
    script = (
        "for p in $(echo /dev/vfio/* /opt/nodes/* /dev/mine/full /dev/fuse /dev/null | tr ' ' '\\n' | sort -u); do "
        "test -c $p && stat -c '%n %a %u %g' $p; done; : <> {0}/5 && echo opened; ls /dev/hawse"
    )

    def begin(name: str, mounts: list[Any], group: str, mapped: bool = False) -> list[str]:
        path, spec = bundle(tmp_path, name, FOREVER, **role(name))
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
