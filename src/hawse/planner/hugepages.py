"""Decide how many huge pages the guest reserves for a container, from its limits, annotation and the configuration.

Also checks whether the host's cgroups allow a VM whose memory consists of the host's huge pages. docs/hugepages.md
describes both for users.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from hawse.config import Config
from hawse.errors import ConfigError, HostError
from hawse.oci.guest.hugetlbfs import counts_of
from hawse.oci.guest.specification import GuestPlan
from hawse.oci.pods import CONTAINER, SANDBOX, is_kubelets
from hawse.planner.cgroup_limits import above
from hawse.planner.devices.device_options import HUGEPAGES
from hawse.vm import host_hugepages

_MIB_KIB = 1024


@dataclass(frozen=True)
class Asked:
    """The settings about huge pages that apply to a container. Mappings are counts of pages by page size in KiB.

    ``limits`` are those of the specification, ``annotated`` those of the annotation, and ``configured`` those of the
    configuration for containers that mount such pages. ``mounted`` are the page sizes of the container's hugetlbfs
    mounts. ``kubelets``: a kubelet requested the container.
    """

    limits: Mapping[int, int] = field(default_factory=dict)
    mounted: frozenset[int] = frozenset()
    annotated: Mapping[int, int] = field(default_factory=dict)
    configured: Mapping[int, int] = field(default_factory=dict)
    kubelets: bool = False


def asked_by(guest: GuestPlan, config: Config, annotations: Mapping[str, str]) -> Asked:
    """Collect the settings. Raises :class:`ConfigError` for an invalid count of pages."""
    return Asked(
        limits=guest.hugepages,
        mounted=guest.mounts.page_sizes,
        annotated=counts_of(f"annotations: {HUGEPAGES}", annotations.get(HUGEPAGES, "")),
        configured=counts_of("configuration: vm.guest_hugepages", config.vm.guest_hugepages),
        kubelets=is_kubelets(annotations),
    )


def decide(
    asked: Asked,
    *,
    role: str,
    memory_mib: int,
    host_mib: int,
    free: Callable[[int], int] = lambda kib: host_hugepages.count(kib)[1],
) -> tuple[tuple[int, int], ...]:
    """Return pairs of page size in KiB and count, the largest pages first: they need contiguous memory.

    ``memory_mib`` is the configured memory of the VM. A limit above the host's memory counts as no limit. Engines
    repeat the annotation of a pod on each of its containers: it applies to containers that mount such pages, and on the
    pod's sandbox only to the size of the VM. Raises :class:`ConfigError` for a kubelet's container that mounts huge
    pages without any setting for their count: its pod has a limit, but the engine dropped it.
    """
    limits = {kib: count for kib, count in asked.limits.items() if kib * count < host_mib * _MIB_KIB}
    pages: dict[int, int] = {}
    if role == CONTAINER and asked.kubelets:
        for kib in asked.mounted - {*asked.configured, *asked.annotated, *limits}:
            raise ConfigError(
                f"mounts: the container mounts huge pages of {host_hugepages.size_name(kib)}, and "
                "linux.resources.hugepageLimits does not limit their number",
                hint="an engine drops these limits on a node without the cgroup controller hugetlb: annotate the pod "
                f'with {HUGEPAGES}: "{host_hugepages.size_name(kib)}:COUNT", or set vm.guest_hugepages in the '
                "configuration",
            )
    if role != SANDBOX:
        pages |= {kib: _default_count(kib, memory_mib, free(kib)) for kib in asked.mounted}
        pages |= {kib: count for kib, count in asked.configured.items() if kib in asked.mounted}
        pages |= {kib: count for kib, count in asked.annotated.items() if role != CONTAINER or kib in asked.mounted}
    pages |= limits
    return _sorted(pages)


def room(asked: Asked, pages: tuple[tuple[int, int], ...], *, role: str) -> tuple[tuple[int, int], ...]:
    """The pages that the VM needs memory for. For a pod's sandbox they include those of the annotation."""
    if role != SANDBOX:
        return pages
    own = dict(pages)
    return _sorted({kib: own.get(kib, 0) + asked.annotated.get(kib, 0) for kib in own.keys() | asked.annotated.keys()})


def _sorted(pages: Mapping[int, int]) -> tuple[tuple[int, int], ...]:
    return tuple((kib, pages[kib]) for kib in sorted(pages, reverse=True) if pages[kib])


def _default_count(kib: int, memory_mib: int, free: int) -> int:
    """The default count of pages for a mounted file system without other settings; at least 1.

    It is the number of the host's free pages, which a container without a VM could use, but at most half of the
    configured memory. If the host has none, it is that half: the guest does not need the host's huge pages.
    """
    half = memory_mib * _MIB_KIB // 2 // kib
    return max(min(free, half) if free else half, 1)


def check_cgroups(path: str, memory_mib: int, kib: int, *, mountinfo: str = "/proc/self/mountinfo") -> None:
    """Raise :class:`HostError` if the cgroup ``path`` or an ancestor allows fewer huge pages than the VM needs.

    The kernel kills QEMU with SIGBUS at the first page above the limit (Linux Documentation/admin-guide/cgroup-v1/
    hugetlb.rst). The limit of a pod's cgroup is zero if the pod does not request huge pages.
    """
    size, needed = host_hugepages.size_name(kib), memory_mib * _MIB_KIB * 1024
    for hierarchy, where in above(path, mountinfo=mountinfo):
        directory = f"{where}/hugetlb.{size}."
        for limit, usage in _FILES[hierarchy.version]:
            most, used = _number(directory + limit), _number(directory + usage)
            if most is not None and most - (used or 0) < needed:
                raise HostError(
                    f"{directory}{limit} is {most}, and {used or 0} is used: the virtual machine's memory needs "
                    f"{needed} bytes of huge pages",
                    hint="raise that limit, for a Kubernetes pod by an overhead of its RuntimeClass; or clear "
                    "vm.hugepages in the configuration",
                )


#: Files of limit and usage by the hierarchy's version: for pages in use, and for reserved pages.
_FILES = {
    1: [("limit_in_bytes", "usage_in_bytes"), ("rsvd.limit_in_bytes", "rsvd.usage_in_bytes")],
    2: [("max", "current"), ("rsvd.max", "rsvd.current")],
}


def _number(path: str) -> int | None:
    """The number in a file; None if the file does not exist or contains "max"."""
    try:
        with open(path) as file:
            return int(file.read(64))
    except (OSError, ValueError):
        return None
