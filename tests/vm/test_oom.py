"""An OOM kill in the guest, as engines see it on the host.

This host's cgroups may be of version 1, so a guest with cgroups of version 2 acts as the host.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

import hawse
from tests.support.bundles import make_bundle, write
from tests.support.runtime import Runtime

pytestmark = pytest.mark.vm

PROGRAM = Path(__file__).with_name("oom_inside.py")
NEEDED = ("CAP_SYS_ADMIN", "CAP_DAC_OVERRIDE", "CAP_KILL")


def test_cgroup_counts_the_kill_and_is_otherwise_unchanged(runtime: Runtime, tmp_path: Path) -> None:
    path = str(tmp_path / "bundle")
    capabilities = {kind: list(NEEDED) for kind in ("bounding", "effective", "permitted")}
    spec = make_bundle(path, ["/usr/bin/python3", "/program.py"], capabilities=capabilities)
    shutil.copy(PROGRAM, f"{path}/rootfs/program.py")
    sources = {"/hawse": os.path.dirname(os.path.dirname(os.path.abspath(hawse.__file__)))}
    for target, source in (sources | {name: name for name in ("/usr", "/lib", "/lib64")}).items():
        os.mkdir(f"{path}/rootfs{target}")
        spec["mounts"].append({"type": "bind", "source": source, "destination": target, "options": ["rbind", "ro"]})
    for mount in spec["mounts"]:
        if mount["type"] == "cgroup":
            mount["options"] = ["rw"]
    spec["linux"]["readonlyPaths"] = []
    write(path, spec)
    result = runtime("run", "--bundle", path, "c1", seconds=80)
    assert result.code == 0, result
    seen: dict[str, Any] = json.loads(result.output)
    as_it_was = {"members": True, "children": [], "given": [], "lives": True, "kills": 0, "own": 0}
    assert seen == {
        "warnings": [],
        "fit": "",
        "before": as_it_was,
        "early": False,
        "failure": ["No such file or directory", as_it_was, False],
        "after": as_it_was | {"kills": 1},
        "limits": [[str(1 << 29)], ["4096"], ["150000", "100000"]],
        "told": True,
        "unfit": "it has children",
        "released": [[], False],
    }
