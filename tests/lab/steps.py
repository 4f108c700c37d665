"""What the lab's tests do in it."""

from __future__ import annotations

import json
from typing import Any

import msgspec

from hawse.plan.model import MachinePlan
from tests.lab.host import Lab
from tests.support.patience import patience
from tests.support.runtime import HAWSE, Result
from tests.support.settings import confined, with_annotations

EDU, PAIR, LONE_NIC = "0000:01:00.0", ["0000:02:00.0", "0000:02:00.1"], "0000:03:00.0"
PHYSICAL, VIRTUAL = "0000:04:00.0", ["0000:04:10.0", "0000:04:10.2"]
NVME, LARGE, ANOTHER_EDU = "0000:05:00.0", "0000:06:00.0", "0000:07:00.0"
#: A group of two behind a conventional bridge, 0000:13:00.0.
CONVENTIONAL = ["0000:14:01.0", "0000:14:02.0"]
_CONFIG = "/tmp/config.toml"
#: The times are limits for a failure: a machine there takes some 16 s. One processor, as the lab has: with two, in one
#: of some thirty guests a processor waited for a lock for ever (kvm_wait() of Linux arch/x86/kernel/kvm.c): QEMU's
#: emulation of KVM's processor lost what wakes it.
MACHINE = "boot_seconds = 300\ndevice_seconds = 120\ncpus = 1\n"
#: The same without KVM, where a machine is emulated in an emulated one.
SLOW_MACHINE = "boot_seconds = 1500\ndevice_seconds = 900\ncpus = 1\n"
#: The limits of a command with VMs of either kind, on this machine.
SECONDS, SLOW_SECONDS = patience(150), patience(450)
#: With addresses that are not kept, most machines are of the one shape that has a template.
SETTINGS = f"[vm]\n{MACHINE}[devices]\nkeep_addresses = false\n"
RUNTIME = [HAWSE, "--config", _CONFIG]

#: Fields of the probe that may differ between runc and hawse: the number of a group is the guest's own. The page sizes
#: of the vIOMMU may not differ, since both the lab and the guest have an Intel IOMMU.
DIFFERENT = {"group"}
#: A host group of several functions is put behind a PCIe-to-PCI bridge, since QEMU needs one requester id for one
#: address space. On that conventional bus each function has a slot of its own and no PCI Express capability (16). Its
#: configuration space has 256 bytes, not 4096. It has no error interrupt (VFIO_PCI_ERR_IRQ_INDEX, 3).
DIFFERENT_BEHIND_A_BRIDGE = DIFFERENT | {"address", "header_type", "capabilities", "regions", "interrupts"}

_MAKE = """
import os, sys
from hawse.vfio import sysfs
from tests.support.bundles import make_probe_bundle
directory, address = sys.argv[1:]
group = sysfs.iommu_group(address)
major, minor = sysfs.group_numbers(group)
make_probe_bundle(directory, group=(f"/dev/vfio/{group}", major, minor))
"""
_SHELL = """
import json, shutil, sys
from hawse.vfio import sysfs
from tests.support.bundles import UNLIMITED, add_devices, make_bundle, write
directory, probe, annotations, network, *addresses = sys.argv[1:]
spec = make_bundle(directory, ["/bin/sh", "-c", "while :; do sleep 3600; done"], rlimits=[UNLIMITED])
for namespace in spec["linux"]["namespaces"]:
    namespace |= {"path": network} if network and namespace["type"] == "network" else {}
shutil.copy(probe, f"{directory}/rootfs/bin/probe")
groups = dict.fromkeys(sysfs.iommu_group(address) for address in addresses)
nodes = [(f"/dev/vfio/{group}", *sysfs.group_numbers(group)) for group in groups]
add_devices(spec, [("/dev/vfio/vfio", 10, 196), *nodes] if nodes else [])
spec["linux"]["readonlyPaths"] = []  # /proc/sysrq-trigger among them
spec["annotations"] = json.loads(annotations)
write(directory, spec)
"""
_MACHINE = """
import sys
import msgspec
from hawse.log import Log
from hawse.config import load_config
from hawse.commands.build_template import plan_of
sys.stdout.buffer.write(msgspec.json.encode(plan_of(load_config(sys.argv[1]), sys.argv[2], log=Log())))
"""
_REBIND = """
import sys, os
address, driver = sys.argv[1:]
device = f"/sys/bus/pci/devices/{address}"
def write(path, text):
    with open(path, "w") as file:
        file.write(text)
write(f"{device}/driver_override", driver or "none")
if os.path.exists(f"{device}/driver"):
    write(f"{device}/driver/unbind", address)
write("/sys/bus/pci/drivers_probe", address)
assert os.path.exists(f"{device}/driver") == bool(driver)
"""
_UNCHANGED = """
import json, sys
from tests.support.host import prove_unchanged
prove_unchanged({kind: set(found) for kind, found in json.loads(sys.argv[1]).items()})
"""


def configure(lab: Lab, text: str = SETTINGS, path: str = _CONFIG) -> None:
    """Write a configuration, RUNTIME's if no other. Every annotation is allowed."""
    result = lab.python("import sys; open(sys.argv[1], 'w').write(sys.argv[2])", path, confined(with_annotations(text)))
    assert result.code == 0, result.errors


def hawse(lab: Lab, *words: str, timeout: float = SECONDS) -> Result:
    """Run RUNTIME."""
    return lab.run([*RUNTIME, *words], timeout=timeout)


def make_bundle(lab: Lab, name: str, address: str) -> str:
    """A probe bundle in the lab for the group of a function; its directory there."""
    directory = f"/tmp/bundles/{name}"
    result = lab.python(_MAKE, directory, address)
    configure(lab)
    assert result.code == 0, result.errors
    return directory


def make_shell_bundle(
    lab: Lab, name: str, *addresses: str, probe: str, annotations: dict[str, str], network: str = ""
) -> str:
    """A bundle whose container waits, and has the probe and the groups of these functions; its directory there.

    ``network`` is the path of a namespace, "" for a new one.
    """
    directory = f"/tmp/bundles/{name}"
    result = lab.python(_SHELL, directory, probe, json.dumps(annotations), network, *addresses)
    configure(lab)
    assert result.code == 0, result.errors
    return directory


def leave_template(lab: Lab, bundle: str, path: str = _CONFIG) -> None:
    """Have the lab know the template of the machine that this bundle gets there; ``path`` is the configuration's."""
    planned = lab.python(_MACHINE, path, bundle)
    assert planned.code == 0, planned
    lab.leave_template(msgspec.json.decode(planned.output, type=MachinePlan))


def snapshot(lab: Lab) -> str:
    """What a sandbox could leave behind there, for :func:`prove_unchanged`."""
    text = "import json; from tests.support.host import snapshot; "
    text += "print(json.dumps({kind: sorted(found) for kind, found in snapshot().items()}))"
    return lab.python(text).output


def prove_unchanged(lab: Lab, before: str) -> None:
    """Raise AssertionError with what differs: drivers and their overrides, open groups, processes, mounts, cgroups."""
    result = lab.python(_UNCHANGED, before)
    assert result.code == 0, result.errors


def rebind(lab: Lab, address: str, driver: str) -> None:
    """Move a function to another driver, or to none for ""."""
    result = lab.python(_REBIND, address, driver)
    assert result.code == 0, result.errors


def refused(lab: Lab, bundle: str) -> str:
    """The sentence with which `hawse create` refuses the bundle; nothing may be left of it."""
    before = snapshot(lab)
    result = lab.run([*RUNTIME, "create", "--bundle", bundle, "refused"])
    assert result.code == 1, result
    prove_unchanged(lab, before)
    assert lab.run([*RUNTIME, "list", "--quiet"]).output == ""
    return result.errors


def group_of(lab: Lab, address: str) -> int:
    """The number of a function's group in the lab."""
    result = lab.python(f"from hawse.vfio import sysfs; print(sysfs.iommu_group({address!r}))")
    return int(result.output)


def read_json(text: str) -> dict[str, Any]:
    """The probe's object."""
    seen: dict[str, Any] = json.loads(text)
    return seen
