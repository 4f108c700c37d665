"""How a sandbox's devices are given: the configuration, and what the container's annotations change of it. Pure."""

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
#: What becomes of a device in the guest: a VFIO group, or one of the guest kernel's own.
VFIO, GUEST_KERNEL = "vfio", "guest-kernel"
MODES = (VFIO, GUEST_KERNEL)


@dataclass(frozen=True)
class DeviceOptions:
    """``vf_token``: the UUID that virtual functions are opened with, "" for none. ``devices``: groups and addresses
    that are given beside those of the spec. ``native``: they are left to the guest's own drivers. ``allow``: patterns
    of what may be passed (:mod:`hawse.patterns`). ``accepted``: risks of devices that are not refused. ``confined``:
    QEMU may run in a jail. ``addresses_asked``: an annotation asks for the host's addresses. The rest as in the
    configuration."""

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
    """The options. ``allowed``: the annotations that there may be, the configuration's if not given.

    Raises :class:`ConfigError` naming an annotation that is unknown, not allowed or makes no sense.
    """
    allowed = config.devices.annotations if allowed is None else allowed
    for name in annotations:
        if name.startswith(PREFIX) and name not in KNOWN:
            raise ConfigError(f"annotations: {name[:80]} is unknown", hint=f"known: {', '.join(KNOWN)}")
        if name.startswith(PREFIX) and name.removeprefix(PREFIX) not in allowed:
            raise ConfigError(
                f"annotations: {name} is not allowed on this host",
                hint="an administrator allows it by devices.annotations in the configuration",
            )
    token = annotations.get(VF_TOKEN, "")
    if token:
        try:
            token = str(uuid.UUID(token))
        except ValueError:
            raise ConfigError(
                f"annotations: {VF_TOKEN}: {token[:80]!r} is no UUID",
                hint="the one that the physical function's program was given",
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
        raise ConfigError(f"annotations: {name}: {value[:80]!r} is neither true nor false", hint="write one of the two")
    return value == "true"
