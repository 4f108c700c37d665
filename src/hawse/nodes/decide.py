"""Decide for each device node of a specification that is not VFIO's whether it is passed, omitted or refused.

Pure except for the queries to :class:`Host`.

- A node that the rules do not let the container read or write is kept: opening it fails with EPERM, as under runc.
- For a character device that is the same in every kernel (:mod:`hawse.oci.guest.known_devices`), the guest's device is
  used. Misc devices whose minor each kernel chooses itself (``NAMED``) are found in the guest by their names.
- A block device is passed to the VM, read-only if the rules do not allow writing.
- Any other character device is refused: in the guest its number belongs to no device, or to a different one.

If the container may use every device, the last kind is omitted instead of refused. If its device list is also the
host's whole /dev, as engines create it for ``--privileged``, the host's disks are omitted, too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from hawse.errors import DeviceError
from hawse.nodes.block import BlockDevice
from hawse.nodes.character import CharacterDevice
from hawse.oci.device_rules import allowed, allows_all
from hawse.oci.guest.known_devices import DEFAULTS, NAMED, is_known
from hawse.oci.types import Device, DeviceRule

_CHARACTER = "character devices of the host cannot be passed to a VM, except VFIO's"
_BLOCK = "a device list that is the host's whole /dev passes no disks"
_REMEDY = "remove it; to pass a PCI device, bind it to vfio-pci and name the node /dev/vfio/NN of its group"
_KVM = (10, 232)


@dataclass(frozen=True)
class Wish:
    """A node that the specification requests for a container.

    ``where`` names it in errors. ``usable`` is false if its mount forbids opening devices (nodev).
    """

    where: str
    path: str
    kind: str
    major: int
    minor: int
    usable: bool = True


@dataclass(frozen=True)
class Disk:
    """A block device to pass to the VM."""

    device: BlockDevice
    writable: bool


@dataclass(frozen=True)
class Decision:
    """The result of :func:`decide`.

    ``disks`` are passed. ``named`` are the names of misc devices by their numbers on the host; the guest looks up its
    own numbers by these names. ``left_out`` are the reasons for omitted nodes, by path. ``untouched`` are the nodes
    that the container may not open.
    """

    disks: tuple[Disk, ...] = ()
    named: dict[tuple[int, int], str] = field(default_factory=dict)
    left_out: dict[str, DeviceError] = field(default_factory=dict)
    untouched: tuple[Wish, ...] = ()


@dataclass(frozen=True)
class Host:
    """Queries about devices of the host by major and minor.

    ``block`` is :func:`hawse.nodes.block.read` with the administrator's limits and raises DeviceError. ``character`` is
    :func:`hawse.nodes.character.read`.
    """

    block: Callable[[int, int], BlockDevice]
    character: Callable[[int, int], CharacterDevice]


def decide(wishes: Sequence[Wish], rules: Sequence[DeviceRule], host: Host, *, whole: bool = False) -> Decision:
    """Decide for all nodes. ``whole``: the container's device list is the host's whole /dev (:func:`is_whole`).

    Raises :class:`DeviceError` naming the first node that is refused.
    """
    everything = allows_all(rules)
    disks: dict[tuple[int, int], Disk] = {}
    named: dict[tuple[int, int], str] = {}
    left_out: dict[str, DeviceError] = {}
    untouched = []
    for wish in wishes:
        numbers = wish.major, wish.minor
        if wish.kind == "p" or (wish.kind != "b" and is_known(*numbers)):
            continue
        access = allowed(rules, wish.kind, *numbers) if wish.usable else ""
        if not set(access) & {"r", "w"}:
            untouched.append(wish)
        elif wish.kind == "b" and not whole:
            try:
                device = host.block(*numbers)
            except DeviceError as error:
                raise error.with_context(wish.where) from None
            disks[numbers] = Disk(device, "w" in access and not device.readonly)
        elif wish.kind == "b":
            left_out[wish.path] = DeviceError(_BLOCK, hint="name the disks that it needs, without --privileged")
        elif (character := host.character(*numbers)).misc and character.name in NAMED:
            named[numbers] = character.name
        elif everything:
            left_out[wish.path] = DeviceError(_CHARACTER)
        else:
            raise _refusal(wish, character)
    return Decision(tuple(disks.values()), named, left_out, tuple(untouched))


def is_whole(devices: Sequence[Device], rules: Sequence[DeviceRule]) -> bool:
    """Whether the device list is the host's whole /dev, as engines create it for a privileged container.

    Such a list contains the default nodes, which every container has anyway and other specifications do not name (moby
    oci/devices_linux.go, HostDevices(); containerd pkg/oci/spec_opts.go, WithHostDevices()).
    """
    numbers = {(device.major, device.minor) for device in devices if device.type == "c"}
    return allows_all(rules) and numbers.issuperset(DEFAULTS)


def _refusal(wish: Wish, device: CharacterDevice) -> DeviceError:
    names = [f"{wish.major}:{wish.minor}", *([device.name] if device.name else [])]
    names += [f"driver {device.driver}"] if device.driver else []
    hint = _REMEDY
    if device.function:
        hint = (
            f"pass its PCI device instead: `hawse bind {device.function}`, and name the node /dev/vfio/NN of its group"
        )
    if (wish.major, wish.minor) == _KVM:
        hint = "remove it: the guest has no hardware virtualization"
    return DeviceError(f"{wish.where} ({', '.join(names)}): {_CHARACTER}", hint=hint)
