"""`hawse unbind ADDRESS... | --all`: functions go back to the drivers that they had."""

from __future__ import annotations

import argparse
import os
from dataclasses import replace
from typing import TYPE_CHECKING

from hawse.errors import DeviceError, HawseError, UsageError
from hawse.vfio import sysfs
from hawse.vfio.bind import records as bindings
from hawse.vfio.bind import targets
from hawse.vfio.bind.bind import give_back, together
from hawse.vfio.bind.driver_moves import REAL
from hawse.vfio.bind.records import Record
from hawse.vfio.driver_names import is_vfio

if TYPE_CHECKING:
    from hawse.cli.settings import Settings
    from hawse.vfio.bind.driver_moves import Effects

HELP = "give PCI functions back to the drivers that they had before `bind`, with the driver_override that they had"


def configure(parser: argparse.ArgumentParser) -> None:
    """The verb's own arguments."""
    parser.add_argument("address", nargs="*", help="such as 0000:3b:00.0 or 3b:00.0")
    parser.add_argument("-a", "--all", action="store_true", help="all that hawse has bound")
    parser.add_argument("-d", "--driver", default="", help="who gets them, for functions that hawse has not bound")


def run(args: argparse.Namespace, settings: Settings, *, root: str = "", effects: Effects = REAL) -> int:
    """Give back what can be; ``root`` and ``effects`` are another host."""
    if bool(args.address) == args.all:
        raise UsageError("unbind takes addresses or --all", hint="see `hawse unbind --help`")
    if args.driver and (args.all or not bindings.is_driver(args.driver)):
        raise UsageError(
            "--driver goes with addresses, not with --all" if args.all else f"{args.driver[:80]!r} is no driver's name",
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
            give_back([record], directory=directory, root=root, effects=effects)
            print(line)
        except HawseError as failure:
            failures.append(failure)
    if failures:
        raise together(failures)
    return 0


def _record(address: str, driver: str, directory: str, root: str) -> Record:
    """The record of a function, made up from the driver that was named where there is none. Raises DeviceError."""
    record = bindings.read(directory, address)
    if record:
        return replace(record, driver=driver) if driver else record
    if not targets.exists(address, root=root):
        raise DeviceError(f"{address}: this host has no such PCI function", hint="`lspci -D` lists them")
    now = sysfs.driver(address, root=root)
    if now and not is_vfio(now):
        raise DeviceError(f"{address} is on no VFIO driver: {now} has it")
    if not driver:
        raise DeviceError(
            f"{address}: hawse has not bound it, and no record tells which driver it had",
            hint=f"say which: `hawse unbind --driver NAME {address}`",
        )
    override = targets.read_override(address, root=root)
    return Record(address, driver, "" if is_vfio(override) else override, now)


def _check_owner(record: Record, root: str) -> None:
    if record.owner and os.path.isdir(f"{root}/{record.owner}"):
        raise DeviceError(
            f"{record.address} is bound for the sandbox {record.owner}",
            hint=f"`hawse delete {record.owner}` gives it back",
        )


def _line(record: Record, root: str) -> str:
    """What to say when it has been done, from how it is before."""
    address, driver = record.address, record.driver or "no driver"
    if not targets.exists(address, root=root):
        return f"{address}: it is gone from this host, and now its record is too"
    now = sysfs.driver(address, root=root) or "no driver"
    what = f"already on {driver}" if now == driver else f"{now} -> {driver}"
    return f"{address}: {what}, group {sysfs.iommu_group(address, root=root)}"
