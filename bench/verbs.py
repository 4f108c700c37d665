"""`state`, which engines call often, over the start of the interpreter; compared with runc and crun."""

from __future__ import annotations

import os
import subprocess
import sys

from bench.common import Measured, Seconds, make_true, others, ratio, timed, workbench
from tests.support.bundles import make_bundle

ROUNDS = 25


def measure() -> Measured:
    """Measure `state` of a running container."""
    with workbench() as (runtime, directory):
        bundle = f"{directory}/sleeps"
        make_bundle(bundle, ["/bin/sleep", "1000"])
        compared = others(directory, make_true(directory))
        runtime.run_detached(bundle, "c1")
        python = os.path.realpath(sys.executable)
        commands = {
            "python": [python, "-I", "-S", "-c", "pass"],
            "state": runtime.argv("state", "c1"),
        }
        running = [name for name, reason in compared.items() if not reason]
        for name in running:
            root = ["--root", f"{directory}/{name}"]
            null = subprocess.DEVNULL
            subprocess.run([name, *root, "run", "--detach", "--bundle", bundle, "o1"], check=True, stdin=null,
                           stdout=null, stderr=null)  # fmt: skip
            commands[f"{name} state"] = [name, *root, "state", "o1"]
        readings: dict[str, Seconds] = {name: [] for name in commands}
        for _ in range(ROUNDS):
            for name, argv in commands.items():
                readings[name].append(timed(argv))
        for name in running:
            subprocess.run([name, "--root", f"{directory}/{name}", "delete", "--force", "o1"], check=True)
        runtime("delete", "--force", "c1")
    return Measured(
        {"state_over_python": ratio(readings["state"], readings["python"])}, {"seconds": readings, "compared": compared}
    )
