"""`hawse unbind ADDRESS... | --all`: restore the drivers that functions had before `hawse bind`."""

from __future__ import annotations

import argparse
import os
from dataclasses import replace
from typing import TYPE_CHECKING

from hawse.errors import DeviceError, HawseError, UsageError
from hawse.vfio import sysfs
from hawse.vfio.bind import records as bindings
from hawse.vfio.bind import targets
from hawse.vfio.bind.bind import restore_drivers, together
from hawse.vfio.bind.driver_moves import REAL
from hawse.vfio.bind.records import Record
from hawse.vfio.driver_names import is_vfio

if TYPE_CHECKING:
    from hawse.cli.settings import Settings
    from hawse.vfio.bind.driver_moves import Effects

HELP = "restore the drivers and the driver_override that PCI functions had before `bind`"


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of this verb."""
    parser.add_argument("address", nargs="*", help="such as 0000:3b:00.0 or 3b:00.0")
    parser.add_argument("-a", "--all", action="store_true", help="all functions that hawse has bound")
    parser.add_argument(
        "-d", "--driver", default="", help="the driver to bind to, for functions that hawse has not bound"
    )


def run(args: argparse.Namespace, settings: Settings, *, root: str = "", effects: Effects = REAL) -> int:
    """Restore as many functions as possible. Tests pass another host as ``root`` and ``effects``."""
    if bool(args.address) == args.all:
        raise UsageError("unbind: name addresses, or --all, but not both", hint="see `hawse unbind --help`")
    if args.driver and (args.all or not bindings.is_driver(args.driver)):
        raise UsageError(
            "--driver goes with addresses, not with --all"
            if args.all
            else f"{args.driver[:80]!r} is not the name of a driver",
            hint="see `hawse unbind --help`",
        )
    directory = bindings.directory_of(settings.root)
    failures: list[HawseError] = []
    if args.all:
        records, damaged = bindings.read_all(directory)
        failures += damaged
    else:
        records = []
        for address in dict.fromkeys(targets.parse_address(text) for text in args.address):
            try:
                records.append(_record(address, args.driver, directory, root))
            except HawseError as failure:
                failures.append(failure)
    for record in records:
        try:
            _check_owner(record, settings.root)
            line = _line(record, root)
            restore_drivers([record], directory=directory, root=root, effects=effects)
            print(line)
        except HawseError as failure:
            failures.append(failure)
    if failures:
        raise together(failures)
    return 0


def _record(address: str, driver: str, directory: str, root: str) -> Record:
    """The record of a function; without one, a record that names ``driver``. Raises DeviceError."""
    record = bindings.read(directory, address)
    if record:
        return replace(record, driver=driver) if driver else record
    if not targets.exists(address, root=root):
        raise DeviceError(f"{address}: this host has no such PCI function", hint="`hawse devices` lists them")
    now = sysfs.driver(address, root=root)
    if now and not is_vfio(now):
        raise DeviceError(f"{address} is not bound to a VFIO driver, but to {now}", hint="nothing has to be restored")
    if not driver:
        raise DeviceError(
            f"{address}: hawse has not bound it, and no record names its previous driver",
            hint=f"name the driver: `hawse unbind --driver NAME {address}`",
        )
    override = targets.read_override(address, root=root)
    return Record(address, driver, "" if is_vfio(override) else override, now)


def _check_owner(record: Record, root: str) -> None:
    if record.owner and os.path.isdir(f"{root}/{record.owner}"):
        raise DeviceError(
            f"{record.address} is bound for the sandbox {record.owner}",
            hint=f"`hawse delete {record.owner}` restores its driver",
        )


def _line(record: Record, root: str) -> str:
    """The line about a function that was restored; called before it is restored."""
    address, driver = record.address, record.driver or "no driver"
    if not targets.exists(address, root=root):
        return f"{address}: no longer on this host; its record is deleted"
    now = sysfs.driver(address, root=root) or "no driver"
    what = f"already bound to {driver}" if now == driver else f"{now} -> {driver}"
    return f"{address}: {what}, group {sysfs.iommu_group(address, root=root)}"
