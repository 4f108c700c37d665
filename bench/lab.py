"""With the lab's real groups: a warm start over a bare boot; time and locked memory of attaching, by guest memory.

The lab is a VM that itself runs without KVM, but provides KVM to its guests.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile

from bench.common import Measured
from tests.lab.host import Lab
from tests.lab.steps import EDU, MACHINE, configure, group_of
from tests.support.runtime import HAWSE, Result

ROUNDS = 5
ATTACHMENTS = 7
_TIMEOUT = 600.0
_MAPPED_MIB = 64
_TOP = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))

_BUNDLE = """
import shutil, sys
from hawse.vfio import sysfs
from tests.support.bundles import UNLIMITED, add_devices, make_bundle, write
directory, address, program, *argv = sys.argv[1:]
spec = make_bundle(directory, argv, rlimits=[UNLIMITED])
shutil.copy(program, f"{directory}/rootfs/bin/map")
if address:
    group = sysfs.iommu_group(address)
    add_devices(spec, [("/dev/vfio/vfio", 10, 196), (f"/dev/vfio/{group}", *sysfs.group_numbers(group))])
write(directory, spec)
"""
_LOCKED = """
import os
from tests.support.processes import all_pids, status_of
def locked():
    most = 0
    for status in map(status_of, all_pids()):
        if status.get("Name") == "qemu-system-x86":
            most = max(most, int(status["VmLck"].split()[0]))
    return most
"""
#: Calls the monitor's socket as the commands do, without the start of a command, which does not depend on the guest's
#: memory.
_ROUNDS = (
    _LOCKED
    + """
import json, sys, time
from hawse.config import load_config
from hawse.commands.attach import prepare
from hawse.commands.client import call
from hawse.state.store import Store
name, group, config, rounds = sys.argv[1:]
store = Store("/run/hawse", name)
[attachment] = prepare(store, [group], load_config(config))[0]
seconds, most = [], 0
for number in range(int(rounds)):
    began = time.monotonic()
    call(store, "attach", attachment)
    seconds.append(time.monotonic() - began)
    most = max(most, locked())
    if number < int(rounds) - 1:
        call(store, "detach", {"group": int(group), "force": False})
print(json.dumps([seconds, most]))
"""
)
_FLOOR = "import sys; from bench.common import bare_boot; print(bare_boot(open(sys.argv[1]).read()))"
_FIRST_LINE = "import sys; from bench.common import first_line; print(first_line(sys.argv[1:]))"
_STEPS = "import json, sys; from bench.common import steps_of; print(json.dumps(steps_of(sys.argv[1])))"


def measure() -> Measured:
    """Measure warm starts, and the time and the locked memory of attaching."""
    with tempfile.TemporaryDirectory(prefix="hawse-bench-") as directory:
        mapper = f"{directory}/map"
        source = f"{_TOP}/tests/lab/probe/map.c"
        subprocess.run(["gcc", "-static", "-O2", "-Wall", "-Werror", "-o", mapper, source], check=True)
        small, big = "/run/1gib.toml", "/run/4gib.toml"
        with Lab(directory) as lab:
            for config, memory in ((small, 1024), (big, 4096)):
                configure(lab, f"[vm]\n{MACHINE}memory_mib = {memory}\n[devices]\nkeep_addresses = false\n", config)
                _checked(lab.run([HAWSE, "--config", config, "template", "build"], timeout=_TIMEOUT))
            group = group_of(lab, EDU)
            _checked(lab.python(_BUNDLE, "/run/b1", EDU, mapper, "/bin/sh", "-c",
                                f"exec 3<>/dev/vfio/{group} && echo opened"))  # fmt: skip
            _checked(lab.python(_BUNDLE, "/run/b2", "", mapper, "/bin/sleep", "100000"))
            starts = [HAWSE, "--config", small, "run", "--bundle", "/run/b1"]
            _checked(lab.run([*starts, "warm-up"], timeout=_TIMEOUT))  # reads the template's content once
            floor, warm = [], []
            for number in range(ROUNDS):
                _say(f"start {number + 1} of {ROUNDS}")
                floor.append(float(_checked(lab.python(_FLOOR, small, timeout=_TIMEOUT)).output))
                argv = [*starts, "--timeline", "/tmp/warm.json", f"c{number}"]
                warm.append(float(_checked(lab.python(_FIRST_LINE, *argv, timeout=_TIMEOUT)).output))
            steps = json.loads(_checked(lab.python(_STEPS, "/tmp/warm.json")).output)
            small_attach, small_locked = _attach(lab, small, group)
            big_attach, big_locked = _attach(lab, big, group)
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


def _attach(lab: Lab, config: str, group: int) -> tuple[list[float], dict[str, int]]:
    """Seconds of each attachment to one container; KiB locked by attaching, and by an application's later mapping."""
    _say(f"attachments with {os.path.basename(config)}")
    hawse = [HAWSE, "--config", config]
    _checked(lab.run([*hawse, "run", "--detach", "--bundle", "/run/b2", "a1"], timeout=_TIMEOUT))
    rounds = _checked(lab.python(_ROUNDS, "a1", str(group), config, str(ATTACHMENTS), timeout=_TIMEOUT))
    seconds, attached = json.loads(rounds.output)
    # `map` maps memory, prints a line, and keeps the mapping until the container ends.
    script = "(sleep 100000 | map $0 $1 $2 >/tmp/said) & until grep -q mapped /tmp/said; do sleep 1; done"
    words = [f"/dev/vfio/{group}", str(_MAPPED_MIB), _address(lab, "a1")]
    _checked(lab.run([*hawse, "exec", "a1", "/bin/sh", "-c", script, *words], timeout=_TIMEOUT))
    locked = {"attached": attached, "mapped": int(_checked(lab.python(f"{_LOCKED}\nprint(locked())")).output)}
    _checked(lab.run([*hawse, "delete", "--force", "a1"], timeout=_TIMEOUT))
    return seconds, locked


def _address(lab: Lab, name: str) -> str:
    """The device's address in the guest."""
    functions = "/sys/kernel/iommu_groups/*/devices/*"
    script = f"for f in {functions}; do [ $(cat $f/vendor) = 0x1234 ] && echo ${{f##*/}}; done; true"
    return _checked(lab.run([HAWSE, "exec", name, "/bin/sh", "-c", script], timeout=_TIMEOUT)).output.strip()


def _say(text: str) -> None:
    """Report progress, since this takes minutes."""
    print(f"   {text}", file=sys.stderr, flush=True)


def _checked(result: Result) -> Result:
    assert result.code == 0, result
    return result


def _median(values: list[float]) -> float:
    return sorted(values)[len(values) // 2]
