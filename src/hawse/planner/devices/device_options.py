"""Options of passing devices: those of the configuration, changed by the container's annotations. Pure."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from hawse.config import ANNOTATIONS, Config
from hawse.errors import ConfigError
from hawse.vfio.obstacles import NOTHING, Accepted

PREFIX = "hawse."
VF_TOKEN, KEEP_ADDRESSES, MANAGED = "hawse.vf-token", "hawse.keep-addresses", "hawse.managed"
DEVICES, MODE, HUGEPAGES = "hawse.devices", "hawse.device-mode", "hawse.hugepages"
KNOWN = tuple(PREFIX + name for name in ANNOTATIONS)
#: The use of a device in the guest: as a VFIO group, or by a driver of the guest kernel.
VFIO, GUEST_KERNEL = "vfio", "guest-kernel"
MODES = (VFIO, GUEST_KERNEL)


@dataclass(frozen=True)
class DeviceOptions:
    """Options of passing devices. Fields that are not described here have the meaning of the configuration.

    ``vf_token`` is the UUID to open virtual functions, "" for none. ``devices`` are groups and addresses to pass in
    addition to those of the specification. ``native``: drivers of the guest kernel use the devices. ``allow`` are
    patterns of devices that may be passed (:mod:`hawse.patterns`). ``accepted`` are risks for which a device is not
    refused. ``confined``: QEMU may run in a jail. ``addresses_asked``: an annotation requests the host's addresses.
    """

    keep_addresses: bool = True
    addresses_asked: bool = False
    managed: bool = False
    cold: bool = False
    rom: bool = False
    native: bool = False
    backend: str = "auto"
    vf_token: str = ""
    devices: tuple[str, ...] = ()
    allow: tuple[str, ...] = ("*",)
    accepted: Accepted = NOTHING
    confined: bool = True


def device_options(
    config: Config, annotations: Mapping[str, str], *, allowed: Sequence[str] | None = None
) -> DeviceOptions:
    """Read the options. ``allowed`` are the annotations that may be used; the default is the configuration's list.

    Raises :class:`ConfigError` naming an annotation that is unknown, not allowed or invalid.
    """
    allowed = config.devices.annotations if allowed is None else allowed
    for name in annotations:
        if name.startswith(PREFIX) and name not in KNOWN:
            raise ConfigError(f"annotations: {name[:80]} is unknown", hint=f"known: {', '.join(KNOWN)}")
        if name.startswith(PREFIX) and name.removeprefix(PREFIX) not in allowed:
            raise ConfigError(
                f"annotations: {name} is not allowed on this host",
                hint="an administrator can allow it with devices.annotations in the configuration",
            )
    token = annotations.get(VF_TOKEN, "")
    if token:
        try:
            token = str(uuid.UUID(token))
        except ValueError:
            raise ConfigError(
                f"annotations: {VF_TOKEN}: {token[:80]!r} is not a UUID",
                hint="use the token that the program of the physical function has set",
            ) from None
    mode = annotations.get(MODE, config.devices.mode)
    if mode not in MODES:
        raise ConfigError(f"annotations: {MODE}: {mode[:80]!r} is unknown", hint=f"known: {', '.join(MODES)}")
    return DeviceOptions(
        keep_addresses=_switch(annotations, KEEP_ADDRESSES, config.devices.keep_addresses),
        addresses_asked=annotations.get(KEEP_ADDRESSES) == "true",
        managed=_switch(annotations, MANAGED, config.devices.managed),
        cold=config.devices.plug == "cold",
        rom=config.devices.rom,
        native=mode == GUEST_KERNEL,
        backend=config.devices.backend,
        devices=tuple(name.strip() for name in annotations.get(DEVICES, "").split(",") if name.strip()),
        vf_token=token,
        allow=config.devices.allow,
        accepted=accepted_risks(config),
        confined=config.vm.confine != "off",
    )


def accepted_risks(config: Config) -> Accepted:
    """The risks of devices that the configuration accepts."""
    return Accepted(unsafe_interrupts=config.devices.unsafe_interrupts, unresettable=config.devices.unresettable)


def _switch(annotations: Mapping[str, str], name: str, default: bool) -> bool:
    value = annotations.get(name)
    if value is None:
        return default
    if value not in ("true", "false"):
        raise ConfigError(f"annotations: {name}: {value[:80]!r} is neither true nor false", hint="use one of the two")
    return value == "true"
