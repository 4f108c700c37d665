"""Memory and CPUs of a VM."""

from __future__ import annotations

import pytest

from hawse.vm.size import (
    MIB,
    Limits,
    machine_cpus,
    machine_memory,
    machine_size,
    needed_mib,
    pod_limits,
    translated_mib,
    usable_mib,
)

GIB = 1024 * MIB


@pytest.mark.parametrize(
    ("limits", "size"),
    [
        (Limits(), (1024, 2)),
        (Limits(memory=-1, quota=-1), (1024, 2)),
        (Limits(memory=64 * MIB, quota=50_000), (1024, 2)),
        (Limits(memory=768 * MIB), (1024, 2)),
        (Limits(memory=769 * MIB), (2048, 2)),
        (Limits(memory=4 * GIB), (5120, 2)),
        (Limits(memory=2**63 - 4096), (1024, 2)),
        (Limits(memory=15 * GIB + 900 * MIB), (16384, 2)),
        (Limits(hugepages=((2048, 1024),)), (3072, 2)),
        (Limits(hugepages=((2048, 32),)), (2048, 2)),
        (Limits(memory=GIB, hugepages=((2048, 1024),)), (4096, 2)),
        (Limits(hugepages=((1048576, 1),)), (5120, 2)),
        (Limits(hugepages=((1048576, 3), (2048, 512))), (7168, 2)),
        (Limits(memory=8 * GIB, hugepages=((1048576, 1),)), (10240, 2)),
        (Limits(hugepages=((1048576, 64),)), (16384, 2)),
        (Limits(quota=300_000), (1024, 3)),
        (Limits(quota=250_000), (1024, 3)),
        (Limits(quota=10_000_000), (1024, 8)),
        (Limits(quota=30_000, period=10_000), (1024, 3)),
        (Limits(quota=30_000, period=0), (1024, 2)),
    ],
)
def test_vm_memory_grows_with_limits_up_to_the_hosts_memory(limits: Limits, size: tuple[int, int]) -> None:
    assert machine_size(1024, 2, limits, host_mib=16 * 1024, host_cpus=8) == size


@pytest.mark.parametrize(
    ("configured", "cpus", "quota", "machine"),
    [
        # Without a cpuset: two CPUs, or as many as the quota fills.
        (0, 0, 0, 2),
        (0, 0, -1, 2),
        (0, 0, 50_000, 2),
        (0, 0, 300_000, 3),
        (0, 0, 10_000_000, 8),
        # A cpuset, which a quota can reduce but not enlarge.
        (0, 1, 0, 1),
        (0, 3, 0, 3),
        (0, 8, -1, 8),
        (0, 64, 0, 8),
        (0, 4, 150_000, 2),
        (0, 4, 50_000, 1),
        (0, 2, 800_000, 2),
        # The configured number is the minimum.
        (1, 0, 0, 1),
        (1, 0, 300_000, 3),
        (4, 0, 0, 4),
        (4, 1, 0, 4),
        (4, 6, 0, 6),
        (4, 6, 100_000, 4),
        (16, 1, 0, 16),
    ],
)
def test_number_of_cpus_of_a_vm(configured: int, cpus: int, quota: int, machine: int) -> None:
    assert machine_cpus(configured, Limits(cpus=cpus, quota=quota), host_cpus=8) == machine


@pytest.mark.parametrize(("cpus", "quota"), [(300, 0), (300, 30_000_000), (0, 30_000_000)])
def test_cpus_are_limited_to_qemus_maximum(cpus: int, quota: int) -> None:
    assert machine_cpus(0, Limits(cpus=cpus, quota=quota), host_cpus=1024) == 255


def test_vm_on_a_host_with_one_cpu_has_two_cpus() -> None:
    """The default, unless a cpuset limits the number of CPUs that a program sees to one."""
    assert machine_cpus(0, Limits(), host_cpus=1) == 2
    assert machine_cpus(0, Limits(cpus=1), host_cpus=1) == 1


@pytest.mark.parametrize("limit", [1, 700, 768, 769, 1792, 1793, 3700, 3840, 4096, 16_000, 100_000])
@pytest.mark.parametrize("huge", [0, 2, 256, 1024, 5000])
def test_container_can_use_its_memory_limit_and_its_huge_pages(limit: int, huge: int) -> None:
    limits = Limits(memory=limit * MIB, hugepages=((2048, huge // 2),) if huge else ())
    machine = machine_memory(1024, limits, host_mib=1024 * 1024)
    assert usable_mib(machine) - huge >= limit
    assert machine == 1024 or machine - limit - huge < 3 * 1024 + (limit + huge) // 32, "and not much more"
    assert needed_mib(limit) <= machine


def test_memory_usable_by_containers_matches_measurements() -> None:
    """Measured in guests of these sizes; the largest had 15992 MiB in total, of which 82 MiB were in use."""
    assert usable_mib(1024) == 832
    assert 100 < usable_mib(256) < 149
    assert 350 < usable_mib(512) < 400
    assert usable_mib(128) == 0
    assert usable_mib(16384) <= 15992 - 82 - 45


@pytest.mark.parametrize(("cpus", "one_thread", "mib"), [(1, False, 96), (12, False, 96), (13, False, 104),
                                                        (255, False, 2040), (255, True, 96)])  # fmt: skip
def test_each_cpu_has_space_for_its_translated_code(cpus: int, one_thread: bool, mib: int) -> None:
    assert translated_mib(cpus, one_thread=one_thread) == mib


@pytest.mark.parametrize(
    ("annotations", "limits"),
    [
        ({}, Limits()),
        (
            {"io.kubernetes.cri.sandbox-memory": "1073741824", "io.kubernetes.cri.sandbox-cpu-quota": "400000"},
            Limits(memory=GIB, quota=400_000),
        ),
        ({"io.kubernetes.cri.sandbox-memory": "much", "io.kubernetes.cri.sandbox-cpu-quota": "-1"}, Limits()),
        (
            {
                "io.kubernetes.cri-o.PodLinuxResources": (
                    '{"cpu_period":50000,"cpu_quota":400000,"cpu_shares":8192,"memory_limit_in_bytes":1073741824}'
                ),
                "io.kubernetes.cri-o.PodLinuxOverhead": '{"cpu_quota":100000,"memory_limit_in_bytes":4294967296}',
            },
            Limits(memory=GIB, quota=400_000, period=50_000),
        ),
        (
            {
                "pod-linux-resources.crio.io": '{"memory_limit_in_bytes":1073741824}',
                "io.kubernetes.cri-o.PodLinuxResources": '{"memory_limit_in_bytes":1}',
            },
            Limits(memory=GIB),
        ),
        ({"pod-linux-resources.crio.io": '{"memory_limit_in_bytes":-1,"cpu_quota":"much"}'}, Limits()),
        *(({"pod-linux-resources.crio.io": text}, Limits()) for text in ("null", "{}", "[1]", "{", "[" * 9999)),
    ],
)
def test_pod_limits_are_read_from_sandbox_annotations(annotations: dict[str, str], limits: Limits) -> None:
    assert pod_limits(annotations) == limits
