"""What a privileged container has of the host's VFIO devices: those that can be passed.

Engines put every device node of the host into its specification (moby oci/devices_linux.go, HostDevices(); containerd
pkg/oci/spec_opts.go, WithHostDevices()), asked for or not: one that another has open must not keep it from being made.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from hawse.errors import DeviceError
from hawse.oci.document import Document, devices_of, with_linux
from hawse.oci.types import Device
from hawse.planner.devices.vfio import Group
from hawse.vfio.requests import Request

#: Nodes of one kind that are named each.
_SHOWN = 3


def choose(
    devices: Sequence[Device],
    find: Callable[[Sequence[Device]], Request],
    check: Callable[[Sequence[Group]], object],
) -> tuple[list[Device], dict[str, DeviceError]]:
    """The devices without the VFIO nodes whose group cannot be passed, and of those, by path, why not.

    ``find`` has the groups behind devices, and ``check`` looks at groups that are to be passed together; both raise
    :class:`DeviceError`.
    """
    kept: list[Device] = []
    left_out: dict[str, DeviceError] = {}
    groups: list[Group] = []
    for device in devices:
        try:
            have = {group.number for group in groups}
            new = [group for group in find([device]).groups if group.number not in have]
            if new:
                check([*groups, *new])
        except DeviceError as error:
            left_out[device.path] = error
        else:
            kept.append(device)
            groups += new
    return kept, left_out


def leave_out(spec: Document, left_out: dict[str, DeviceError]) -> tuple[Document, str]:
    """The specification without these nodes, whose numbers may be another device's in the guest, and a warning."""
    if not left_out:
        return spec, ""
    spec = with_linux(spec, devices=[device for device in devices_of(spec) if device["path"] not in left_out])
    # A group's node and its device files have one reason.
    reasons: dict[str, list[str]] = {}
    for path, error in left_out.items():
        reasons.setdefault(error.sentence(), []).append(path)
    told = "; ".join(f"{', '.join(shorten(paths))}: {reason}" for reason, paths in reasons.items())
    warning = f"linux.devices: a container that may use every device does without those that cannot be passed: {told}"
    return spec, warning


def shorten(paths: Sequence[str]) -> list[str]:
    """The paths, those that differ in a number at their end as one entry where there are more than three. Pure."""
    runs: dict[str, list[str]] = {}
    for path in paths:
        stem = path.rstrip("0123456789")
        runs.setdefault(stem if stem != path else path, []).append(path)
    found: list[str] = []
    for stem, run in runs.items():
        found += run if len(run) <= _SHOWN else [f"{stem}N ({len(run)} nodes)"]
    return found
