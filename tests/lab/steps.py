"""What the lab's tests do in it."""

from __future__ import annotations

import json
from typing import Any

from tests.lab.host import Lab
from tests.support.runtime import HAWSE

EDU, PAIR, LONE_NIC = "0000:01:00.0", ["0000:02:00.0", "0000:02:00.1"], "0000:03:00.0"
_CONFIG = "/tmp/config.toml"
#: With addresses that are not kept, most machines are of the one shape whose template this machine has already.
_SETTINGS = "[devices]\nkeep_addresses = false\n"
RUNTIME = [HAWSE, "--config", _CONFIG]

_MAKE = """
import os, sys
from hawse.vfio import sysfs
from tests.support.bundles import make_probe_bundle
directory, address = sys.argv[1:]
group = sysfs.iommu_group(address)
major, minor = sysfs.group_numbers(group)
make_probe_bundle(directory, group=(f"/dev/vfio/{group}", major, minor))
"""


def configure(lab: Lab) -> None:
    """Write RUNTIME's configuration."""
    result = lab.python("import sys; open(sys.argv[1], 'w').write(sys.argv[2])", _CONFIG, _SETTINGS)
    assert result.code == 0, result.errors


def make_bundle(lab: Lab, name: str, address: str) -> str:
    """A probe bundle in the lab for the group of a function; its directory there."""
    directory = f"/tmp/bundles/{name}"
    result = lab.python(_MAKE, directory, address)
    configure(lab)
    assert result.code == 0, result.errors
    return directory


def group_of(lab: Lab, address: str) -> int:
    """The number of a function's group in the lab."""
    result = lab.python(f"from hawse.vfio import sysfs; print(sysfs.iommu_group({address!r}))")
    return int(result.output)


def read_json(text: str) -> dict[str, Any]:
    """The probe's object."""
    seen: dict[str, Any] = json.loads(text)
    return seen
