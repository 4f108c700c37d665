"""The size of a VM at boundary values of container limits and host size."""

from __future__ import annotations

import os

import pytest

from hawse.vm.size import Limits, host_size, machine_size, pod_limits

MIB = 1024 * 1024
HOST = {"host_mib": 16 * 1024, "host_cpus": 8}


@pytest.mark.parametrize(
    ("limits", "size"),
    [
        # 256 MiB are for the guest itself, and the memory of a VM is a multiple of 1 GiB.
        (Limits(memory=1), (1024, 2)),
        (Limits(memory=768 * MIB + MIB - 1), (1024, 2)),
        (Limits(memory=1792 * MIB), (2048, 2)),
        (Limits(memory=1793 * MIB), (3072, 2)),
        # A limit of all of the host's memory or more counts as no limit.
        (Limits(memory=16 * 1024 * MIB - 1), (16384, 2)),
        (Limits(memory=16 * 1024 * MIB), (1024, 2)),
        # Pages of less than a MiB in total add nothing.
        (Limits(hugepages=((64, 16),)), (2048, 2)),
        (Limits(hugepages=((64, 15),)), (1024, 2)),
        (Limits(hugepages=((2048, 0),)), (1024, 2)),
        (Limits(quota=1), (1024, 2)),
        (Limits(quota=200_000), (1024, 2)),
        (Limits(quota=200_001), (1024, 3)),
        (Limits(quota=800_001), (1024, 8)),
        (Limits(quota=3, period=1), (1024, 3)),
        (Limits(quota=-1, period=-1), (1024, 2)),
        (Limits(quota=100_000, period=-1), (1024, 2)),
    ],
)
def test_next_vm_size_begins_above_the_limit(limits: Limits, size: tuple[int, int]) -> None:
    assert machine_size(1024, 2, limits, **HOST) == size


def test_host_memory_is_rounded_down_to_whole_steps() -> None:
    host = {"host_mib": 5 * 1024 - 1, "host_cpus": 1}
    assert machine_size(512, 1, Limits(memory=4500 * MIB, quota=400_000), **host) == (4096, 1)
    assert machine_size(512, 1, Limits(memory=0, quota=0), **host) == (512, 1), "no limit"
    assert machine_size(6000, 4, Limits(memory=4500 * MIB, quota=400_000), **host) == (6000, 4), "as configured"


@pytest.mark.parametrize(
    ("text", "limit"),
    [
        ("1", 1), ("0", 0), ("-1", 0), ("9" * 19, int("9" * 19)), ("9" * 20, 0), ("²", 0), ("٣", 0), ("", 0),
        ("1.5", 0), (" 1", 0),
    ],
)  # fmt: skip
def test_containerd_annotations_are_decimal_strings(text: str, limit: int) -> None:
    names = {"memory": "memory", "cpu-quota": "quota"}
    for annotation, field in names.items():
        limits = pod_limits({f"io.kubernetes.cri.sandbox-{annotation}": text})
        assert getattr(limits, field) == limit
    assert pod_limits({"io.kubernetes.cri.sandbox-cpu-period": text}).period == (limit or 100_000)


@pytest.mark.parametrize(
    ("value", "limit"),
    [
        ("1", 1), ("0", 0), ("-1", 0), ("9223372036854775807", 2**63 - 1), ("9223372036854775808", 0), ("true", 0),
        ("1.5", 0), ("null", 0), ('"7"', 7), ("[7]", 0), ("{}", 0),
    ],
)  # fmt: skip
def test_crio_annotations_are_json_numbers(value: str, limit: int) -> None:
    limits = pod_limits({"pod-linux-resources.crio.io": f'{{"memory_limit_in_bytes": {value}}}'})
    assert limits == Limits(memory=limit)


def test_crio_annotation_replaces_those_of_containerd() -> None:
    containerd = {"io.kubernetes.cri.sandbox-memory": "5"}
    assert pod_limits(containerd | {"io.kubernetes.cri-o.PodLinuxResources": "{}"}) == Limits()


def test_host_size_matches_the_kernels_values() -> None:
    with open("/proc/meminfo") as file:
        kib = int(file.readline().split()[1])
    size = host_size()
    # In a container the file may differ from the kernel's answer, but not in magnitude.
    assert kib // 2048 <= size["host_mib"] <= kib // 512
    assert size["host_cpus"] == os.cpu_count()
