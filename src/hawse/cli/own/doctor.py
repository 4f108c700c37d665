"""`hawse doctor`: check what this host is ready for, and name the remedy for each problem."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from typing import TYPE_CHECKING

from hawse.commands.delete import delete
from hawse.config import Config
from hawse.doctor import host, requirements
from hawse.doctor.check import MISSING, READY, Finding, readiness, without_devices
from hawse.errors import HawseError
from hawse.planner.devices.device_options import accepted_risks
from hawse.state.store import Store
from hawse.vfio.bind import bind as binding
from hawse.vfio.bind import records, targets
from hawse.vfio.bind.driver_moves import REAL
from hawse.vfio.host import locked_memory
from hawse.vm.host_hugepages import KIB

if TYPE_CHECKING:
    from hawse.cli.settings import Settings
    from hawse.vfio.bind.driver_moves import Effects
    from hawse.vfio.bind.records import Record

HELP = (
    "check whether this host is ready for containers and for passing its devices, and name a remedy for each problem. "
    "The exit status is 0 if the host is ready for both, or for containers if the configuration declares emulated "
    "groups; 2 if it is ready for containers, but not for its devices; 1 if it is not ready for containers"
)


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of this verb."""
    parser.add_argument("-j", "--json", action="store_true")
    parser.add_argument("--repair", action="store_true", help="first clean up after monitors that have died")


def run(args: argparse.Namespace, settings: Settings, *, root: str = "", effects: Effects = REAL) -> int:
    """Run all checks and print the report. Tests pass another host as ``root`` and ``effects``."""
    if args.repair:
        for line in _repair(settings.root, root=root, effects=effects):
            print(line)
    try:
        config = settings.config
        findings = [Finding("configuration", "ok", "can be read")]
    except HawseError as error:
        config = Config()
        remedy = error.hint or "correct that in the file"
        findings = [Finding("configuration", MISSING, error.message, remedy, needed="containers")]
    findings += check_all(config, settings.root, root=root)
    ready = readiness(findings, emulated=bool(config.emulated))
    if ready.emulated and ready.devices:
        findings = without_devices(findings)
    if args.json:
        document = {
            "ready": ready.status == READY,
            "ready_for": {"containers": not ready.containers, "devices": not ready.containers and not ready.devices},
            "checks": [asdict(finding) for finding in findings],
        }
        print(json.dumps(document, indent=2))
    else:
        print("\n".join(map(_line, findings)))
        print(f"\n{ready.sentence}")
    return ready.status


def check_all(config: Config, state: str, *, root: str = "") -> list[Finding]:
    """Run all checks; a check comes after those that it depends on."""
    accepted = accepted_risks(config)
    confined = config.vm.confine != "off"
    return [
        requirements.state_directory(state),
        requirements.qemu(config),
        requirements.guest_image(config),
        requirements.acceleration(config),
        requirements.sharing(config),
        requirements.jail(config),
        requirements.templates(config),
        host.iommu(root=root),
        host.interrupts(accepted=accepted.unsafe_interrupts, root=root),
        host.vfio(root=root),
        host.groups(accepted=accepted, root=root),
        host.locked_memory(*locked_memory.read(), confined=confined, root=root),
        host.dma_mappings(config.vm.memory_mib, root=root),
        host.dma_addresses(root=root),
        host.hugepages(page_kib=KIB.get(config.vm.hugepages, 0), memory_mib=config.vm.memory_mib, root=root),
        requirements.left_over(state)[0],
        requirements.left_bound(state, root=root)[0],
    ]


def _repair(state: str, *, root: str, effects: Effects) -> list[str]:
    """Clean up after dead monitors. Returns a line for each repair and for each failure.

    A sandbox is not deleted while a function that was bound for it cannot be restored: it is reported until then.
    """
    lines = []
    directory = records.directory_of(state)
    stuck = set()
    for record in requirements.left_bound(state, root=root)[1]:
        try:
            line = _restored(record, root)
            binding.restore_drivers([record], directory=directory, root=root, effects=effects)
            lines.append(line)
        except HawseError as error:
            stuck.add(record.owner)
            lines.append(error.sentence())
    for name in requirements.left_over(state)[1]:
        if name in stuck:
            continue
        try:
            delete(Store(state, name), force=True)
            lines.append(f"sandbox {name}: deleted")
        except HawseError as error:
            lines.append(f"sandbox {name}: {error.sentence()}")
    return lines


def _restored(record: Record, root: str) -> str:
    """The line about the repair of a function's binding, written before the repair."""
    if not targets.exists(record.address, root=root):
        return f"{record.address}: no longer on this host; its record is deleted"
    if not record.driver:
        return f"{record.address}: unbound from {record.vfio}; it had no driver before"
    return f"{record.address}: bound to its driver {record.driver} again"


def _line(finding: Finding) -> str:
    mark = {"ok": "ok     ", "warning": "warning", "missing": "MISSING"}[finding.verdict]
    remedy = f"\n{'':9}[{finding.remedy}]" if finding.remedy else ""
    return f"{mark}  {finding.sentence}{remedy}"
