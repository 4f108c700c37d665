"""Huge pages: which mounts consist of them, how many a guest reserves, whether this host has enough for a VM."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import pytest

from hawse.agent.machine import hugepages as guest
from hawse.config import Config, Vm, load_config
from hawse.errors import ConfigError, HostError, VmError
from hawse.oci.default_spec import example
from hawse.oci.guest.hugetlbfs import Hugetlbfs, counts_of, hugetlbfs, is_hugetlbfs, mounted_kib, page_kib
from hawse.oci.guest.mounts import HostFiles
from hawse.oci.guest.specification import plan_guest
from hawse.oci.load import load_bundle
from hawse.oci.pods import CONTAINER, SANDBOX, SINGLE, is_kubelets
from hawse.planner.hugepages import Asked, asked_by, check_cgroups, decide, room
from hawse.vm.host_hugepages import KIB, check, count, round_up, size_name
from tests.support.bundles import write
from tests.support.sysfs import FakeSysfs

MOUNTS = """\
22 1 0:21 / / rw,relatime shared:1 - ext4 /dev/vda rw
30 22 0:40 / /dev/hugepages rw,nosuid shared:9 - hugetlbfs hugetlbfs rw,pagesize=2M
31 22 0:40 /pod /mnt/a\\040place rw - hugetlbfs hugetlbfs rw,pagesize=2M
32 22 0:41 / /dev/shm rw - tmpfs hugetlbfs rw
"""
GIB_KIB = 1024 * 1024


@pytest.mark.parametrize(
    ("device", "is_one"), [((0, 40), True), ((0, 4), False), ((0, 41), False), ((0, 21), False), ((8, 40), False)]
)
def test_hugetlbfs_is_recognized_by_its_device_number(device: tuple[int, int], is_one: bool) -> None:
    assert is_hugetlbfs(MOUNTS, *device) is is_one
    assert not is_hugetlbfs("nonsense\n1 2 0:40 - \n1 2", *device)


def test_other_files_are_not_in_hugetlbfs(tmp_path: Path) -> None:
    assert hugetlbfs(str(tmp_path)) is None
    assert hugetlbfs(f"{tmp_path}/nothing") is None


@pytest.mark.parametrize(("text", "kib"), [("2MB", 2048), ("1GB", GIB_KIB), ("64KB", 64)])
def test_page_sizes_are_written_as_in_the_oci_specification(text: str, kib: int) -> None:
    assert page_kib(text) == kib
    assert size_name(kib) == text


def test_page_sizes_of_the_configuration_match_their_names() -> None:
    assert {name: size_name(kib) for name, kib in KIB.items()} == {"2MB": "2MB", "1GB": "1GB"}


@pytest.mark.parametrize("text", ["", "MB", "2 MB", "2M", "-2MB", "0MB", "2mb", "²MB", f"{10**9}MB"])
def test_invalid_page_size_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=f"^{text}$"):
        page_kib(text)


@pytest.mark.parametrize(
    ("text", "pages"),
    [("", {}), ("2MB:512", {2048: 512}), (" 2MB:512, 1GB:2,", {2048: 512, GIB_KIB: 2}), ("2MB:0", {2048: 0})],
)
def test_page_counts_are_parsed(text: str, pages: dict[int, int]) -> None:
    assert counts_of("x", text) == pages


@pytest.mark.parametrize("text", ["2MB", "2MB:", "2MB:-1", "2MB:many", "512", "2MB=512", f"2MB:{10**9}"])
def test_invalid_page_count_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=r"^annotations: it: '.*' is not a number of huge pages"):
        counts_of("annotations: it", text)


@pytest.mark.parametrize(
    ("options", "kib"),
    [
        (["pagesize=2M", "nosuid"], 2048),
        (["pagesize=1G"], GIB_KIB),
        (["pagesize=2048k"], 2048),
        ([], 2048),
        (["pagesize=x"], 0),
    ],
)
def test_page_size_of_a_hugetlbfs_mount(options: list[str], kib: int) -> None:
    assert mounted_kib({"type": "hugetlbfs", "destination": "/h", "options": options}) == kib
    assert mounted_kib({"type": "tmpfs", "destination": "/h", "options": options}) == 0


def bundle(tmp_path: Path, mounts: list[dict[str, Any]], **resources: Any) -> Any:
    os.makedirs(f"{tmp_path}/rootfs", exist_ok=True)
    spec = example()
    spec["mounts"] = mounts
    spec["linux"]["resources"] |= resources
    write(str(tmp_path), spec)
    return load_bundle(str(tmp_path))


def bind(source: str, destination: str, *options: str) -> dict[str, Any]:
    return {"type": "bind", "source": source, "destination": destination, "options": ["rbind", *options]}


def test_bind_mount_of_host_hugetlbfs_becomes_a_guest_hugetlbfs(tmp_path: Path) -> None:
    """Docker's -v mounts those of /dev, Kubernetes mounts volumes. The guest mounts each source directory
    separately."""
    volume = "/var/lib/kubelet/pods/u/volumes/kubernetes.io~empty-dir/h"
    hugetlbfs = {"/dev/hugepages": Hugetlbfs(2048, 0o1777, 0, 0), volume: Hugetlbfs(GIB_KIB, 0o755, 7, 8)}
    mounts = [
        bind("/dev/hugepages", "/dev/hugepages", "ro"),
        bind(f"{volume}/", "/big"),
        bind("/dev/null", "/other"),
        bind(volume, "/again"),
    ]
    files = HostFiles(exists=lambda _: True, is_dir=lambda _: True, hugetlbfs=hugetlbfs.get)
    plan = plan_guest(bundle(tmp_path, mounts), container="c1", files=files)
    (small, big) = plan.mounts.huge.items()
    assert (small[1], big[1]) == tuple(hugetlbfs.values())
    directory = "/run/hawse/hugepages"
    assert plan.spec["mounts"] == [
        bind(f"{directory}/{small[0]}", "/dev/hugepages", "ro"),
        bind(f"{directory}/{big[0]}", "/big"),
        mounts[2],
        bind(f"{directory}/{big[0]}", "/again"),
    ]
    assert plan.mounts.page_sizes == {2048, GIB_KIB}
    assert [share.name for share in plan.shares] == ["rootfs"]


def test_hugetlbfs_mount_in_the_bundle_stays_and_counts(tmp_path: Path) -> None:
    mounts = [{"type": "hugetlbfs", "source": "h", "destination": "/h", "options": ["pagesize=1G"]}]
    plan = plan_guest(bundle(tmp_path, mounts), container="c1")
    assert plan.spec["mounts"] == mounts
    assert plan.mounts.page_sizes == {GIB_KIB}
    assert plan.mounts.huge == {}


Pages = tuple[tuple[int, int], ...]
BOTH = frozenset({2048, GIB_KIB})


@pytest.mark.parametrize(
    ("role", "asked", "free", "pages"),
    [
        # The limit is the number of pages. A limit of zero counts; a limit above any host's capacity does not.
        (SINGLE, Asked({2048: 32}), 0, ((2048, 32),)),
        (SINGLE, Asked({2048: 32, GIB_KIB: 0}, BOTH), 9, ((2048, 32),)),
        (SINGLE, Asked({2048: 32}, annotated={2048: 9}, configured={2048: 8}), 0, ((2048, 32),)),
        (SINGLE, Asked({2048: 2**52}), 0, ()),
        (SINGLE, Asked({2048: 8 * 1024 - 1}), 0, ((2048, 8 * 1024 - 1),)),
        (SINGLE, Asked({2048: 8 * 1024}), 0, ()),
        (SINGLE, Asked({2048: 2**52}, frozenset({2048})), 7, ((2048, 7),)),
        # The annotation applies to any container, the configuration only to containers that mount such pages.
        (SINGLE, Asked(annotated={2048: 9}), 0, ((2048, 9),)),
        (
            SINGLE,
            Asked(mounted=BOTH, annotated={2048: 9}, configured={2048: 8, GIB_KIB: 1}),
            0,
            ((GIB_KIB, 1), (2048, 9)),
        ),
        (SINGLE, Asked(configured={2048: 8}), 0, ()),
        # Without both: the host's free pages, at most half of the VM's memory; half of it if the host has no pages.
        (SINGLE, Asked(mounted=frozenset({2048})), 100, ((2048, 100),)),
        (SINGLE, Asked(mounted=frozenset({2048})), 10_000, ((2048, 256),)),
        (SINGLE, Asked(mounted=frozenset({2048})), 0, ((2048, 256),)),
        (SINGLE, Asked(mounted=frozenset({GIB_KIB})), 16, ((GIB_KIB, 1),)),
        (SINGLE, Asked(), 100, ()),
        # A pod: the annotation of the pod is on each of its containers; its sandbox has only its own limits.
        (CONTAINER, Asked(annotated={2048: 9}), 0, ()),
        (CONTAINER, Asked(mounted=frozenset({2048}), annotated={2048: 9}), 0, ((2048, 9),)),
        (SANDBOX, Asked(mounted=BOTH, annotated={2048: 9}, configured={2048: 8}), 5, ()),
        (SANDBOX, Asked({2048: 3}, annotated={2048: 9}), 5, ((2048, 3),)),
        # A kubelet passes the limits of a pod; if the engine drops them, the annotation and the configuration apply.
        (CONTAINER, Asked({2048: 3}, frozenset({2048}), kubelets=True), 5, ((2048, 3),)),
        (CONTAINER, Asked({2048: 0}, frozenset({2048}), kubelets=True), 5, ()),
        (CONTAINER, Asked(mounted=frozenset({2048}), annotated={2048: 9}, kubelets=True), 5, ((2048, 9),)),
        (CONTAINER, Asked(mounted=frozenset({2048}), configured={2048: 8}, kubelets=True), 5, ((2048, 8),)),
        (CONTAINER, Asked(mounted=frozenset({2048})), 5, ((2048, 5),)),
        (SANDBOX, Asked(mounted=frozenset({2048}), kubelets=True), 5, ()),
    ],
)
def test_number_of_pages_that_a_guest_reserves(
    role: str, asked: Asked, free: int, pages: tuple[tuple[int, int], ...]
) -> None:
    assert decide(asked, role=role, memory_mib=1024, host_mib=16 * 1024, free=lambda _: free) == pages


@pytest.mark.parametrize(
    "asked",
    [
        Asked(mounted=frozenset({2048}), kubelets=True),
        Asked({GIB_KIB: 1}, BOTH, kubelets=True),
        Asked({2048: 2**52}, frozenset({2048}), kubelets=True),
        Asked(mounted=frozenset({2048}), annotated={GIB_KIB: 1}, kubelets=True),
    ],
)
def test_page_count_that_the_engine_dropped_is_not_guessed(asked: Asked) -> None:
    """containerd and CRI-O drop the limits on a node without the controller hugetlb."""
    words = (
        r"^mounts: the container mounts huge pages of 2MB, .* \[.*annotate the pod with hawse.hugepages: \"2MB:COUNT\""
    )
    with pytest.raises(ConfigError) as caught:
        decide(asked, role=CONTAINER, memory_mib=1024, host_mib=16 * 1024)
    assert re.search(words, caught.value.sentence())


@pytest.mark.parametrize(
    ("annotations", "kubelets"),
    [
        ({"io.kubernetes.cri.container-type": "container"}, True),
        ({"io.kubernetes.cri-o.ContainerType": "container"}, True),
        ({"io.kubernetes.cri-o.ContainerType": "container", "io.container.manager": "libpod"}, False),
        ({"io.kubernetes.cri-o.SandboxID": "1", "io.container.manager": "libpod"}, False),
        ({}, False),
    ],
)
def test_podman_pods_are_not_treated_as_kubelet_pods(annotations: dict[str, str], kubelets: bool) -> None:
    assert is_kubelets(annotations) is kubelets


@pytest.mark.parametrize(
    ("role", "asked", "has"),
    [
        (SINGLE, Asked(annotated={2048: 9}), ((2048, 4),)),
        (SANDBOX, Asked(annotated={GIB_KIB: 1, 2048: 9}), ((GIB_KIB, 1), (2048, 13))),
        (SANDBOX, Asked(), ((2048, 4),)),
    ],
)
def test_pod_vm_has_memory_for_the_pages_of_its_annotation(role: str, asked: Asked, has: Pages) -> None:
    assert room(asked, ((2048, 4),), role=role) == has


def test_page_counts_are_read_from_all_sources(tmp_path: Path) -> None:
    mounts = [{"type": "hugetlbfs", "source": "h", "destination": "/h", "options": ["pagesize=1G"]}]
    plan = plan_guest(bundle(tmp_path, mounts, hugepageLimits=[{"pageSize": "2MB", "limit": 4 << 20}]), container="c1")
    config = Config(vm=Vm(guest_hugepages="2MB:5"))
    request = asked_by(plan, config, {"hawse.hugepages": "1GB:3"})
    assert request == Asked({2048: 2}, frozenset({GIB_KIB}), {GIB_KIB: 3}, {2048: 5})
    with pytest.raises(ConfigError, match=r"configuration: vm\.guest_hugepages: 'x'"):
        asked_by(plan, Config(vm=Vm(guest_hugepages="x")), {})


@pytest.mark.parametrize("size", ["2M", "4MB", "yes"])
def test_unsupported_page_size_for_the_vm_is_refused(tmp_path: Path, size: str) -> None:
    (tmp_path / "c").write_text(f'[vm]\nhugepages = "{size}"\n')
    with pytest.raises(ConfigError, match=r"vm\.hugepages is .*not one of"):
        load_config(str(tmp_path / "c"))


def pool(tmp_path: Path, kib: int, *, total: int, free: int, promised: int = 0, surplus: int = 0) -> FakeSysfs:
    host = FakeSysfs(str(tmp_path))
    numbers = {"nr": total, "free": free, "resv": promised, "surplus": surplus}
    for name, number in numbers.items():
        host.write(f"sys/kernel/mm/hugepages/hugepages-{kib}kB/{name}_hugepages", f"{number}\n")
    return host


def test_reserved_pages_are_not_free(tmp_path: Path) -> None:
    assert count(2048, root=pool(tmp_path, 2048, total=16, free=9, promised=4).root) == (16, 5)
    assert count(GIB_KIB, root=str(tmp_path)) == (0, 0)


@pytest.mark.parametrize(("mib", "kib", "rounded"), [(1500, 0, 1500), (1501, 2048, 1502), (1500, GIB_KIB, 2048)])
def test_vm_memory_is_rounded_up_to_whole_pages(mib: int, kib: int, rounded: int) -> None:
    assert round_up(mib, kib) == rounded


@pytest.mark.parametrize(
    ("kib", "mib", "words"),
    [
        (
            2048,
            1024,
            r"takes 512 huge pages of 2MB, and 500 of this host's 600 are free \[sysctl vm.nr_hugepages=612",
        ),
        (GIB_KIB, 2048, r"takes 2 huge pages of 1GB, and 0 of this host's 0 are free \[echo 2 >/sys/kernel/mm/hugep"),
    ],
)
def test_too_few_free_pages_are_refused_with_the_number_to_set(tmp_path: Path, kib: int, mib: int, words: str) -> None:
    root = pool(tmp_path, 2048, total=600, free=510, promised=10).root
    with pytest.raises(HostError) as caught:
        check(mib, kib, root=root)
    assert re.search(words, caught.value.sentence())
    check(1000, 2048, root=root)


@pytest.mark.parametrize(
    ("file", "text", "is_enough"),
    [
        ("two/kubepods/pod/c1/hugetlb.2MB.max", "max", True),
        ("two/kubepods/pod/hugetlb.2MB.max", "2097152", True),
        ("two/kubepods/pod/hugetlb.2MB.max", "2097151", False),
        ("two/kubepods/hugetlb.2MB.rsvd.max", "0", False),
        ("two/kubepods/hugetlb.1GB.max", "0", True),
        ("two/other/hugetlb.2MB.max", "0", True),
        ("one/kubepods/pod/c1/hugetlb.2MB.limit_in_bytes", "9223372036854771712", True),
        ("one/kubepods/pod/hugetlb.2MB.limit_in_bytes", "0", False),
        ("one/kubepods/pod/hugetlb.2MB.max", "0", True),
    ],
)
def test_cgroup_limit_below_the_vms_pages_is_refused(tmp_path: Path, file: str, text: str, is_enough: bool) -> None:
    place = tmp_path / file
    os.makedirs(place.parent)
    place.write_text(f"{text}\n")
    (tmp_path / "mountinfo").write_text(
        f"30 1 0:1 / {tmp_path}/one rw - cgroup cgroup rw,hugetlb\n31 1 0:2 / {tmp_path}/two rw - cgroup2 cgroup2 rw\n"
    )

    def look(mib: int) -> None:
        check_cgroups("/kubepods/pod/c1", mib, 2048, mountinfo=f"{tmp_path}/mountinfo")

    if is_enough:
        look(2)
        return
    with pytest.raises(HostError, match=f"^{place} is {text}, and 0 is used: .* needs 2097152 bytes"):
        look(2)


def test_pages_used_by_the_cgroup_are_subtracted_from_its_limit(tmp_path: Path) -> None:
    for name, text in (("max", "4194304"), ("current", "2097153")):
        (tmp_path / f"hugetlb.2MB.{name}").write_text(text)
    (tmp_path / "mountinfo").write_text(f"31 1 0:2 / {tmp_path.parent} rw - cgroup2 cgroup2 rw\n")
    with pytest.raises(HostError, match="is 4194304, and 2097153 is used"):
        check_cgroups(f"/{tmp_path.name}", 2, 2048, mountinfo=f"{tmp_path}/mountinfo")


class TestGuest:
    """The agent's part, with a directory instead of sysfs: it accepts every number, as a kernel with enough memory."""

    def test_pages_are_added_to_those_of_other_containers(self, tmp_path: Path) -> None:
        directory = f"{pool(tmp_path, 2048, total=40, free=0).root}/sys/kernel/mm/hugepages"
        for more, total in ((5, "45"), (-5, "40")):
            guest.reserve(kib=2048, count=more, directory=directory)
            assert Path(f"{directory}/hugepages-2048kB/nr_hugepages").read_text() == total

    def test_partial_reservation_is_rolled_back(self, tmp_path: Path) -> None:
        """Surplus pages were not requested. Here they remain surplus, so fewer pages are available than requested."""
        directory = f"{pool(tmp_path, 2048, total=40, free=0, surplus=3).root}/sys/kernel/mm/hugepages"
        with pytest.raises(VmError, match="the guest has room for 2 of 5 huge pages of 2MB"):
            guest.reserve(kib=2048, count=5, directory=directory)
        assert Path(f"{directory}/hugepages-2048kB/nr_hugepages").read_text() == "37"

    def test_page_size_that_the_cpu_lacks_is_refused(self, tmp_path: Path) -> None:
        directory = f"{pool(tmp_path, 2048, total=0, free=0).root}/sys/kernel/mm/hugepages"
        with pytest.raises(VmError, match="the guest's CPU has no huge pages of 1GB") as caught:
            guest.reserve(kib=GIB_KIB, count=1, directory=directory)
        assert caught.value.hint == "it has 2MB"

    def test_limit_of_a_page_size_that_the_guest_lacks_is_not_passed_to_crun(self, tmp_path: Path) -> None:
        directory = f"{pool(tmp_path, 2048, total=0, free=0).root}/sys/kernel/mm/hugepages"
        limits = [{"pageSize": "2MB", "limit": 7}, {"pageSize": "1GB", "limit": 0}]
        spec: dict[str, Any] = {"linux": {"resources": {"hugepageLimits": limits}}}
        result = guest.without_unknown_limits(spec, directory=directory)
        assert result["linux"]["resources"]["hugepageLimits"] == limits[:1]
        others: list[dict[str, Any]] = [{}, {"linux": {}}, {"linux": {"resources": None}}]
        for other in others:
            assert guest.without_unknown_limits(other, directory=directory) == other
