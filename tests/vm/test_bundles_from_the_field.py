"""Bundles that work under runc and are unusual: each runs under both, and prints the same."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tests.support.bundles import make_bundle, write
from tests.support.patience import patience, wait_until
from tests.support.programs import compiled
from tests.support.runtime import Runtime

pytestmark = pytest.mark.vm

#: Handles SIGTERM from its first instruction on, and makes a file then.
HANDLER = """
#include <fcntl.h>
#include <signal.h>
#include <unistd.h>
static void end(int number) { (void)number; _exit(open("/handled", O_CREAT | O_WRONLY, 0600) < 0); }
int main(void) { signal(SIGTERM, end); for (;;) pause(); }
"""


@pytest.mark.parametrize("readonly", [False, True])
def test_mount_points_are_made_as_under_runc(tmp_path: Path, readonly: bool) -> None:
    """A FIFO, links to nothing, a relative path, and commas in the paths of state and bundle."""
    outputs = {}
    for name in ("hawse", "runc"):
        bundle = str(tmp_path / f"{name},bundle")
        script = "cat /fifo /etc/linked /run/secret/text /links/text; ls -ld /fifo | cut -c1"
        spec = make_bundle(bundle, ["/bin/sh", "-c", script])
        spec["root"]["readonly"] = readonly
        source = tmp_path / f"source-{name}"
        source.mkdir()
        (source / "text").write_text("shared\n")
        rootfs = Path(bundle, "rootfs")
        (rootfs / "etc").mkdir(exist_ok=True)
        os.mkfifo(rootfs / "fifo")
        (rootfs / "etc/linked").symlink_to("../srv/deep/file")
        (rootfs / "links").symlink_to("/srv/directory")
        files = {"/fifo": "text", "/etc/linked": "text", "run/secret": ".", "/links": "."}
        spec["mounts"] += [
            {"destination": destination, "type": "bind", "source": str(source / path), "options": ["rbind", "rw"]}
            for destination, path in files.items()
        ]
        write(bundle, spec)
        if name == "runc":
            command = ["runc", "run", "--bundle", bundle, "field-runc"]
            outputs[name] = subprocess.run(command, capture_output=True, text=True, check=False).stdout
        else:
            (tmp_path / "state,1").mkdir()
            ran = Runtime(f"{tmp_path}/state,1")("run", "--bundle", bundle, "field")
            assert ran.code == 0, ran
            outputs[name] = ran.output
    assert outputs["hawse"] == outputs["runc"] == "shared\n" * 4 + "-\n"


def test_signal_right_after_the_start_is_handled(runtime: Runtime, tmp_path: Path) -> None:
    bundle = str(tmp_path / "bundle")
    make_bundle(bundle, ["/bin/handler"])
    program = Path(bundle, "rootfs/bin/handler")
    program.write_bytes(Path(compiled(HANDLER)).read_bytes())
    program.chmod(0o755)
    for number in range(3):
        runtime.run_detached(bundle, f"c{number}")
        assert runtime("kill", f"c{number}", "TERM").code == 0
        wait_until(Path(bundle, "rootfs/handled").exists, seconds=patience(20))
        Path(bundle, "rootfs/handled").unlink()
        assert runtime("delete", "--force", f"c{number}").code == 0
