"""Choose the VFIO devices of the host that a privileged container gets: those that can be passed.

Engines put every device node of the host into its specification (moby oci/devices_linux.go, HostDevices(); containerd
pkg/oci/spec_opts.go, WithHostDevices()). A device that cannot be passed must not prevent the
container's start.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from hawse.errors import DeviceError
from hawse.json_text import Document
from hawse.oci.document import devices_of, with_linux
from hawse.oci.types import Device
from hawse.vfio.requests import Group, Request

#: The maximum number of nodes of one kind that are named individually.
_SHOWN = 3


def choose(
    devices: Sequence[Device],
    find: Callable[[Sequence[Device]], Request],
    check: Callable[[Sequence[Group]], object],
) -> tuple[list[Device], dict[str, DeviceError]]:
    """The devices without the VFIO nodes whose group cannot be passed, and the reason for each such node, by its path.

    ``find`` returns the groups of devices, and ``check`` checks groups that will be passed together. Both raise
    :class:`DeviceError`.
    """
    kept: list[Device] = []
    left_out: dict[str, DeviceError] = {}
    groups: list[Group] = []
    for device in devices:
        try:
            checked = {group.number for group in groups}
            new = [group for group in find([device]).groups if group.number not in checked]
            if new:
                check([*groups, *new])
        except DeviceError as error:
            left_out[device.path] = error
        else:
            kept.append(device)
            groups += new
    return kept, left_out


def leave_out(spec: Document, left_out: dict[str, DeviceError]) -> tuple[Document, str]:
    """Return the specification without these nodes, and a warning, "" without nodes.

    Such a node in the guest would be another device, with the same numbers.
    """
    if not left_out:
        return spec, ""
    spec = with_linux(spec, devices=[device for device in devices_of(spec) if device["path"] not in left_out])
    # A group's node and its device files share a reason: print it once.
    reasons: dict[str, list[str]] = {}
    for path, error in left_out.items():
        reasons.setdefault(error.sentence().removeprefix(f"linux.devices: {path}: "), []).append(path)
    listed = "; ".join(f"{', '.join(shorten(paths))}: {reason}" for reason, paths in reasons.items())
    return spec, f"linux.devices: the container may use every device, but these nodes are left out: {listed}"


def shorten(paths: Sequence[str]) -> list[str]:
    """The paths. More than three paths that differ only in a number at the end become one entry. Pure."""
    runs: dict[str, list[str]] = {}
    for path in paths:
        stem = path.rstrip("0123456789")
        runs.setdefault(stem if stem != path else path, []).append(path)
    entries: list[str] = []
    for stem, run in runs.items():
        entries += run if len(run) <= _SHOWN else [f"{stem}N ({len(run)} nodes)"]
    return entries
