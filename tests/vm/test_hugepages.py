"""Huge pages in the container, instead of the host's that its engine binds, and huge pages as memory of the VM."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import json
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from hawse.vm import ram_file
from hawse.vm.host_hugepages import KIB, count
from tests.support.bundles import make_bundle, write
from tests.support.caches import dpdk_rootfs, own_cache
from tests.support.host import prove_unchanged, snapshot
from tests.support.mount_table import cgroup_hierarchies
from tests.support.pod_bundles import FOREVER, KIND, SANDBOX
from tests.support.programs import compiled_file
from tests.support.runtime import Result, Runtime
from tests.support.timelines import step_names

pytestmark = pytest.mark.vm

SOURCE = Path(__file__).with_name("hugepage.c")
MIB = 1024 * 1024
KIB_2MB = KIB["2MB"]
Pages = Callable[[int], None]


@pytest.fixture
def host_pages() -> Iterator[Pages]:
    """A function that reserves huge pages of 2 MiB on this host. Afterwards their number is restored; all are free."""
    path = f"/sys/kernel/mm/hugepages/hugepages-{KIB_2MB}kB/nr_hugepages"
    before = count(KIB_2MB)

    def reserve(free: int) -> None:
        total, have = count(KIB_2MB)
        Path(path).write_text(str(total + free - have))
        if count(KIB_2MB)[1] != free:
            pytest.skip(f"this host has no room for {free} huge pages")

    yield reserve
    Path(path).write_text(str(before[0]))
    assert count(KIB_2MB) == before


@pytest.fixture
def volume(runtime: Runtime, tmp_path: Path) -> Iterator[Callable[[str], str]]:
    """Mount a hugetlbfs on the host; returns a directory in it, as Kubernetes and others create it."""
    assert runtime.root
    mounted: list[str] = []

    def mount(options: str) -> str:
        path = str(tmp_path / f"volume{len(mounted)}")
        os.mkdir(path)
        subprocess.run(["mount", "-t", "hugetlbfs", "-o", options, "hugetlbfs", path], check=True)
        mounted.append(path)
        os.mkdir(f"{path}/pod")
        os.chmod(f"{path}/pod", 0o750)
        os.chown(f"{path}/pod", 0, 7)
        return f"{path}/pod"

    yield mount
    for path in mounted:
        assert os.listdir(f"{path}/pod") == [], "no file was created on the host"
        subprocess.run(["umount", path], check=True)


@pytest.fixture(scope="module")
def program() -> str:
    return compiled_file(str(SOURCE))


def demo_specification() -> dict[str, Any]:
    loader = importlib.machinery.SourceFileLoader("demo_run", str(SOURCE.parents[2] / "demo" / "run"))
    module = importlib.util.module_from_spec(importlib.util.spec_from_loader("demo_run", loader) or pytest.fail())
    loader.exec_module(module)
    spec: dict[str, Any] = module.specification()
    return spec


def bind(source: str, *options: str) -> dict[str, Any]:
    return {"type": "bind", "source": source, "destination": "/dev/hugepages", "options": ["rbind", *options]}


def bundle(
    tmp_path: Path,
    name: str,
    program: str,
    script: str,
    mounts: list[dict[str, Any]],
    limits: dict[str, int] | None = None,
    annotations: dict[str, str] | None = None,
) -> str:
    path = str(tmp_path / name)
    spec = make_bundle(path, ["/bin/sh", "-c", script] if script else FOREVER)
    subprocess.run(["cp", program, f"{path}/rootfs/bin/hugepage"], check=True)
    spec["mounts"] += mounts
    spec["annotations"] = annotations or {}
    if limits:
        spec["linux"]["resources"]["hugepageLimits"] = [
            {"pageSize": size, "limit": limit} for size, limit in limits.items()
        ]
    write(path, spec)
    return path


LOOK = (
    "grep /dev/hugepages /proc/mounts; stat -c '%a %u %g' /dev/hugepages;"
    "cat /sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages; "
)


def test_bind_without_a_limit_has_as_many_pages_as_are_free_on_the_host(
    runtime: Runtime, tmp_path: Path, program: str, volume: Callable[[str], str], host_pages: Pages
) -> None:
    """For example with Docker: the container binds a hugetlbfs of the host, and can map all of its pages."""
    host_pages(8)
    script = LOOK + "hugepage /dev/hugepages/it 8 7 && hugepage /dev/hugepages/it 8 9; hugepage /dev/hugepages/more 1 0"
    path = bundle(tmp_path, "b", program, script, [bind(volume("pagesize=2M"))])
    result = runtime("run", "--bundle", path, "c1")
    lines = result.output.splitlines()
    kind, options = lines[0].split()[2:4]
    assert (kind, "pagesize=2M" in options.split(",")) == ("hugetlbfs", True)
    assert lines[1:3] == ["750 0 7", "8"]
    assert lines[3:] == ["2048" + " 0" * 8, "2048" + " 7" * 8]
    assert (result.code, result.errors) == (1, "mmap: Cannot allocate memory\n")
    assert count(KIB_2MB)[1] == 8, "the container's pages are those of the guest"


def test_dpdk_runs_without_a_limit(runtime: Runtime, tmp_path: Path, volume: Callable[[str], str]) -> None:
    """The container of the demo binds a hugetlbfs of the host and has no limit; the host has no free page."""
    rootfs = dpdk_rootfs()
    spec = demo_specification()
    source = volume("pagesize=2M")
    os.chown(source, 1000, 1000)
    spec["root"] = {"path": rootfs, "readonly": True}
    spec["mounts"] = [mount for mount in spec["mounts"] if mount["type"] != "hugetlbfs"] + [bind(source)]
    del spec["linux"]["resources"]["hugepageLimits"]
    words = "echo quit | dpdk-testpmd -l 0,1 --iova-mode=va -- --interactive --total-num-mbufs=8192"
    spec["process"]["args"] = ["/bin/sh", "-c", words]
    write(str(tmp_path), spec)
    runtime.configure('[emulated]\n6 = ["e1000e", "e1000e"]\n')
    result = runtime("run", "--bundle", str(tmp_path), "c1", seconds=100)
    assert result.code == 0, result
    assert "Port 1 is closed" in result.output, result


def test_limit_is_the_number_of_pages(
    runtime: Runtime, tmp_path: Path, program: str, volume: Callable[[str], str]
) -> None:
    """Kubernetes also sends limits of zero for each other page size of the host, which the guest may lack."""
    script = LOOK + "hugepage /dev/hugepages/it 4 7; cat /sys/fs/cgroup/hugetlb.2MB.max; touch /ro/it"
    source = volume("pagesize=2M")
    readonly = bind(source, "ro") | {"destination": "/ro"}
    limits = {"2MB": 4 * 2 * MIB, "1GB": 0, "16GB": 0}
    path = bundle(tmp_path, "b", program, script, [bind(source), readonly], limits, {"hawse.hugepages": "2MB:2"})
    result = runtime("run", "--bundle", path, "c1")
    assert result.output.splitlines()[2:] == ["4", "2048 0 0 0 0", str(8 * MIB)], result
    assert result.errors == "touch: /ro/it: Read-only file system\n"


def test_pages_of_one_gigabyte(runtime: Runtime, tmp_path: Path, program: str, volume: Callable[[str], str]) -> None:
    runtime.configure("[template]\nenabled = false\n")
    source = volume("pagesize=1G")
    path = bundle(tmp_path, "b", program, "hugepage /dev/hugepages/it 1 7", [bind(source)], {"1GB": 1 << 30})
    assert runtime("run", "--bundle", path, "c1", seconds=80) == Result(0, "1048576 0\n", "")


def test_containers_of_a_pod_share_binds_and_release_their_pages(
    tmp_path: Path, program: str, runtime: Runtime, volume: Callable[[str], str]
) -> None:
    source, other = volume("pagesize=2M"), volume("pagesize=2M")
    sandbox = bundle(tmp_path, "pod", program, "", [], annotations={KIND: "sandbox", "hawse.hugepages": "2MB:16"})
    runtime.run_detached(sandbox, "pod")
    before = snapshot()
    annotations = {KIND: "container", SANDBOX: "pod", "hawse.hugepages": "2MB:16"}
    count_pages = "cat /sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages"

    def member(name: str, volume: str, pages: int) -> str:
        return bundle(tmp_path, name, program, "", [bind(volume)], {"2MB": pages * 2 * MIB}, annotations)

    runtime.run_detached(member("one", source, 6), "one")
    runtime.run_detached(member("two", source, 2), "two")
    runtime.run_detached(member("three", other, 2), "three")
    assert runtime.shell("pod", count_pages).output == "10\n"
    assert runtime.shell("one", "hugepage /dev/hugepages/it 1 11").output == "2048 0\n"
    assert runtime.shell("two", "hugepage /dev/hugepages/it 1 12").output == "2048 11\n"
    assert runtime.shell("three", "hugepage /dev/hugepages/it 1 13").output == "2048 0\n"
    for name in ("one", "two"):
        assert runtime("delete", "--force", name).code == 0
    # One page is in a file that outlives its container, as in a volume. The next container has separate pages.
    assert runtime.shell("pod", count_pages).output == "2\n"
    runtime.run_detached(member("one again", source, 4), "four")
    assert runtime.shell("four", "hugepage /dev/hugepages/it 4 11").output == "2048 12 0 0 0\n"

    middle = snapshot()
    refused = runtime("create", "--bundle", member("five", source, 4000), "five")
    assert refused.code == 1
    words = "huge pages of 2MB [give the VM more memory: set vm.memory_mib in the configuration, or for a pod"
    assert "hawse: the guest has room for " in refused.errors and f" of 4000 {words}" in refused.errors, refused
    prove_unchanged(middle)
    assert runtime.shell("pod", count_pages).output == "6\n", "exactly the reserved pages are released"
    for name in ("three", "four"):
        assert runtime("delete", "--force", name).code == 0
    prove_unchanged(before)


def test_memory_of_a_vm_is_in_huge_pages_of_the_host(
    runtime: Runtime, tmp_path: Path, program: str, host_pages: Pages
) -> None:
    """The first start boots and creates a template. The second is restored, also into huge pages. Then a VM without
    huge pages is restored from the same template."""
    cache = own_cache(str(tmp_path / "cache"))
    settings = f'[image]\ncache = "{cache}"\n[vm]\nmemory_mib = 512\n'
    host_pages(300)
    path = bundle(tmp_path, "b", program, "echo ready; read line; echo $line", [])
    for number, (pages, restored) in enumerate([(True, False), (True, True), (False, True)]):
        runtime.configure(settings + ('hugepages = "2MB"\n' if pages else ""))
        trace = tmp_path / f"trace{number}.json"
        with runtime.start(
            "run", "--bundle", path, "--timeline", str(trace), f"c{number}",
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        ) as running:  # fmt: skip
            assert running.stdin is not None and running.stdout is not None
            assert running.stdout.readline() == b"ready\n"
            assert count(KIB_2MB)[1] == (44 if pages else 300)
            running.stdin.write(b"over\n")
            running.stdin.close()
            assert running.stdout.read() == b"over\n"
            assert running.wait() == 0
        assert ("state loaded" in step_names(trace)) is restored
        assert count(KIB_2MB)[1] == 300


def test_error_says_how_many_huge_pages_the_host_lacks(
    runtime: Runtime, tmp_path: Path, program: str, host_pages: Pages
) -> None:
    host_pages(40)
    total = count(KIB_2MB)[0]
    runtime.configure('[vm]\nmemory_mib = 512\nhugepages = "2MB"\n')
    result = runtime("run", "--bundle", bundle(tmp_path, "b", program, "true", []), "c1")
    expected = (
        f"takes 256 huge pages of 2MB, and 40 of this host's {total} are free [sysctl vm.nr_hugepages={total + 216}"
    )
    assert result.code == 1
    assert expected in result.errors
    assert json.loads(runtime("list", "--format", "json").output or "null") in (None, [])


def test_error_names_a_cgroup_that_allows_too_few_huge_pages(
    runtime: Runtime, tmp_path: Path, program: str, host_pages: Pages
) -> None:
    """For example the cgroup of a pod that requests no huge pages: QEMU would be killed at its first one."""
    mounts = [hierarchy.mount for hierarchy in cgroup_hierarchies(version=2)]
    controllers = Path(f"{mounts[0]}/cgroup.controllers").read_text().split() if mounts else []
    if "hugetlb" not in controllers:
        pytest.skip("this host's cgroups of version 2 do not count huge pages")
    enabled = Path(f"{mounts[0]}/cgroup.subtree_control").read_text().split()
    pod = Path(mounts[0], f"test-pages-{os.getpid()}-{os.path.basename(tmp_path)}")
    host_pages(256)
    Path(f"{mounts[0]}/cgroup.subtree_control").write_text("+hugetlb")
    pod.mkdir()
    try:
        (pod / "hugetlb.2MB.max").write_text(str(100 * MIB))
        runtime.configure('[vm]\nmemory_mib = 512\nhugepages = "2MB"\n')
        path = bundle(tmp_path, "b", program, "true", [])
        spec = json.loads(Path(f"{path}/config.json").read_text())
        spec["linux"]["cgroupsPath"] = f"/{pod.name}/c1"
        write(path, spec)
        result = runtime("run", "--bundle", path, "c1")
        expected = f"hawse: {pod}/hugetlb.2MB.max is {100 * MIB}, and 0 is used: the virtual machine's memory needs "
        assert result.code == 1
        assert f"{expected}{512 * MIB} bytes of huge pages [raise that limit" in result.errors
    finally:
        for name in (child.name for child in os.scandir(pod) if child.is_dir()):
            os.rmdir(pod / name)
        pod.rmdir()
        if "hugetlb" not in enabled:
            Path(f"{mounts[0]}/cgroup.subtree_control").write_text("-hugetlb")


def test_vm_with_huge_pages_requires_a_template(tmp_path: Path, host_pages: Pages) -> None:
    size = 4 * 2 * MIB
    host_pages(6)
    ordinary, huge = ram_file.make(size), ram_file.make(size, page_kib=KIB_2MB)
    with pytest.raises(OSError, match="Cannot allocate memory"):
        ram_file.make(size, page_kib=KIB_2MB)
    os.pwrite(ordinary, b"begin", 0)
    os.pwrite(ordinary, b"end", size - 3)
    with open(tmp_path / "memory", "w+b") as file:
        ram_file.save(ordinary, file.fileno())
        assert ram_file.restore(file.fileno(), huge) == 2 * ram_file.PIECE
    with open(tmp_path / "again", "w+b") as file:
        assert ram_file.save(huge, file.fileno()) == 2 * ram_file.PIECE
    assert (tmp_path / "memory").read_bytes() == (tmp_path / "again").read_bytes()
    os.close(ordinary)
    os.close(huge)
