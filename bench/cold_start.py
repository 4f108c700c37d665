"""Cold `hawse run` of a container that runs `true`, over the bare boot of the same kernel and initrd to its init.

Both are measured in turn, several times, and their medians compared: what else the machine does falls on both.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import tempfile
import time
from itertools import pairwise

from hawse.config import Vm
from hawse.vm import accel, image
from tests.support.bundles import CACHE, make_bundle
from tests.support.runtime import Runtime

ROUNDS = 5
_SAID = b"reached"
_INIT = "rdinit=/usr/bin/sh -- -c 'echo reached; while :; do :; done'"


def measure() -> tuple[dict[str, float], dict[str, object]]:
    """The figure, and every reading and step behind it; prints the table."""
    with tempfile.TemporaryDirectory() as directory:
        runtime = Runtime(directory)
        bundle = f"{directory}/bundle"
        make_bundle(bundle, ["/bin/true"])
        found = image.locate(cache=CACHE)
        vm = Vm()
        name = accel.choose("auto", qemu=vm.qemu, kernel=found.kernel, directory=CACHE).name
        assert runtime("run", "--bundle", bundle, "warm-up").code == 0  # the files are in the page cache for both
        bare, runs, steps = [], [], []
        for number in range(ROUNDS):
            bare.append(_bare_boot(vm, found, name))
            seconds, times = _run(runtime, bundle, f"c{number}")
            runs.append(seconds)
            steps.append(times)
    ratio = statistics.median(runs) / statistics.median(bare)
    _print(name, bare, runs, steps, ratio)
    detail: dict[str, object] = {
        "acceleration": name,
        "bare_boot_s": bare,
        "hawse_run_s": runs,
        "steps_s": _medians(steps),
    }
    return {"cold_start_over_bare_boot": round(ratio, 3)}, detail


def _bare_boot(vm: Vm, found: image.Image, name: str) -> float:
    """Seconds from QEMU's exec until the first program of the initial ramfs runs."""
    argv = [
        vm.qemu, "-nodefaults", "-no-user-config", "-display", "none", "-nic", "none", "-no-reboot",
        "-machine", f"q35,accel={name},kernel-irqchip=split", "-cpu", "host" if name == "kvm" else "max",
        "-m", f"{vm.memory_mib}M", "-smp", str(vm.cpus), "-device", "intel-iommu,intremap=on,caching-mode=on",
        "-serial", "stdio", "-kernel", found.kernel, "-initrd", found.initrd,
        "-append", f'console=ttyS0 quiet panic=-1 intel_iommu=on iommu.passthrough=0 {_INIT.replace(chr(39), chr(34))}',
    ]  # fmt: skip
    began = time.monotonic()
    with subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        output = b""
        while _SAID not in output:
            piece = os.read(process.stdout.fileno(), 4096)
            assert piece, f"the bare boot ended: {output.decode(errors='replace')}"
            output += piece
        seconds = time.monotonic() - began
        process.kill()
    return seconds


def _run(runtime: Runtime, bundle: str, name: str) -> tuple[float, list[tuple[str, float]]]:
    """Seconds of the whole command, and the steps that its monitor wrote down."""
    began = time.monotonic()
    result = runtime("run", "--keep", "--bundle", bundle, name)
    seconds = time.monotonic() - began
    assert result.code == 0, result
    with open(f"{runtime.root}/{name}/steps.json") as file:
        marks: list[tuple[str, float]] = json.load(file)
    runtime("delete", name)
    # The first mark is the command's own start, to a clock tick; what it took until the last is what the marks explain.
    times = [(step, end - start) for (_, start), (step, end) in pairwise(marks)]
    return seconds, [*times, ("command ended", max(0.0, seconds - (marks[-1][1] - began)))]


def _medians(steps: list[list[tuple[str, float]]]) -> dict[str, float]:
    names = [name for name, _ in steps[0]]
    return {name: round(statistics.median(run[i][1] for run in steps), 3) for i, name in enumerate(names)}


def _print(name: str, bare: list[float], runs: list[float], steps: list[list[tuple[str, float]]], ratio: float) -> None:
    print(f"acceleration: {name}; {ROUNDS} rounds, medians in seconds\n")
    print("| what | seconds |\n|---|---|")
    print(f"| floor: bare boot of the same kernel and initrd to its init | {statistics.median(bare):.2f} |")
    print(f"| cold `hawse run` of `true`, whole command | {statistics.median(runs):.2f} |")
    print(f"| **ratio** (at most 1.6) | **{ratio:.2f}** |\n")
    print("| step | takes |\n|---|---|")
    for step, seconds in _medians(steps).items():
        print(f"| {step} | {seconds:.3f} |")
