"""Containers that join a sandbox at the same moment with the same overlay, with a fake QEMU without a VM."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

from hawse.host.mounts import overlays
from hawse.linux import mounts as linux
from tests.support.forked import in_child
from tests.support.ready import CRI, JOINS, Sandboxes, annotated
from tests.support.shares import in_namespace

NAMES = ["c1", "c2", "c3"]


def mounted(monitor: int) -> list[str]:
    """The mount points of overlays in the share of a monitor."""
    table = Path(f"/proc/{monitor}/mountinfo").read_text()
    return re.findall(r"/share/(\S+) .* - overlay ", table)


def test_overlay_of_containers_that_join_at_the_same_moment_is_mounted_once() -> None:
    """Two mounts of one upper directory are undefined behaviour of the kernel."""

    def act() -> Any:
        linux.mount(
            "test", "/mnt", "tmpfs", 0
        )  # an upper layer cannot be on an overlay, and this machine's files may be on one
        for name in ("lower", "upper", "work", "host"):
            os.mkdir(f"/mnt/{name}")
        with Sandboxes("/mnt/host") as host:
            host.program("wait", more=annotated(CRI))
            assert host.hawse("create", "--bundle", host.bundle, "pod").code == 0
            hook = {"path": "/bin/sleep", "args": ["sleep", "0.3"]}
            overlay = {
                "destination": "/data", "type": "overlay", "source": "overlay",
                "options": ["lowerdir=/mnt/lower", "upperdir=/mnt/upper", "workdir=/mnt/work"],
            }  # fmt: skip

            def joining(spec: dict[str, Any]) -> None:
                annotated(JOINS)(spec)
                # Each gets its overlay before it runs, and is created after it.
                spec["hooks"] = {"createRuntime": [hook]}
                spec["mounts"].append(overlay)

            host.program("wait", more=joining)

            words = [sys.executable, "-m", "hawse", "--root", host.hawse.root, "--config", host.hawse.config]
            words += ["create", "--bundle", host.bundle]
            creations = []
            for name in NAMES:
                with open(f"/mnt/{name}", "w") as said:  # not a pipe, which the container's process would keep open
                    creations.append(subprocess.Popen([*words, name], stdout=said, stderr=said))
            codes = [creation.wait() for creation in creations]
            errors = [Path(f"/mnt/{name}").read_text() for name in NAMES]
            monitor = int(host.hawse.store("pod").read()["monitorPid"])
            counts = [len(mounted(monitor))]
            for name in NAMES:
                host.hawse("delete", "--force", name)
                counts.append(len(mounted(monitor)))
            return codes, errors, counts

    assert in_namespace(act) == [[0, 0, 0], ["", "", ""], [1, 1, 1, 0]]


def test_lock_ends_with_the_process_that_holds_it(tmp_path: Path) -> None:
    def take() -> bool:
        overlays.alone(str(tmp_path)).__enter__()
        return True

    for _ in range(2):
        assert in_child(take)
