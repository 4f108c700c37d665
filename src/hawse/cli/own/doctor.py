"""`hawse doctor`: is this host ready, and if not, what to do."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from typing import TYPE_CHECKING

from hawse.commands.delete import delete
from hawse.config import Config
from hawse.doctor import host, machine
from hawse.doctor.check import MISSING, Finding, is_ready, without_devices
from hawse.errors import HawseError
from hawse.planner.devices.options import accepted_risks
from hawse.state.store import Store
from hawse.vfio.bind import bind as binding
from hawse.vfio.bind import records
from hawse.vfio.bind.driver_moves import REAL
from hawse.vfio.host import locked_memory
from hawse.vm.host_hugepages import KIB

if TYPE_CHECKING:
    from hawse.cli.settings import Settings
    from hawse.vfio.bind.driver_moves import Effects

HELP = (
    "say whether this host is ready for containers and for passing its devices, and what to do where it is not; "
    "the exit status is 0 where nothing needed is missing. With emulated groups in the configuration the host's own "
    "devices are not needed"
)


def configure(parser: argparse.ArgumentParser) -> None:
    """The verb's own arguments."""
    parser.add_argument("-j", "--json", action="store_true")
    parser.add_argument("--repair", action="store_true", help="clear away what monitors that died have left")


def run(args: argparse.Namespace, settings: Settings, *, root: str = "", effects: Effects = REAL) -> int:
    """Look at everything; ``root`` and ``effects`` are another host."""
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
    findings += look(config, settings.root, root=root)
    ready = is_ready(findings, devices=not config.emulated)
    if args.json:
        print(json.dumps({"ready": ready, "checks": [asdict(finding) for finding in findings]}, indent=2))
    else:
        print("\n".join(map(_line, findings)))
        print("\nready" if ready else "\nnot ready")
    return 0 if ready else 1


def look(config: Config, state: str, *, root: str = "") -> list[Finding]:
    """All checks, in the order of what depends on what."""
    accepted = accepted_risks(config)
    found = [
        machine.state_directory(state),
        machine.qemu(config),
        machine.guest_image(config),
        machine.acceleration(config),
        machine.sharing(config),
        machine.jail(config),
        machine.templates(config),
        host.iommu(root=root),
        host.interrupts(accepted=accepted.unsafe_interrupts, root=root),
        host.vfio(root=root),
        host.groups(accepted=accepted, root=root),
        host.locked_memory(*locked_memory.read(), confined=config.vm.confine != "off"),
        host.dma_mappings(config.vm.memory_mib, root=root),
        host.dma_addresses(root=root),
        host.hugepages(page_kib=KIB.get(config.vm.hugepages, 0), memory_mib=config.vm.memory_mib, root=root),
        machine.left_over(state)[0],
        machine.left_bound(state)[0],
    ]
    return [without_devices(finding) for finding in found] if config.emulated else found


def _repair(state: str, *, root: str, effects: Effects) -> list[str]:
    """Undo what is left; what was done, or why it could not be.

    A sandbox whose functions cannot be given back stays, and is told of until they can.
    """
    said = []
    directory = records.directory_of(state)
    stuck = set()
    for record in machine.left_bound(state)[1]:
        try:
            binding.give_back([record], directory=directory, root=root, effects=effects)
            said.append(f"gave {record.address} back to {record.driver or 'no driver'}")
        except HawseError as error:
            stuck.add(record.owner)
            said.append(error.sentence())
    for name in machine.left_over(state)[1]:
        if name in stuck:
            continue
        try:
            delete(Store(state, name), force=True)
            said.append(f"deleted what was left of the sandbox {name}")
        except HawseError as error:
            said.append(f"sandbox {name}: {error.sentence()}")
    return said


def _line(finding: Finding) -> str:
    mark = {"ok": "ok     ", "warning": "warning", "missing": "MISSING"}[finding.verdict]
    remedy = f"\n{'':9}[{finding.remedy}]" if finding.remedy else ""
    return f"{mark}  {finding.name}: {finding.found}{remedy}"
