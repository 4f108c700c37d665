"""How large a machine is."""

from __future__ import annotations

import pytest

from hawse.vm.size import MIB, Limits, machine_size, pod_limits

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
def test_a_machine_grows_with_its_limits_as_far_as_the_host_goes(limits: Limits, size: tuple[int, int]) -> None:
    assert machine_size(1024, 2, limits, host_mib=16 * 1024, host_cpus=8) == size


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
def test_the_sandbox_of_a_pod_is_told_the_limits_of_all(annotations: dict[str, str], limits: Limits) -> None:
    assert pod_limits(annotations) == limits
