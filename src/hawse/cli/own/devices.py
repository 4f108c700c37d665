"""`hawse devices`: list the host's PCI functions by IOMMU group, and the emulated groups."""

from __future__ import annotations

import argparse
import json
import os
import re
from collections.abc import Collection
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from hawse.errors import UsageError
from hawse.json_text import Document, parse
from hawse.planner.devices.device_options import accepted_risks
from hawse.state.store import Store
from hawse.vfio import inventory
from hawse.vfio.bind import records, targets
from hawse.vfio.emulated import EmulatedGroup, read_table
from hawse.vfio.groups import Bar, holders
from hawse.vfio.host import pci_ids

if TYPE_CHECKING:
    from hawse.cli.settings import Settings

HELP = (
    "list the host's PCI functions by IOMMU group, the process that uses each group, and whether it can be passed; and "
    "the emulated groups that the configuration declares"
)


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of this verb."""
    parser.add_argument("-j", "--json", action="store_true")


def run(args: argparse.Namespace, settings: Settings, *, root: str = "") -> int:
    """Print the list. Tests pass another host as ``root``."""
    emulated = read_table(settings.config.emulated)
    listings = inventory.read(root=root, holders=partial(holders, root=root), accepted=accepted_risks(settings.config))
    listings = [_without_number(listing, emulated) for listing in listings]
    functions = [entry.function for listing in listings for entry in listing.entries]
    names = pci_ids.names({(f.vendor, f.device) for f in functions}, root=root)
    sandbox_of = inventory.sandboxes(_monitors(settings.root), root=root)
    groups = [_as_json(listing, names, sandbox_of) for listing in listings]
    groups += [_emulated_as_json(group) for _, group in sorted(emulated.items())]
    if args.json:
        print(json.dumps(groups, indent=2))
    else:
        print("\n".join(map(_as_text, groups)) or "no PCI functions and no emulated groups")
        if functions and not pci_ids.is_installed(root=root):
            print("the names of devices are unknown: install the package pci.ids (Debian) or hwdata")
    for record in records.read_all(records.directory_of(settings.root))[0]:
        if not targets.exists(record.address, root=root):
            settings.log.warning(
                f"{record.address} is on record as bound to {record.vfio}, but no longer on this host "
                f"[{_remedy(record, settings.root)}]"
            )
    return 0


def _remedy(record: records.Record, state: str) -> str:
    if record.owner and os.path.isdir(f"{state}/{record.owner}"):  # as `unbind` decides
        return f"`hawse delete {record.owner}` deletes the record"
    return f"`hawse unbind {record.address}` deletes the record"


def _without_number(listing: inventory.Listing, emulated: Collection[int]) -> inventory.Listing:
    """The listing, which is refused if an emulated group has its number: a container's nodes then mean that group."""
    if listing.number not in emulated:
        return listing
    refusal = f"the configuration declares an emulated group {listing.number}"
    return replace(listing, refusal=refusal, remedy="choose another number for it in [emulated]")


def _as_json(listing: inventory.Listing, names: dict[tuple[int, int], str], sandbox_of: Any) -> Document:
    return {
        "group": listing.number,
        "emulated": False,
        "node": f"/dev/vfio/{listing.number}" if listing.node else None,
        "can_be_passed": not listing.refusal,
        "reason": listing.refusal,
        "remedy": listing.remedy,
        "users": [{"pid": pid, "name": name, "sandbox": sandbox_of(pid)} for pid, name in listing.users],
        "functions": [
            {
                "address": entry.function.address,
                "id": f"{entry.function.vendor:04x}:{entry.function.device:04x}",
                "name": names[entry.function.vendor, entry.function.device],
                "class": f"{entry.function.class_code:06x}",
                "driver": entry.function.driver,
                "numa_node": entry.numa,
                "bars": [{"index": b.index, "size": b.size, "kind": _kind(b)} for b in entry.function.bars],
                "reset_methods": None if entry.function.resets is None else list(entry.function.resets),
                "physical_function": entry.function.physical,
                "virtual_functions": None if entry.virtual is None else list(entry.virtual),
            }
            for entry in listing.entries
        ],
    }


def _emulated_as_json(group: EmulatedGroup) -> Document:
    """An emulated group. It has no node on the host, and its functions have no address until a VM has them."""
    return {
        "group": group.number,
        "emulated": True,
        "node": None,
        "can_be_passed": True,
        "reason": "",
        "remedy": "",
        "users": [],
        "functions": [
            {
                "address": None,
                "id": None,
                "name": model,
                "class": None,
                "driver": None,
                "numa_node": -1,
                "bars": [],
                "reset_methods": None,
                "physical_function": "",
                "virtual_functions": None,
            }
            for model in group.models
        ],
    }


def _as_text(group: Document) -> str:
    """A line for the group, two lines for each function, and the reason why the group cannot be passed."""
    head = f"group {group['group']}" if group["group"] is not None else "no group"
    if group["emulated"]:
        models = ", ".join(function["name"] for function in group["functions"])
        return f"{head}  emulated by QEMU: {models}; name it /dev/vfio/{group['group']}"
    if group["can_be_passed"]:
        head += f"  {group['node'] or 'device files only'}  can be passed"
    lines = [head]
    for function in group["functions"]:
        about = [function["driver"] or "no driver"]
        if function["numa_node"] >= 0:
            about.append(f"NUMA node {function['numa_node']}")
        about += [f"BAR {bar['index']} {_size(bar['size'])} {bar['kind']}" for bar in function["bars"]]
        if function["reset_methods"] is not None:
            methods = ", ".join(function["reset_methods"]) or "none"
            weak = not set(function["reset_methods"]) - {"bus", "cxl_bus"}
            about.append(f"reset: {methods}{' (!)' if weak else ''}")
        if function["physical_function"]:
            about.append(f"virtual function of {function['physical_function']}")
        if function["virtual_functions"]:
            about.append("{} of {} virtual functions".format(*function["virtual_functions"]))
        lines.append(f"  {function['address']}  {function['name']}")
        lines.append(f"      {', '.join(about)}")
    if not group["can_be_passed"]:
        lines.append(f"  cannot be passed: {_short(group['reason'], group['group'])} [{group['remedy']}]")
    for user in group["users"]:
        if user["sandbox"]:
            lines.append(f"  used by the sandbox {user['sandbox']}")
    return "\n".join(lines)


def _short(reason: str, group: int | None) -> str:
    """The reason without the words that the listing contains already: the group's number, and that it is refused."""
    return re.sub(rf"^(IOMMU )?group {group}( \([^)]*\))?( cannot be passed)?: ", "", reason)


def _kind(bar: Bar) -> str:
    if bar.is_io:
        return "I/O"
    return ("64-bit" if bar.is_64bit else "32-bit") + (" prefetchable" if bar.is_prefetchable else "")


def _size(size: int) -> str:
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024 or unit == "GiB":
            return f"{size} {unit}"
        size //= 1024
    raise AssertionError


def _monitors(root: str) -> dict[str, int]:
    """The pid of each sandbox's monitor. Empty if the user cannot read the directory: devices are listed anyway."""
    monitors: dict[str, int] = {}
    try:
        names = os.listdir(root)
    except OSError:
        return monitors
    for name in names:
        try:
            with open(f"{Store(root, name).path}/state.json", "rb") as file:
                monitors[name] = int(parse(file.read()).get("monitorPid", 0))
        except (UsageError, OSError, ValueError, TypeError, AttributeError):
            continue  # not a sandbox, or its state is not written yet
    return monitors
