"""`hawse features` against the real capabilities of a container."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from hawse.cli.runc.features import FEATURES
from hawse.oci.capabilities import CAPABILITIES
from tests.support.bundles import make_bundle, write
from tests.support.runtime import Runtime

pytestmark = pytest.mark.vm


def mount(option: str, target: str, source: str) -> dict[str, Any]:
    """A mount with only this option, and the file that the option needs."""
    if option in ("bind", "rbind"):
        return {"destination": target, "type": "bind", "source": source, "options": [option]}
    if option in ("idmap", "ridmap"):
        maps = [{"containerID": 0, "hostID": 1000, "size": 1000}]
        bound = {"destination": target, "type": "bind", "source": source, "options": ["bind", option]}
        return bound | {"uidMappings": maps, "gidMappings": maps}
    return {"destination": target, "type": "tmpfs", "source": "tmpfs", "options": [option]}


def test_every_listed_mount_option_works(runtime: Runtime, tmp_path: Path) -> None:
    bundle = str(tmp_path / "bundle")
    spec = make_bundle(bundle, ["/bin/sh", "-c", "grep -c /data/ /proc/self/mountinfo"])
    for option in FEATURES["mountOptions"]:
        os.mkdir(f"{bundle}/rootfs/data/{option}")
        spec["mounts"].append(mount(option, f"/data/{option}", str(tmp_path)))
    write(bundle, spec)
    result = runtime("run", "--bundle", bundle, "c1")
    assert (result.code, result.output) == (0, f"{len(FEATURES['mountOptions'])}\n"), result.errors
    spec["mounts"].append(mount("nonsense", "/data/ro", ""))
    write(bundle, spec)
    assert runtime("run", "--bundle", bundle, "c1").code == 1, "an unknown option is detected"


def test_listed_capabilities_are_exactly_those_of_the_guest(runtime: Runtime, tmp_path: Path) -> None:
    bundle = str(tmp_path / "bundle")
    sets = dict.fromkeys(("bounding", "effective", "permitted", "inheritable"), CAPABILITIES)
    script = "cat /proc/sys/kernel/cap_last_cap; grep CapEff /proc/self/status"
    make_bundle(bundle, ["/bin/sh", "-c", script], capabilities=sets)
    result = runtime("run", "--bundle", bundle, "c1")
    assert result.code == 0, result.errors
    last, effective = result.output.splitlines()
    assert int(last) == len(CAPABILITIES) - 1
    assert int(effective.split()[1], 16) == 2 ** len(CAPABILITIES) - 1


def test_every_listed_seccomp_value_works(runtime: Runtime, tmp_path: Path) -> None:
    bundle = str(tmp_path / "bundle")
    spec = make_bundle(bundle, ["/bin/sh", "-c", "cat /proc/self/status | grep Seccomp:; chmod 700 /data"])
    seccomp = FEATURES["linux"]["seccomp"]
    names = ["acct", "swapon", "swapoff", "reboot", "sethostname", "setdomainname", "quotactl", "syslog"]
    rules: list[dict[str, Any]] = [
        {"names": [name], "action": action} for name, action in zip(names, seccomp["actions"], strict=True)
    ]
    # libseccomp refuses a rule without effect.
    rules = [rule for rule in rules if rule["action"] != "SCMP_ACT_ALLOW"]
    rules += [
        {"names": ["personality"], "action": "SCMP_ACT_ERRNO", "args": [{"index": n % 6, "value": 77, "op": op}]}
        for n, op in enumerate(seccomp["operators"])
    ]
    rules.append({"names": ["chmod", "fchmod", "fchmodat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 42})
    spec["linux"]["seccomp"] = {
        "defaultAction": "SCMP_ACT_ALLOW", "architectures": seccomp["archs"], "syscalls": rules,
    }  # fmt: skip
    write(bundle, spec)
    result = runtime("run", "--bundle", bundle, "c1")
    assert result.code != 0, "chmod is refused"
    assert result.output.split() == ["Seccomp:", "2"], result.errors
    spec["linux"]["seccomp"]["syscalls"][0]["action"] = "SCMP_ACT_NONSENSE"
    write(bundle, spec)
    assert "SCMP_ACT_NONSENSE" in runtime("run", "--bundle", bundle, "c1").errors
