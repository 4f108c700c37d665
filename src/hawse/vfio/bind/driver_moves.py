"""Change the driver of one function: pure functions plan the writes to sysfs, and a child process carries them out.

The writes use driver_override, which affects one function, and never new_id, which affects all functions of the same
device id (Linux Documentation/ABI/testing/sysfs-bus-pci). A write to ``drivers_probe`` succeeds even if the driver's
probe fails (drivers/base/dd.c, __device_attach_driver()), so only the ``driver`` link shows which driver has the
function.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from hawse.errors import DeviceError
from hawse.vfio import sysfs
from hawse.vfio.bind import in_use, sysfs_writes, targets, variants
from hawse.vfio.bind.records import Record
from hawse.vfio.bind.sysfs_writes import Outcome, Write
from hawse.vfio.bind.targets import Target
from hawse.vfio.driver_names import is_vfio


class HangError(DeviceError):
    """A write to sysfs has not returned. Other processes receive it as a DeviceError (:meth:`to_wire`)."""

    def to_wire(self) -> dict[str, object]:
        """The representation of the base class, whose name every process knows."""
        return super().to_wire() | {"kind": DeviceError.__name__}


@dataclass(frozen=True)
class Effects:
    """The functions that change or inspect the host, replaceable in tests.

    ``carry_out`` takes writes and a timeout in seconds, ``load`` a kernel module and a timeout in seconds. ``holders``
    takes a group's number and returns the processes in which the group is open.
    """

    carry_out: Callable[[Sequence[Write], float], Outcome] = sysfs_writes.carry_out
    load: Callable[[str, float], str] = sysfs_writes.load_module
    holders: Callable[[int], list[str]] = in_use.holders


REAL = Effects()


def plan_bind(target: Target, vfio: str, *, root: str = "") -> list[Write]:
    """The writes that bind a function to a VFIO driver."""
    return _plan_move(target, vfio, root)


def plan_restore(target: Target, record: Record, *, root: str = "") -> list[Write]:
    """The writes that restore the driver and the override of a record; empty if the function has both already."""
    plan: list[Write] = []
    override = target.override
    if target.driver != record.driver:
        if record.driver:
            # The old driver may have matched by new_id or an override. An override with its name always works.
            plan += _plan_move(target, record.driver, root)
            override = record.driver
        else:
            plan += _plan_unbind(target, root)
    if override != record.override:
        # An empty write does not clear the override, an empty line does.
        plan.append(Write(f"{root}/sys/bus/pci/devices/{target.address}/driver_override", f"{record.override}\n"))
    return plan


def move(target: Target, vfio: str, *, seconds: float, root: str, effects: Effects) -> None:
    """Bind a function to a VFIO driver that is loaded. Raises :class:`DeviceError`."""
    _carry_out(target.address, plan_bind(target, vfio, root=root), seconds, effects)
    _verify(target.address, vfio, root)


def restore(record: Record, *, seconds: float, root: str, effects: Effects) -> None:
    """Restore the driver and the override of a record. Raises HawseError; does not check for users of the function."""
    address = record.address
    now = Target(address, 0, sysfs.driver(address, root=root), targets.read_override(address, root=root))
    if now.driver not in ("", record.driver) and not is_vfio(now.driver):
        raise DeviceError(
            f"{address}: its driver is now {now.driver}, but hawse had bound it to {record.vfio}, and before that its "
            f"driver was {record.driver or 'none'}: another program has changed it",
            hint=f"to restore it anyway, unbind it from {now.driver}, then try again",
        )
    if record.driver and now.driver != record.driver:
        load = effects.load
        variants.provide(record.driver, address, load=load, seconds=seconds, root=root, modalias=True)
    _carry_out(address, plan_restore(now, record, root=root), seconds, effects)
    _verify(address, record.driver, root)


def _plan_move(target: Target, driver: str, root: str) -> list[Write]:
    return [
        Write(f"{root}/sys/bus/pci/devices/{target.address}/driver_override", f"{driver}\n"),
        *_plan_unbind(target, root),
        Write(f"{root}/sys/bus/pci/drivers_probe", f"{target.address}\n"),
    ]


def _plan_unbind(target: Target, root: str) -> list[Write]:
    """Unbind through the driver's directory, so that it fails if the function has another driver by then."""
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
            f"{step} has not returned after {seconds:g} s: the driver waits for a program that uses the device",
            hint=f"end the programs that have the device open, then restore its driver: `hawse unbind {address}`",
        )
    if outcome.errno:
        raise DeviceError(
            f"{step} failed: {os.strerror(outcome.errno)}",
            hint=f"this requires root and a writable sysfs; the kernel log may say more: `dmesg | grep {address}`",
        )
    raise DeviceError(f"{step} was interrupted: the child process that writes was killed", hint="try again")


def _verify(address: str, driver: str, root: str) -> None:
    now = sysfs.driver(address, root=root)
    if now != driver:
        failure = f"{driver} did not bind to it" if driver else "it did not stay unbound"
        raise DeviceError(
            f"{address}: {failure}: " + (f"its driver is now {now}" if now else "it has no driver now"),
            hint=f"the kernel log says why: `dmesg | grep {address}`",
        )
