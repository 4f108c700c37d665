"""linux.cgroupsPath and what of the limits concerns the host: where a sandbox's own processes are. Pure."""

from __future__ import annotations

import posixpath
from collections.abc import Mapping
from typing import Any

import msgspec

from hawse.errors import ConfigError


class HostLimits(msgspec.Struct, frozen=True, kw_only=True):
    """What means something among the host's processes alone; 0 and "" change nothing."""

    shares: int = 0
    cpus: str = ""
    mems: str = ""


class CgroupPlan(msgspec.Struct, frozen=True, kw_only=True):
    """A path below each hierarchy's root, "" for none. ``unit`` is systemd's name of it, in ``slice``, "" where the
    path is made without systemd."""

    path: str = ""
    slice: str = ""
    unit: str = ""
    limits: HostLimits = HostLimits()


def plan_cgroup(name: str, path: str, resources: Mapping[str, Any], *, systemd: bool) -> CgroupPlan:
    """The plan. ``name`` is the configuration's. Raises :class:`ConfigError`."""
    limits = host_limits(resources)
    if not path:
        for field in ("cpus", "mems"):
            if getattr(limits, field):
                raise ConfigError(
                    f"{name}: linux.resources.cpu.{field}: {getattr(limits, field)[:80]!r} are the host's, and the "
                    "container has no cgroup there",
                    hint="set linux.cgroupsPath",
                )
        return CgroupPlan()
    if not systemd:
        clean = posixpath.normpath("/" + path.lstrip("/"))
        return CgroupPlan(path="" if clean == "/" else clean, limits=limits)
    parts = path.split(":")
    if len(parts) != 3 or not parts[2] or "/" in path:
        raise ConfigError(
            f"{name}: linux.cgroupsPath: expected cgroupsPath to be of format slice:prefix:name for systemd cgroups, "
            f"got {path[:200]!r} instead"
        )
    above, prefix, last = parts[0] or "system.slice", parts[1], parts[2]
    unit = last if last.endswith(".slice") else f"{prefix}-{last}.scope"
    try:
        return CgroupPlan(path=f"{expand_slice(above)}/{unit}", slice=above, unit=unit, limits=limits)
    except ValueError:
        raise ConfigError(f"{name}: linux.cgroupsPath: invalid slice name {above[:200]!r}") from None


def expand_slice(name: str) -> str:
    """The path of a slice: "a-b.slice" is in "a.slice" (systemd.slice(5)). Raises ValueError."""
    stem = name.removesuffix(".slice")
    if stem == name or not stem:
        raise ValueError(name)
    if stem == "-":
        return ""
    parts = stem.split("-")
    if not all(parts):
        raise ValueError(name)
    return "".join(f"/{'-'.join(parts[: count + 1])}.slice" for count in range(len(parts)))


def host_limits(resources: Mapping[str, Any]) -> HostLimits:
    """Of linux.resources. Memory, CPU time and processes are limited in the guest, where the container's are: the
    host's include those of QEMU, and of everything else in the machine."""
    cpu = resources.get("cpu") or {}
    return HostLimits(shares=cpu.get("shares") or 0, cpus=cpu.get("cpus") or "", mems=cpu.get("mems") or "")
