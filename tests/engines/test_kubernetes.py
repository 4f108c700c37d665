"""The manifests of deploy/kubernetes are consistent, and their pod runs as with a kubelet."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hawse.oci.guest.hugetlbfs import counts_of
from hawse.plan.capacity import Room
from hawse.vm.host_memory import needs_of
from hawse.vm.size import Limits, machine_memory
from tests.support import manifests
from tests.support.caches import dpdk_rootfs
from tests.support.containerd import Containerd
from tests.support.cri import Cri
from tests.support.images import Image, write_archive, write_pause
from tests.support.kubelet_pod import Pod
from tests.support.manifests import DEPLOY
from tests.support.patience import patience, wait_until
from tests.support.plans import machine_plan
from tests.support.runtime import HAWSE

pytestmark = pytest.mark.engine


def test_manifests_are_consistent() -> None:
    documents = {path.name: manifests.read(path) for path in DEPLOY.glob("*.yaml")}
    kinds = {document["kind"]: document for contents in documents.values() for document in contents}
    assert {*kinds} == {"Pod", "RuntimeClass", "ConfigMap"}
    [ordinary] = documents["runtimeclass.yaml"]
    assert all(len(contents) == 1 for contents in documents.values())
    versions = {kind: document["apiVersion"] for kind, document in kinds.items()}
    assert versions == {"Pod": "v1", "RuntimeClass": "node.k8s.io/v1", "ConfigMap": "v1"}
    pod = kinds["Pod"]
    runtime_class = manifests.runtime_class(pod)
    assert pod["spec"]["runtimeClassName"] == runtime_class["metadata"]["name"]
    assert [each["handler"] for each in (runtime_class, ordinary)] == ["hawse", "hawse"]
    # The pod requests the resource of the plugin, and its command reads the variable of the plugin.
    [listed] = json.loads(kinds["ConfigMap"]["data"]["config.json"])["resourceList"]
    name, count = manifests.asked_for(pod)
    assert name == f"{listed['resourcePrefix']}/{listed['resourceName']}"
    assert count == 2
    [container] = pod["spec"]["containers"]
    assert f"${manifests.plugins_variables(name, {})[0]['key']}" in container["args"][0]
    # Requests of plugin resources and huge pages must equal the limits (Kubernetes pkg/apis/core/validation).
    assert container["resources"]["requests"] == container["resources"]["limits"]
    [volume] = pod["spec"]["volumes"]
    assert [mount["name"] for mount in container["volumeMounts"]] == [volume["name"]]
    assert volume["emptyDir"]["medium"] == "HugePages"
    # The VM has additional memory for the huge pages, and the pod's overhead allows for them.
    pages = manifests.quantity(container["resources"]["limits"]["hugepages-2Mi"])
    assert counts_of("", pod["metadata"]["annotations"]["hawse.hugepages"]) == {2048: pages / 2**21}
    overheads = [manifests.quantity(each["overhead"]["podFixed"]["memory"]) for each in (ordinary, runtime_class)]
    assert overheads[1] == overheads[0] + pages
    # The number on the page is the basis of the overhead.
    [figure] = re.findall(r"(\d+) MiB without KVM", (DEPLOY / "README.md").read_text())
    assert int(figure) * 2**20 <= overheads[0]
    # The limits and the overhead are enough for the containers and the VM, so hawse does not warn.
    limits = Limits(int(manifests.quantity(container["resources"]["limits"]["memory"])), ((2048, int(pages) >> 21),))
    machine = machine_memory(1024, limits, host_mib=64 * 1024)
    needs = needs_of(machine_plan(memory_mib=machine, cpus=2).shape, limits)
    assert needs.full_mib * 2**20 <= limits.memory + overheads[1]
    room = Room(spares=[], memory_mib=machine)
    assert room.check_memory("", limits.memory, hugepages_mib=int(pages) >> 20, host_mib=64 * 1024) == []


def test_commands_of_the_page_succeed(tmp_path: Path) -> None:
    """The commands of the page, unchanged, on a node whose groups are emulated and whose guest image exists.

    There is no cluster: a stub of `kubectl` records its arguments and checks that the files exist.
    """
    (tmp_path / "hawse.toml").write_text('[emulated]\n5 = ["edu"]\n')
    programs = {
        "hawse": f"""
            case "$1" in
                image) [ "$2" = build ] ;;
                install) exec {HAWSE} --config {tmp_path}/hawse.toml "$@" --file {tmp_path}/$2.toml ;;
                *) exec {HAWSE} --config {tmp_path}/hawse.toml "$@" ;;
            esac""",
        "systemctl": f'echo "$*" >>{tmp_path}/told',
        "kubectl": f"""
            echo "$*" >>{tmp_path}/told
            while [ $# -gt 0 ]; do
                [ "$1" != -f ] || test -r "$2"
                shift
            done""",
    }
    for name, script in programs.items():
        (tmp_path / name).write_text(f"#!/bin/sh -e\n{script}\n")
        (tmp_path / name).chmod(0o755)
    page = (DEPLOY / "README.md").read_text()
    script = "".join(re.findall(r"```sh\n(.*?)```", page, re.DOTALL))
    environment = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}", "NODE": "node-1"}
    done = subprocess.run(
        ["sh", "-exc", script], env=environment, cwd=DEPLOY, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, text=True, check=False, timeout=patience(100),
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    assert "\nready for containers with emulated groups; " in done.stdout
    assert "runtimes.hawse" in (tmp_path / "containerd.toml").read_text()
    told = (tmp_path / "told").read_text()
    [(label, value)] = manifests.read_one("runtimeclass.yaml")["scheduling"]["nodeSelector"].items()
    assert f"label node node-1 {label}={value}\n" in told
    assert {*re.findall(r"-f (\S+)", told)} == {path.name for path in DEPLOY.glob("*.yaml")}


#: Addresses in the guest of the first two groups of a pod. Emulated functions have no address on the host;
#: tests/lab/test_dpdk.py has functions whose addresses differ.
ADDRESSES = {"0000:02:00.0": 5, "0000:03:00.0": 6}


@pytest.fixture
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Containerd]:
    """containerd with the image of the pod, DPDK of Debian, on a node with two NICs."""
    directory = str(tmp_path_factory.mktemp("kube"))
    shutil.copytree(dpdk_rootfs(), f"{directory}/rootfs", symlinks=True)
    os.symlink("busybox", f"{directory}/rootfs/usr/bin/tr")
    os.makedirs(f"{directory}/rootfs/var", exist_ok=True)
    os.symlink("/run", f"{directory}/rootfs/var/run")  # as in base-files of Debian
    [container] = manifests.read_one("dpdk-pod.yaml")["spec"]["containers"]
    containerd = Containerd(directory, hawse='[emulated]\n5 = ["e1000e"]\n6 = ["e1000e"]\n')
    try:
        for archive in (
            write_pause(f"{directory}/pause.tar"),
            write_archive(f"{directory}/dpdk.tar", [Image(container["image"])], f"{directory}/rootfs"),
        ):
            containerd.load(archive, namespace="k8s.io")
        yield containerd
    finally:
        containerd.stop()


@pytest.fixture
def hugepages(tmp_path: Path) -> Iterator[str]:
    """The volume for huge pages, mounted as by a kubelet (pkg/volume/emptydir/empty_dir.go, setupHugepages)."""
    path = tmp_path / "hugepages"
    path.mkdir()
    subprocess.run(["mount", "-t", "hugetlbfs", "-o", "pagesize=2M", "nodev", path], check=True)
    path.chmod(0o777)
    yield str(path)
    subprocess.run(["umount", path], check=True)


def is_forwarding(pod: Pod) -> bool:
    return "NIC statistics for port 1" in pod.log("testpmd")


@pytest.mark.vm
def test_pod_of_the_manifest_forwards_packets(engine: Containerd, hugepages: str, tmp_path: Path) -> None:
    """A second container of the pod requests no device, and gets none."""
    manifest = manifests.read_one("dpdk-pod.yaml")
    [container] = manifest["spec"]["containers"]
    name, count = manifests.asked_for(manifest)
    assert count == len(ADDRESSES)
    whole = manifests.sandbox(manifest, manifests.runtime_class(manifest))
    [mount] = container["volumeMounts"]
    image: dict[str, Any] = {"image": {"image": container["image"]}}
    process: dict[str, Any] = {key: container[key] for key in ("command", "args")}
    with Cri(engine.address) as cri:
        wait_until(lambda: cri.is_ready() and len(cri("ListImages")["images"]) == 2)
        pod = Pod(engine, cri, f"{tmp_path}/pod", linux=whole, annotations=manifest["metadata"]["annotations"])
        try:
            pod.run("beside", "echo $(env); exec sleep 1000000", **image)
            pod.run(
                "testpmd", groups=tuple(ADDRESSES.values()), envs=manifests.plugins_variables(name, ADDRESSES),
                mounts=[{"container_path": mount["mountPath"], "host_path": hugepages}],
                resources=manifests.resources(container["resources"]["limits"]),
                security={"capabilities": {"add_capabilities": container["securityContext"]["capabilities"]["add"]}},
                **image, **process,
            )  # fmt: skip
            wait_until(lambda: is_forwarding(pod) or pod.status("testpmd")["state"] == "CONTAINER_EXITED", seconds=80)
            assert is_forwarding(pod), pod.log("testpmd")
            guest = json.loads(pod.exec("testpmd", "busybox cat /dev/hawse/devices.json").output)
            assert [entry["guest"]["address"] for entry in guest] == [*ADDRESSES]
            nodes = {f"/dev/vfio/{number}" for number in ("vfio", *ADDRESSES.values())}
            assert nodes <= {*pod.exec("testpmd", "echo /dev/vfio/*").output.split()}
            probed = re.findall(r"Probe PCI driver: net_e1000_em \(8086:10d3\) device: (\S+) ", pod.log("testpmd"))
            assert probed == [*ADDRESSES], pod.log("testpmd")
            # The container uses huge pages of the guest, at most its limit, and none of the host's volume.
            mounted = pod.exec("testpmd", f"grep ' {mount['mountPath']} ' /proc/mounts").output
            assert mounted.split()[2] == "hugetlbfs"
            pages = pod.exec("testpmd", "grep HugePages_ /proc/meminfo").output
            counts = {key: int(number) for key, number in re.findall(r"HugePages_(\w+): +(\d+)", pages)}
            taken = (counts["Total"] - counts["Free"]) * 2 * 2**20
            assert 0 < taken <= manifests.quantity(container["resources"]["limits"]["hugepages-2Mi"])
            assert os.listdir(hugepages) == []
            # The other container has no device.
            assert "PCIDEVICE" not in pod.log("beside")
            assert "No such file" in pod.exec("beside", "ls /dev/vfio").errors
            cri("StopContainer", container_id=pod.containers["testpmd"], timeout=60)
            assert pod.status("testpmd")["exit_code"] == 0
        finally:
            pod.remove()
    assert engine.left() == []
