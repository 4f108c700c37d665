"""How many huge pages a container's guest reserves for it, from its limits, its annotation and the configuration; and
whether the host's cgroups let a machine be made of the host's. docs/hugepages.md tells users the same."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from hawse.config import Config
from hawse.errors import ConfigError, HostError
from hawse.oci.guest.hugetlbfs import counts_of
from hawse.oci.guest.specification import GuestPlan
from hawse.oci.pods import CONTAINER, SANDBOX, is_kubelets
from hawse.planner.cgroup_limits import above
from hawse.planner.devices.options import HUGEPAGES
from hawse.vm import host_hugepages

_MIB_KIB = 1024


@dataclass(frozen=True)
class Asked:
    """What speaks of huge pages; all of them are pages by the KiB of one. ``mounted``: the sizes that file systems of
    the container have; ``said`` by the annotation, ``configured`` for containers that mount some. ``kubelets``: a
    kubelet has asked for the container."""

    limits: Mapping[int, int] = field(default_factory=dict)
    mounted: frozenset[int] = frozenset()
    said: Mapping[int, int] = field(default_factory=dict)
    configured: Mapping[int, int] = field(default_factory=dict)
    kubelets: bool = False


def asked_by(guest: GuestPlan, config: Config, annotations: Mapping[str, str]) -> Asked:
    """What is said. Raises :class:`ConfigError` for what is no number of pages."""
    return Asked(
        limits=guest.hugepages,
        mounted=guest.mounts.page_sizes,
        said=counts_of(f"annotations: {HUGEPAGES}", annotations.get(HUGEPAGES, "")),
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
    """(KiB of a page, pages), the largest first: those need room that smaller ones would be taken from.

    ``memory_mib`` is the configured machine's. A limit that no host could give is none. The annotation of a pod is
    repeated on each of its containers: there it counts for those that mount such pages, and on the sandbox, which is
    there for the others, for the size of the machine alone. Raises :class:`ConfigError` for a kubelet's container of
    which nothing says how many it may use: its pod says it, and the engine has dropped it.
    """
    limits = {kib: count for kib, count in asked.limits.items() if kib * count < host_mib * _MIB_KIB}
    pages: dict[int, int] = {}
    if role == CONTAINER and asked.kubelets:
        for kib in asked.mounted - {*asked.configured, *asked.said, *limits}:
            raise ConfigError(
                f"mounts: there are huge pages of {host_hugepages.size_name(kib)}, and "
                "linux.resources.hugepageLimits does not say how many the container may use",
                hint="an engine drops these limits on a node without the cgroup controller hugetlb: annotate the pod "
                f'with {HUGEPAGES}: "{host_hugepages.size_name(kib)}:COUNT", or set vm.guest_hugepages in the '
                "configuration",
            )
    if role != SANDBOX:
        pages |= {kib: _unsaid(kib, memory_mib, free(kib)) for kib in asked.mounted}
        pages |= {kib: count for kib, count in asked.configured.items() if kib in asked.mounted}
        pages |= {kib: count for kib, count in asked.said.items() if role != CONTAINER or kib in asked.mounted}
    pages |= limits
    return _listed(pages)


def room(asked: Asked, pages: tuple[tuple[int, int], ...], *, role: str) -> tuple[tuple[int, int], ...]:
    """What the machine must have room for: of a pod's containers only the annotation knows when its machine is made."""
    if role != SANDBOX:
        return pages
    own = dict(pages)
    return _listed({kib: own.get(kib, 0) + asked.said.get(kib, 0) for kib in own.keys() | asked.said.keys()})


def _listed(pages: Mapping[int, int]) -> tuple[tuple[int, int], ...]:
    return tuple((kib, pages[kib]) for kib in sorted(pages, reverse=True) if pages[kib])


def _unsaid(kib: int, memory_mib: int, free: int) -> int:
    """Pages of a file system of which nothing else is said: as many as the host has free, which a container without a
    virtual machine could use, and at most half of the configured memory; that half where the host has none, since the
    guest needs none of the host's. One at least."""
    half = memory_mib * _MIB_KIB // 2 // kib
    return max(min(free, half) if free else half, 1)


def check_cgroups(path: str, memory_mib: int, kib: int, *, mountinfo: str = "/proc/self/mountinfo") -> None:
    """Raise :class:`HostError` where a cgroup at ``path`` of a hierarchy, or above it, allows fewer huge pages.

    The kernel would kill QEMU with SIGBUS for the first page beyond (Linux Documentation/admin-guide/cgroup-v1/
    hugetlb.rst); a pod's cgroup has a limit of zero where nobody has asked for such pages.
    """
    size, wanted = host_hugepages.size_name(kib), memory_mib * _MIB_KIB * 1024
    for hierarchy, where in above(path, mountinfo=mountinfo):
        directory = f"{where}/hugetlb.{size}."
        for limit, usage in _FILES[hierarchy.version]:
            most, used = _number(directory + limit), _number(directory + usage)
            if most is not None and most - (used or 0) < wanted:
                raise HostError(
                    f"{directory}{limit} is {most}, and {used or 0} is used: the virtual machine's memory takes "
                    f"{wanted} of huge pages",
                    hint="raise that limit, for a Kubernetes pod by an overhead of its RuntimeClass; or clear "
                    "vm.hugepages in the configuration",
                )


#: Limit and usage by the hierarchy's version: of pages that were touched, and of those that are promised.
_FILES = {
    1: [("limit_in_bytes", "usage_in_bytes"), ("rsvd.limit_in_bytes", "rsvd.usage_in_bytes")],
    2: [("max", "current"), ("rsvd.max", "rsvd.current")],
}


def _number(path: str) -> int | None:
    """A file's number; None where it is not there, or says "max"."""
    try:
        with open(path) as file:
            return int(file.read(64))
    except (OSError, ValueError):
        return None
