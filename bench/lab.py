"""On the lab's real groups: a warm start over a bare boot, and attaching by the guest's memory, locked and timed.

The lab is itself a machine without KVM: everything in it takes some twenty times longer.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile

from bench.common import Measured
from tests.lab.host import Lab
from tests.lab.steps import EDU, group_of
from tests.support.runtime import HAWSE, Result

ROUNDS = 2
_TIMEOUT = 600.0
_MAPPED_MIB = 64
_TOP = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))

_BUNDLE = """
import shutil, sys
from hawse.vfio import sysfs
from tests.support.bundles import UNLIMITED, add_devices, make_bundle, write
directory, address, program, *argv = sys.argv[1:]
group = sysfs.iommu_group(address)
numbers = sysfs.group_numbers(group)
spec = make_bundle(directory, argv, rlimits=[UNLIMITED])
shutil.copy(program, f"{directory}/rootfs/bin/map")
add_devices(spec, [("/dev/vfio/vfio", 10, 196), (f"/dev/vfio/{group}", *numbers)])
write(directory, spec)
"""
_LOCKED = """
import os
for pid in filter(str.isdigit, os.listdir("/proc")):
    try:
        lines = open(f"/proc/{pid}/status").read().splitlines()
    except OSError:
        continue
    if lines[0].endswith("qemu-system-x86"):
        print(next(line.split()[1] for line in lines if line.startswith("VmLck:")))
"""
_FLOOR = "from bench.common import bare_boot; print(bare_boot())"
_FIRST_LINE = "import sys; from bench.common import first_line; print(first_line(sys.argv[1:]))"
_STEPS = "import json, sys; from bench.common import steps_of; print(json.dumps(steps_of(sys.argv[1])))"


def measure() -> Measured:
    """The lab sees this machine's templates: only that of four gibibytes has to be built there."""
    with tempfile.TemporaryDirectory(prefix="hawse-bench-") as directory:
        mapper = f"{directory}/map"
        source = f"{_TOP}/tests/lab/probe/map.c"
        subprocess.run(["gcc", "-static", "-O2", "-Wall", "-Werror", "-o", mapper, source], check=True)
        subprocess.run([HAWSE, "template", "build"], check=True, stdout=subprocess.DEVNULL)
        big = f"{directory}/4gib.toml"
        with open(big, "w") as file:
            file.write("[vm]\nmemory_mib = 4096\n")
        subprocess.run([HAWSE, "--config", big, "template", "build"], check=True, stdout=subprocess.DEVNULL)
        with Lab(directory) as lab:
            group = group_of(lab, EDU)
            _checked(lab.python(_BUNDLE, "/run/b1", EDU, mapper, "/bin/sh", "-c",
                                f"exec 3<>/dev/vfio/{group} && echo opened"))  # fmt: skip
            _checked(lab.python(_BUNDLE, "/run/b2", EDU, mapper, "/bin/sleep", "100000"))
            starts = [HAWSE, "run", "--bundle", "/run/b1"]
            _checked(lab.run([*starts, "warm-up"], timeout=_TIMEOUT))  # reads the template's content once
            floor, warm = [], []
            for number in range(ROUNDS):
                _say(f"start {number + 1} of {ROUNDS}")
                floor.append(float(_checked(lab.python(_FLOOR, timeout=_TIMEOUT)).output))
                argv = [*starts, "--timeline", "/tmp/warm.json", f"c{number}"]
                warm.append(float(_checked(lab.python(_FIRST_LINE, *argv, timeout=_TIMEOUT)).output))
            steps = json.loads(_checked(lab.python(_STEPS, "/tmp/warm.json")).output)
            small_attach, small_locked = _attach(lab, ["--config", "/dev/null"], group)
            big_attach, big_locked = _attach(lab, ["--config", big], group)
    figures = {
        "warm_start_nested_over_bare_boot_nested": round(_median(warm) / _median(floor), 3),
        "attach_4gib_over_1gib": round(_median(big_attach) / _median(small_attach), 3),
        "locked_kib_by_attach": float(big_locked["attached"]),
    }
    detail = {
        "bare_boot_s": floor, "warm_first_line_s": warm, "warm_steps_s": steps,
        "attach_s": {"1 GiB": small_attach, "4 GiB": big_attach},
        "locked_kib": {"1 GiB": small_locked, "4 GiB": big_locked}, "mapped_mib": _MAPPED_MIB,
    }  # fmt: skip
    notes = ["Locked memory of QEMU in the lab, KiB:", "", "| guest | by attaching | mapped by the application |"]
    notes += ["|---|---|---|"]
    for name, locked in (("1 GiB", small_locked), ("4 GiB", big_locked)):
        notes.append(f"| {name} | {locked['attached']} | {locked['mapped']} ({_MAPPED_MIB} MiB mapped) |")
    return Measured(figures, detail, notes)


def _attach(lab: Lab, options: list[str], group: int) -> tuple[list[float], dict[str, int]]:
    """Seconds of each attachment, and KiB locked by it and by an application's mapping after it."""
    seconds = []
    locked = {"attached": 0, "mapped": 0}
    hawse = [HAWSE, *options]
    for number in range(ROUNDS):
        _say(f"attachment {number + 1} of {ROUNDS} {' '.join(options)}")
        name = f"a{number}"
        argv = [*hawse, "run", "--detach", "--bundle", "/run/b2", "--timeline", "/tmp/attach.json", name]
        _checked(lab.run(argv, timeout=_TIMEOUT))
        began, ended = json.loads(_checked(lab.python(_STEPS, "/tmp/attach.json")).output)["devices: attached"]
        seconds.append(ended - began)
        locked["attached"] = max(locked["attached"], _locked(lab))
        if number == 0:
            # It maps, says so, and holds what it mapped until the container ends.
            script = "(sleep 100000 | map $0 $1 $2 >/tmp/said) & until grep -q mapped /tmp/said; do sleep 1; done"
            words = [f"/dev/vfio/{group}", str(_MAPPED_MIB), _address(lab, name)]
            _checked(lab.run([*hawse, "exec", name, "/bin/sh", "-c", script, *words], timeout=_TIMEOUT))
            locked["mapped"] = _locked(lab)
        _checked(lab.run([*hawse, "delete", "--force", name], timeout=_TIMEOUT))
    return seconds, locked


def _address(lab: Lab, name: str) -> str:
    """The device's address in the guest."""
    functions = "/sys/kernel/iommu_groups/*/devices/*"
    script = f"for f in {functions}; do [ $(cat $f/vendor) = 0x1234 ] && echo ${{f##*/}}; done; true"
    return _checked(lab.run([HAWSE, "exec", name, "/bin/sh", "-c", script], timeout=_TIMEOUT)).output.strip()


def _locked(lab: Lab) -> int:
    return int(_checked(lab.python(_LOCKED)).output)


def _say(text: str) -> None:
    """This takes a quarter of an hour."""
    print(f"   {text}", file=sys.stderr, flush=True)


def _checked(result: Result) -> Result:
    assert result.code == 0, result
    return result


def _median(values: list[float]) -> float:
    return sorted(values)[len(values) // 2]
