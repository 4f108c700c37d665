"""The configuration file in TOML. All keys are optional; ``docs/config.md`` explains them."""

from __future__ import annotations

import re
import tomllib
from typing import Any

import msgspec

from hawse.errors import ConfigError
from hawse.json_text import Document
from hawse.patterns import is_path_pattern, is_pattern

DEFAULT_PATH = "/etc/hawse/config.toml"
#: The annotations that hawse supports, without the prefix "hawse.".
ANNOTATIONS = ("device-mode", "devices", "forward-sockets", "hugepages", "keep-addresses", "managed", "vf-token")


class Vm(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The virtual machine of every sandbox.

    Times are in seconds; 0 means a default that depends on the acceleration. 0 CPUs means the number that follows from
    the container's limits.
    """

    qemu: str = "/usr/bin/qemu-system-x86_64"
    virtiofsd: str = ""
    share: str = "auto"  # auto | virtiofs | 9p
    accel: str = "auto"  # auto | kvm | tcg
    memory_mib: int = 1024
    cpus: int = 0
    hugepages: str = ""  # "" | 2MB | 1GB: the host's pages for the VM's memory
    guest_hugepages: str = ""  # 2MB:512,1GB:2
    kernel_append: str = ""
    boot_seconds: float = 0
    device_seconds: float = 0
    confine: str = "auto"  # required | auto | off
    users: str = "2130706432-2130771967"
    overhead_mib: int = 2048
    load_modules: tuple[str, ...] = ()


class ImageFiles(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The guest image: its directory, a user's kernel instead of the built one, its modules, and additional modules."""

    cache: str = "/var/cache/hawse"
    kernel: str = ""
    modules: str = ""
    extra_modules: tuple[str, ...] = ()


class Templates(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Templates: VMs that are saved after their boot, from which later sandboxes are restored. They are in the image
    cache.

    ``max_age_hours``: older templates are replaced; 0 means no limit. Sandboxes of one template share kernel addresses.
    """

    enabled: bool = True
    max_age_hours: int = 24


class Timelines(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Traces of sandboxes' starts, written to ``<directory>/<id>.json``; none if ``directory`` is empty."""

    directory: str = ""


class Devices(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Options of passing VFIO devices to sandboxes.

    ``annotations`` are those of :data:`ANNOTATIONS` that a container may use. In Kubernetes, all users who may create
    pods choose the annotations of their pods. ``allow`` are patterns of the functions that may be passed
    (:mod:`hawse.patterns`). ``unsafe_interrupts`` and ``unresettable`` accept devices that are otherwise refused
    (:mod:`hawse.vfio.interrupts`, :mod:`hawse.vfio.resets`).
    """

    keep_addresses: bool = True
    managed: bool = False
    mode: str = "vfio"  # vfio | guest-kernel
    plug: str = "hot"  # hot | cold
    rom: bool = False
    backend: str = "auto"  # auto | group | iommufd
    pod_window_mib: int = 256
    annotations: tuple[str, ...] = ("hugepages", "keep-addresses")
    allow: tuple[str, ...] = ("*",)
    unsafe_interrupts: bool = False
    unresettable: bool = False


class Sharing(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Objects of the host, other than files, that containers can use.

    ``forward_sockets`` are patterns of the host's UNIX sockets. A container that binds such a socket can connect to it
    (:mod:`hawse.oci.guest.host_sockets`).
    """

    forward_sockets: tuple[str, ...] = ()


class Config(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The whole file. ``emulated`` maps group numbers to QEMU device models; :mod:`hawse.vfio.emulated` checks it."""

    vm: Vm = msgspec.field(default_factory=Vm)
    image: ImageFiles = msgspec.field(default_factory=ImageFiles)
    template: Templates = msgspec.field(default_factory=Templates)
    timeline: Timelines = msgspec.field(default_factory=Timelines)
    devices: Devices = msgspec.field(default_factory=Devices)
    share: Sharing = msgspec.field(default_factory=Sharing)
    emulated: dict[str, list[str]] = {}


_CHOICES: dict[str, dict[str, tuple[str, ...]]] = {
    "vm": {
        "share": ("auto", "virtiofs", "9p"),
        "accel": ("auto", "kvm", "tcg"),
        "hugepages": ("", "2MB", "1GB"),
        "confine": ("required", "auto", "off"),
    },
    "devices": {
        "plug": ("hot", "cold"),
        "mode": ("vfio", "guest-kernel"),
        "backend": ("auto", "group", "iommufd"),
    },
}
_MODULE = re.compile(r"[A-Za-z0-9_-]{1,64}")
_RANGES = {
    "memory_mib": (128, 4 * 1024 * 1024),
    "cpus": (0, 255),
    "overhead_mib": (0, 4 * 1024 * 1024),
    "boot_seconds": (0, 3600),
    "device_seconds": (0, 3600),
}
#: msgspec's names of the expected types, in words for users. The words for the actual types in a file differ slightly.
_KINDS = {
    "int": "a whole number",
    "float": "a number",
    "str": "a text",
    "bool": "true or false",
    "array": "a list",
    "object": "a table",
}
_ACTUAL_KINDS = _KINDS | {
    "int": "a number",
    "float": "a number with a fraction",
    "date": "a date",
    "datetime": "a date",
}
#: 2^32-1 is not a valid ID, and some programs do not accept 2^31 and above (systemd.io/UIDS-GIDS).
_LEAST_USER, _GREATEST_USER = 65536, 2**31 - 2
#: The physical address space of a guest with 40 bits, QEMU's without KVM, fits sixteen windows of twice this size.
_MAX_WINDOW_MIB = 16 * 1024


def user_ids(text: str) -> tuple[int, int] | None:
    """Parse a range of user IDs: the first and the last one. None if it is invalid or includes IDs below 65536."""
    first, dash, last = text.partition("-")
    if not dash or not (first.isascii() and first.isdigit() and last.isascii() and last.isdigit()):
        return None
    return (int(first), int(last)) if _LEAST_USER <= int(first) <= int(last) <= _GREATEST_USER else None


def _explain(problem: str, table: Document) -> tuple[str, str]:
    """Convert a message of msgspec, such as "Expected `int`, got `str` - at `$.vm.cpus`", to a problem and a hint."""
    what, _, place = problem.partition(" - at `$.")
    place = place.rstrip("`")
    words = re.findall("`([^`]*)`", what)
    if what.startswith("Object contains unknown field") and len(words) == 1:
        section: Any = getattr(Config(), place) if place else Config()
        known = ", ".join(section.__struct_fields__)
        return f"{place}.{words[0]} is unknown" if place else f"{words[0]} is unknown", f"known: {known}"
    if not what.startswith("Expected") or len(words) != 2:
        return problem, ""
    if place.startswith("emulated[...]"):
        # msgspec does not name the key of a dict.
        wrong = (key for key, models in table["emulated"].items() if not _are_texts(models))
        place = place.replace("[...]", f".{next(wrong, '...')}")
    place = re.sub(r"\[(\d+)\]$", lambda match: f": entry {int(match[1]) + 1}", place)
    return f"{place} must be {_KINDS.get(words[0], words[0])}, not {_ACTUAL_KINDS.get(words[1], words[1])}", ""


def _are_texts(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(entry, str) for entry in value)


def load_config(path: str | None) -> Config:
    """Read ``path``, or the default path if it exists. Raises :class:`ConfigError` naming the file and the key."""
    name = path or DEFAULT_PATH
    table = _read(name, required=path is not None)
    try:
        config = msgspec.convert(table, Config)
    except msgspec.ValidationError as error:
        problem, hint = _explain(str(error), table)
        raise ConfigError(f"configuration {name}: {problem}", hint=hint) from None
    _check_values(name, config)
    _check_lists(name, config)
    return config


def _read(name: str, *, required: bool) -> Document:
    """The table of the file; empty if the file does not exist and is not ``required``. Raises :class:`ConfigError`."""
    try:
        with open(name, "rb") as file:
            return tomllib.load(file)
    except FileNotFoundError:
        if not required:
            return {}
        raise ConfigError(f"configuration {name}: no such file", hint="check --config") from None
    except OSError as error:
        hint = "run as root" if isinstance(error, PermissionError) else "check --config"
        raise ConfigError(f"configuration {name}: cannot be read: {error.strerror}", hint=hint) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"configuration {name}: {error}", hint="correct the file") from None
    except RecursionError:
        raise ConfigError(f"configuration {name}: nested too deeply", hint="correct the file") from None


def _check_values(name: str, config: Config) -> None:
    """Raise :class:`ConfigError` for a value that its key cannot have. ``name`` is the path of the file."""
    for section, keys in _CHOICES.items():
        for key, choices in keys.items():
            value = getattr(getattr(config, section), key)
            if value not in choices:
                known = ", ".join(choice or '""' for choice in choices)
                raise ConfigError(f"configuration {name}: {section}.{key} is {value[:80]!r}, not one of: {known}")
    for key, (least, greatest) in _RANGES.items():
        if not least <= getattr(config.vm, key) <= greatest:
            raise ConfigError(f"configuration {name}: vm.{key} must be from {least} to {greatest}")
    if config.template.max_age_hours < 0:
        raise ConfigError(f"configuration {name}: template.max_age_hours must be 0 or more")
    if not user_ids(config.vm.users):
        raise ConfigError(
            f"configuration {name}: vm.users: {config.vm.users!r} is no range of user ids",
            hint='write the first and the last, both above 65535: "2130706432-2130771967"',
        )
    window = config.devices.pod_window_mib
    if not 2 <= window <= _MAX_WINDOW_MIB or window & (window - 1):
        raise ConfigError(
            f"configuration {name}: devices.pod_window_mib must be a power of two from 2 to {_MAX_WINDOW_MIB}"
        )


def _check_lists(name: str, config: Config) -> None:
    """Raise :class:`ConfigError` for an entry of a list that its key does not have; ``name`` is the file's."""
    for annotation in config.devices.annotations:
        if annotation not in ANNOTATIONS:
            known = ", ".join(ANNOTATIONS)
            raise ConfigError(f"configuration {name}: devices.annotations: {annotation!r} is not one of {known}")
    for pattern in config.devices.allow:
        if not is_pattern(pattern):
            raise ConfigError(
                f"configuration {name}: devices.allow: {pattern!r} is not a pattern",
                hint='write addresses as "0000:3b:*", vendor and device as "8086:10d3", "driver:NAME" or "block:NAME"',
            )
    for pattern in config.share.forward_sockets:
        if not is_path_pattern(pattern):
            raise ConfigError(
                f"configuration {name}: share.forward_sockets: {pattern[:200]!r} is not an absolute path",
                hint='write paths without links, and with wildcards if needed: "/run/spire/*.sock"',
            )
    lists = {"vm.load_modules": config.vm.load_modules, "image.extra_modules": config.image.extra_modules}
    for key, modules in lists.items():
        for module in modules:
            if not _MODULE.fullmatch(module):
                raise ConfigError(
                    f"configuration {name}: {key}: {module[:80]!r} is not a name of a kernel module",
                    hint='write names as for modprobe: "br_netfilter"',
                )
