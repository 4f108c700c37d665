"""`hawse bind ADDRESS...`: bind PCI functions of the host to VFIO drivers."""

from __future__ import annotations

import argparse
import os
from typing import TYPE_CHECKING

from hawse.vfio import sysfs
from hawse.vfio.bind import records as bindings
from hawse.vfio.bind import targets
from hawse.vfio.bind.bind import bind
from hawse.vfio.bind.driver_moves import REAL

if TYPE_CHECKING:
    from hawse.cli.settings import Settings
    from hawse.vfio.bind.driver_moves import Effects
    from hawse.vfio.bind.records import Record

HELP = "bind PCI functions to vfio-pci, or to the variant driver that the kernel has for them; `unbind` undoes it"


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of this verb."""
    parser.add_argument("address", nargs="+", help="such as 0000:3b:00.0 or 3b:00.0")
    parser.add_argument("-d", "--driver", default="", help="the VFIO driver (default: the kernel's choice)")
    parser.add_argument("-g", "--group", action="store_true", help="also bind the other functions of their groups")


def run(args: argparse.Namespace, settings: Settings, *, root: str = "", effects: Effects = REAL) -> int:
    """Bind all of the functions or none. Tests pass another host as ``root`` and ``effects``."""
    records = bind(
        args.address,
        directory=bindings.directory_of(settings.root),
        driver=args.driver,
        with_group=args.group,
        root=root,
        owner_lives=lambda owner: os.path.isdir(f"{settings.root}/{owner}"),
        effects=effects,
    )
    bound = {record.address: record for record in records}
    named = [targets.parse_address(address) for address in args.address]
    for address in dict.fromkeys([*named, *bound]):
        print(_line(address, bound.get(address), root))
    return 0


def _line(address: str, record: Record | None, root: str) -> str:
    group = sysfs.iommu_group(address, root=root)
    if record is None:
        what = f"already bound to {sysfs.driver(address, root=root)}"
    else:
        what = f"{record.driver or 'no driver'} -> {record.vfio}"
    return f"{address}: {what}, group {group}: /dev/vfio/{group}"
