"""What becomes of the device nodes of a specification that are not VFIO's. Pure but for the host that it asks.

- A node that no rule lets the container read or write stays as it is: opening it fails with EPERM, as under runc.
- A character device that means the same in every kernel (:mod:`hawse.oci.known`) is the guest's own.
- A block device is passed to the virtual machine, read-only where the rules do not allow writing.
- Any other character device would be nothing in the guest, or another device of the same number: it is refused.

A container that may use every device does without the last kind. If its list of devices is the host's whole /dev, which
engines make it for ``--privileged``, it does without the host's disks as well.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from hawse.errors import DeviceError
from hawse.nodes.block import BlockDevice
from hawse.nodes.character import CharacterDevice
from hawse.oci.device_rules import allowed, allows_all
from hawse.oci.known import DEFAULTS, NAMED, is_known
from hawse.oci.types import Device, DeviceRule

_CHARACTER = "a virtual machine has none of the host's character devices but VFIO's"
_BLOCK = "disks are not passed to a container whose list of devices is all of the host's /dev"
_REMEDY = "remove it; a PCI device is passed by VFIO: bind it to vfio-pci, and name the node /dev/vfio/NN of its group"
_KVM = (10, 232)


@dataclass(frozen=True)
class Wish:
    """A node that a container is to have. ``where`` names it in errors. ``usable``: its mount lets it be opened."""

    where: str
    path: str
    kind: str
    major: int
    minor: int
    usable: bool = True


@dataclass(frozen=True)
class Disk:
    """A block device to be passed."""

    device: BlockDevice
    writable: bool


@dataclass(frozen=True)
class Decision:
    """``named`` are misc devices whose number the guest is asked for; ``left_out`` has the reasons by path, and
    ``untouched`` the nodes that nothing may open."""

    disks: tuple[Disk, ...] = ()
    named: dict[tuple[int, int], str] = field(default_factory=dict)
    left_out: dict[str, DeviceError] = field(default_factory=dict)
    untouched: tuple[Wish, ...] = ()


@dataclass(frozen=True)
class Host:
    """The host's answers by number: :func:`hawse.nodes.block.read`, with the administrator's limits, which raises
    DeviceError, and :func:`hawse.nodes.character.read`."""

    block: Callable[[int, int], BlockDevice]
    character: Callable[[int, int], CharacterDevice]


def decide(wishes: Sequence[Wish], rules: Sequence[DeviceRule], host: Host, *, whole: bool = False) -> Decision:
    """The decision. ``whole``: the container's list of devices is the host's whole /dev.

    Raises :class:`DeviceError` naming a node that is refused.
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
                raise DeviceError(f"{wish.where}: {error.message}", hint=error.hint) from None
            disks[numbers] = Disk(device, "w" in access and not device.readonly)
        elif wish.kind == "b":
            left_out[wish.path] = DeviceError(_BLOCK, hint="name those that it needs, without --privileged")
        elif (found := host.character(*numbers)).misc and found.name in NAMED:
            named[numbers] = found.name
        elif everything:
            left_out[wish.path] = DeviceError(_CHARACTER)
        else:
            raise _refusal(wish, found)
    return Decision(tuple(disks.values()), named, left_out, tuple(untouched))


def is_whole(devices: Sequence[Device], rules: Sequence[DeviceRule]) -> bool:
    """Whether the list of devices is the host's whole /dev, as engines make it for a privileged container.

    It has the nodes that every container has in any case, which nobody else names (moby oci/devices_linux.go,
    HostDevices(); containerd pkg/oci/spec_opts.go, WithHostDevices()).
    """
    numbers = {(device.major, device.minor) for device in devices if device.type == "c"}
    return allows_all(rules) and numbers.issuperset(DEFAULTS)


def _refusal(wish: Wish, found: CharacterDevice) -> DeviceError:
    names = [f"{wish.major}:{wish.minor}", *([found.name] if found.name else [])]
    names += [f"driver {found.driver}"] if found.driver else []
    hint = _REMEDY
    if found.function:
        hint = f"pass its PCI device instead: `hawse bind {found.function}`, and the node /dev/vfio/NN of its group"
    if (wish.major, wish.minor) == _KVM:
        hint = "remove it: the guest has no hardware virtualization"
    return DeviceError(f"{wish.where} ({', '.join(names)}): {_CHARACTER}", hint=hint)
