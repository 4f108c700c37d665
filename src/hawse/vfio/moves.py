"""One function changes its driver: as a list of writes that a pure function makes, carried out by a child.

By driver_override, which concerns one function, and never by new_id, which concerns all of a kind (Linux
Documentation/ABI/testing/sysfs-bus-pci). ``drivers_probe`` succeeds though the driver's probe fails (drivers/base/dd.c,
__device_attach_driver()), so that only the ``driver`` link tells who has the function.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from hawse.errors import DeviceError
from hawse.vfio import busy, sysfs, targets, variants, writes
from hawse.vfio.bindings import Record
from hawse.vfio.targets import Target
from hawse.vfio.writes import Outcome, Write


class HangError(DeviceError):
    """A write to sysfs has not returned. To another process it is a DeviceError."""

    def to_wire(self) -> dict[str, object]:
        """The base class's, under a name that every process knows."""
        return super().to_wire() | {"kind": DeviceError.__name__}


@dataclass(frozen=True)
class Effects:
    """What is done to the host: ``carry_out`` takes writes and seconds, ``load`` a module and seconds; and who has a
    group open, by its number."""

    carry_out: Callable[[Sequence[Write], float], Outcome] = writes.carry_out
    load: Callable[[str, float], str] = writes.load_module
    holders: Callable[[int], list[str]] = busy.holders


REAL = Effects()


def plan_bind(target: Target, vfio: str, *, root: str = "") -> list[Write]:
    """What gives a function to a VFIO driver."""
    return _plan_move(target, vfio, root)


def plan_give_back(target: Target, record: Record, *, root: str = "") -> list[Write]:
    """What makes a function as the record says that it was, from whatever it is now; nothing where it is so."""
    plan: list[Write] = []
    override = target.override
    if target.driver != record.driver:
        if record.driver:
            # The old driver may have had it through new_id or an override: by its name it gets it again in any case.
            plan += _plan_move(target, record.driver, root)
            override = record.driver
        else:
            plan += _plan_unbind(target, root)
    if override != record.override:
        # An empty write would not clear it, an empty line does.
        plan.append(Write(f"{root}/sys/bus/pci/devices/{target.address}/driver_override", f"{record.override}\n"))
    return plan


def move(target: Target, vfio: str, *, seconds: float, root: str, effects: Effects) -> None:
    """Give a function to a VFIO driver that the kernel has. Raises :class:`DeviceError`."""
    _carry_out(target.address, plan_bind(target, vfio, root=root), seconds, effects)
    _verify(target.address, vfio, root)


def restore(record: Record, *, seconds: float, root: str, effects: Effects) -> None:
    """Make a function as the record says, without a look at who uses it. Raises HawseError."""
    address = record.address
    now = Target(address, 0, sysfs.driver(address, root=root), targets.read_override(address, root=root))
    if now.driver not in ("", record.driver) and not variants.is_vfio(now.driver):
        raise DeviceError(
            f"{address} has the driver {now.driver} now, neither {record.vfio}, to which it was given, nor "
            f"{record.driver or 'none'}, as before: somebody else has changed it",
            hint=f"unbind it from {now.driver} if that is not wanted, then try again",
        )
    if record.driver and now.driver != record.driver:
        load = effects.load
        variants.provide(record.driver, address, load=load, seconds=seconds, root=root, modalias=True)
    _carry_out(address, plan_give_back(now, record, root=root), seconds, effects)
    _verify(address, record.driver, root)


def _plan_move(target: Target, driver: str, root: str) -> list[Write]:
    return [
        Write(f"{root}/sys/bus/pci/devices/{target.address}/driver_override", f"{driver}\n"),
        *_plan_unbind(target, root),
        Write(f"{root}/sys/bus/pci/drivers_probe", f"{target.address}\n"),
    ]


def _plan_unbind(target: Target, root: str) -> list[Write]:
    """By the driver's name, so that it fails when another one has the function by then."""
    if not target.driver:
        return []
    return [Write(f"{root}/sys/bus/pci/drivers/{target.driver}/unbind", f"{target.address}\n")]


def _carry_out(address: str, plan: Sequence[Write], seconds: float, effects: Effects) -> None:
    if not plan:
        return
    outcome = effects.carry_out(plan, seconds)
    if outcome.done == len(plan):
        return
    failed = plan[outcome.done]
    step = f"{address}: writing {failed.text.strip()!r} to {failed.path}"
    if outcome.hangs:
        raise HangError(
            f"{step} has not returned after {seconds:g} s: its driver waits for somebody who uses it",
            hint=f"end the programs that have the device open; `hawse unbind {address}` then makes it as it was",
        )
    if outcome.errno:
        raise DeviceError(
            f"{step} failed: {os.strerror(outcome.errno)}",
            hint=f"it takes root, and sysfs writable; the kernel may say more: `dmesg | grep {address}`",
        )
    raise DeviceError(f"{step} was interrupted: the process that writes was killed", hint="try again")


def _verify(address: str, driver: str, root: str) -> None:
    now = sysfs.driver(address, root=root)
    if now != driver:
        who = f"{driver} did not take it" if driver else "it was not left without a driver"
        raise DeviceError(
            f"{address}: {who}: " + (f"{now} has it" if now else "it has no driver now"),
            hint=f"the kernel says why: `dmesg | grep {address}`",
        )
