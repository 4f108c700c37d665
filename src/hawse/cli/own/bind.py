"""`hawse bind ADDRESS...`: functions of the host go to VFIO."""

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

HELP = "give PCI functions to vfio-pci, or to the variant of it that the kernel has for them; `unbind` gives them back"


def configure(parser: argparse.ArgumentParser) -> None:
    """The verb's own arguments."""
    parser.add_argument("address", nargs="+", help="such as 0000:3b:00.0 or 3b:00.0")
    parser.add_argument("-d", "--driver", default="", help="the VFIO driver, where the kernel's choice is not wanted")
    parser.add_argument("-g", "--group", action="store_true", help="take along the other functions of their groups")


def run(args: argparse.Namespace, settings: Settings, *, root: str = "", effects: Effects = REAL) -> int:
    """Bind them, all or none; ``root`` and ``effects`` are another host."""
    records = bind(
        args.address,
        directory=bindings.directory_of(settings.root),
        driver=args.driver,
        with_group=args.group,
        root=root,
        owner_lives=lambda owner: os.path.isdir(f"{settings.root}/{owner}"),
        effects=effects,
    )
    made = {record.address: record for record in records}
    asked = [targets.parse_address(address) for address in args.address]
    for address in dict.fromkeys([*asked, *made]):
        print(_line(address, made.get(address), root))
    return 0


def _line(address: str, record: Record | None, root: str) -> str:
    group = sysfs.iommu_group(address, root=root)
    if record is None:
        what = f"already on {sysfs.driver(address, root=root)}"
    else:
        what = f"{record.driver or 'no driver'} -> {record.vfio}"
    return f"{address}: {what}, group {group}: /dev/vfio/{group}"
