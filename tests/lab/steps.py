"""Steps that tests of the lab share: bundles, configurations, snapshots and drivers in the lab."""

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
#: A group of two functions behind the conventional bridge 0000:13:00.0.
CONVENTIONAL = ["0000:14:01.0", "0000:14:02.0"]
_CONFIG = "/tmp/config.toml"
#: Settings of VMs in the lab. The times are limits for a failure: a VM takes about 16 s. VMs and lab have one CPU each.
#: With two, a CPU of about one in thirty guests waited for a lock forever (kvm_wait() of Linux arch/x86/kernel/kvm.c),
#: since the emulated CPU of KVM lost the wake-up.
MACHINE = "boot_seconds = 300\ndevice_seconds = 120\ncpus = 1\n"
#: The same for VMs without KVM, which are emulated in an emulated host.
SLOW_MACHINE = "boot_seconds = 1500\ndevice_seconds = 900\ncpus = 1\n"
#: The time limits of commands with VMs of both kinds.
SECONDS, SLOW_SECONDS = patience(150), patience(450)
#: Without kept addresses, one template fits most VMs.
SETTINGS = f"[vm]\n{MACHINE}[devices]\nkeep_addresses = false\n"
RUNTIME = [HAWSE, "--config", _CONFIG]

#: Fields of the probe's report that may differ between runc and hawse: the guest kernel numbers its groups itself. The
#: page sizes of the vIOMMU must be equal, since both the lab and the guest use an Intel IOMMU.
DIFFERENT = {"group"}
#: A host group of several functions is put behind a PCIe-to-PCI bridge, since QEMU needs one requester id for one
#: address space. On that conventional bus each function is in a separate slot and has no PCI Express capability (16).
#: Its configuration space has 256 bytes, not 4096. It has no error interrupt (VFIO_PCI_ERR_IRQ_INDEX, 3).
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
spec["linux"]["readonlyPaths"] = []  # so that /proc/sysrq-trigger is writable
spec["annotations"] = json.loads(annotations)
write(directory, spec)
"""
_MACHINE = """
import sys
import msgspec
from hawse.log import Log
from hawse.config import load_config
from hawse.commands.build_template import plan_vm
machine, notes = plan_vm(load_config(sys.argv[1]), sys.argv[2])
Log().tell(notes)
sys.stdout.buffer.write(msgspec.json.encode(machine))
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
prove_unchanged({kind: set(traces) for kind, traces in json.loads(sys.argv[1]).items()})
"""


def configure(lab: Lab, text: str = SETTINGS, path: str = _CONFIG) -> None:
    """Write a configuration, by default the one of RUNTIME. Every annotation is allowed."""
    result = lab.python("import sys; open(sys.argv[1], 'w').write(sys.argv[2])", path, confined(with_annotations(text)))
    assert result.code == 0, result.errors


def hawse(lab: Lab, *words: str, timeout: float = SECONDS) -> Result:
    """Run a command of RUNTIME."""
    return lab.run([*RUNTIME, *words], timeout=timeout)


def make_bundle(lab: Lab, name: str, address: str) -> str:
    """Create a bundle with the probe in the lab for the group of a function; returns its directory."""
    directory = f"/tmp/bundles/{name}"
    result = lab.python(_MAKE, directory, address)
    configure(lab)
    assert result.code == 0, result.errors
    return directory


def make_shell_bundle(
    lab: Lab, name: str, *addresses: str, probe: str, annotations: dict[str, str], network: str = ""
) -> str:
    """Create a bundle whose container runs until it is killed, with the probe and the groups of these functions.

    ``network``: the path of a network namespace, "" for a new one. Returns the directory of the bundle.
    """
    directory = f"/tmp/bundles/{name}"
    result = lab.python(_SHELL, directory, probe, json.dumps(annotations), network, *addresses)
    configure(lab)
    assert result.code == 0, result.errors
    return directory


def leave_template(lab: Lab, bundle: str, path: str = _CONFIG) -> None:
    """Build the template for the VM of this bundle, and pass it to the lab. ``path``: the configuration."""
    planned = lab.python(_MACHINE, path, bundle)
    assert planned.code == 0, planned
    lab.leave_template(msgspec.json.decode(planned.output, type=MachinePlan))


def snapshot(lab: Lab) -> str:
    """Take a snapshot of everything that a sandbox could leave behind in the lab, for :func:`prove_unchanged`."""
    text = "import json; from tests.support.host import snapshot; "
    text += "print(json.dumps({kind: sorted(traces) for kind, traces in snapshot().items()}))"
    return lab.python(text).output


def prove_unchanged(lab: Lab, before: str) -> None:
    """Raise AssertionError with the differences in drivers, overrides, open groups, processes, mounts and cgroups."""
    result = lab.python(_UNCHANGED, before)
    assert result.code == 0, result.errors


def rebind(lab: Lab, address: str, driver: str) -> None:
    """Bind a function to another driver, or unbind it for ""."""
    result = lab.python(_REBIND, address, driver)
    assert result.code == 0, result.errors


def refused(lab: Lab, bundle: str) -> str:
    """Run `hawse create`, which must refuse the bundle and leave nothing; returns its error."""
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
    """The report of the probe."""
    seen: dict[str, Any] = json.loads(text)
    return seen
