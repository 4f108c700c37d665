"""`hawse devices`: the host's PCI functions by IOMMU group, and which of them can be passed."""

from __future__ import annotations

import argparse
import json
import os
from functools import partial
from typing import TYPE_CHECKING, Any

from hawse.container.options import accepted_risks
from hawse.errors import UsageError
from hawse.json_text import parse
from hawse.sandbox.state import Store
from hawse.vfio import inventory, pci_ids
from hawse.vfio.groups import Bar, holders

if TYPE_CHECKING:
    from hawse.cli.settings import Settings

HELP = "list the host's PCI functions by IOMMU group, who has them, and whether they can be passed"


def configure(parser: argparse.ArgumentParser) -> None:
    """The verb's own arguments."""
    parser.add_argument("-j", "--json", action="store_true")


def run(args: argparse.Namespace, settings: Settings, *, root: str = "") -> int:
    """List them; ``root`` is another host."""
    listings = inventory.read(root=root, holders=partial(holders, root=root), accepted=accepted_risks(settings.config))
    functions = [entry.function for listing in listings for entry in listing.entries]
    names = pci_ids.names({(f.vendor, f.device) for f in functions}, root=root)
    sandbox_of = inventory.sandboxes(_monitors(settings.root), root=root)
    found = [_as_json(listing, names, sandbox_of) for listing in listings]
    print(json.dumps(found, indent=2) if args.json else "\n".join(_as_text(group) for group in found))
    return 0


def _as_json(listing: inventory.Listing, names: dict[tuple[int, int], str], sandbox_of: Any) -> dict[str, Any]:
    return {
        "group": listing.number,
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


def _as_text(group: dict[str, Any]) -> str:
    """A group's head, then a line for each function, and what is in the way."""
    head = f"group {group['group']}" if group["group"] is not None else "no group"
    if group["can_be_passed"]:
        head += f"  {group['node'] or 'device files alone'}  can be passed"
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
        lines.append(f"  cannot be passed: {group['reason']} [{group['remedy']}]")
    for user in group["users"]:
        if user["sandbox"]:
            lines.append(f"  in the sandbox {user['sandbox']}")
    return "\n".join(lines)


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
    """The pid of each sandbox's monitor; none where this user cannot read the directory: devices are listed anyway."""
    found: dict[str, int] = {}
    try:
        names = os.listdir(root)
    except OSError:
        return found
    for name in names:
        try:
            with open(f"{Store(root, name).path}/state.json", "rb") as file:
                found[name] = int(parse(file.read()).get("monitorPid", 0))
        except (UsageError, OSError, ValueError, TypeError, AttributeError):
            continue  # nothing of hawse's, or not written yet
    return found
