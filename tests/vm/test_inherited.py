"""Attributes that a process inherits from the caller of `create` and `exec`: limits, umask and more, and closed
streams."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TextIO

import pytest

from tests.support.bundles import make_bundle, specification, write
from tests.support.patience import patience, wait_until
from tests.support.runtime import Runtime

pytestmark = pytest.mark.vm

_SHOW = "cat /proc/self/limits /proc/self/oom_score_adj; umask"
#: If the soft and the hard limit of open files differ, Debian 12's runc (built with Go 1.19) passes the hard one.
_CREATES = (
    "prlimit --nofile=4000:4000 --memlock=65536:4194304 --nproc=4000:5000 --msgqueue=1000:2000 --fsize=9000000: "
    "--cpu=30:"
)
_EXECS = "prlimit --nofile=3000:3000 --stack=4194304:8388608 --nice=0:0 --rtprio=0:0 --sigpending=77:99 --locks=5:6"
_CALLER = "echo 321 > /proc/self/oom_score_adj; umask 077; exec "


@pytest.fixture
def runc(tmp_path: Path) -> Iterator[Callable[..., list[str]]]:
    root = str(tmp_path / "runc")
    yield lambda *words: ["runc", "--root", root, *words]
    subprocess.run(["runc", "--root", root, "delete", "--force", "c1"], check=False, capture_output=True)


def begin(argv: list[str], limits: str, output: TextIO) -> None:
    """Run a command with these limits to its end. The process that it leaves may write to the file later."""
    words = ["/bin/sh", "-c", f"{_CALLER} {limits} {shlex.join(argv)}"]
    done = subprocess.run(words, stdin=subprocess.DEVNULL, stdout=output, stderr=output, timeout=patience(60))
    if done.returncode != 0:
        output.seek(0)
        raise AssertionError(output.read())


def with_users(bundle: str, spec: dict[str, Any], first: int) -> None:
    """Give the container a user namespace, and its files to the owner in that namespace."""
    spec["linux"]["namespaces"].append({"type": "user"})
    for kind in ("uidMappings", "gidMappings"):
        spec["linux"][kind] = [{"containerID": 0, "hostID": first, "size": 65536}]
    spec["mounts"] = [mount for mount in spec["mounts"] if mount["type"] not in ("sysfs", "cgroup", "mqueue")]
    write(bundle, spec)


@pytest.mark.parametrize("users", [False, True], ids=["plain", "user namespace"])
def test_attributes_that_are_not_specified_are_inherited_from_the_caller(
    runtime: Runtime, runc: Callable[..., list[str]], users: bool
) -> None:
    """As under runc in the same shell, for a user without capabilities: limits, oom_score_adj and umask."""
    # Users of a user namespace must find their root file system there; only root may enter pytest's directories.
    with tempfile.TemporaryDirectory(dir="/tmp") as directory:
        os.chmod(directory, 0o755)
        bundle = f"{directory}/bundle"
        spec = make_bundle(
            bundle, ["/bin/sh", "-c", f"{_SHOW}; while :; do sleep 9999; done"],
            rlimits=[{"type": "RLIMIT_CORE", "soft": 1, "hard": 2}], user={"uid": 1000, "gid": 1000}, capabilities={},
        )  # fmt: skip
        if users:
            with_users(bundle, spec, 200000)
        process = specification(["/bin/sh", "-c", _SHOW], user={"uid": 7, "gid": 7})["process"]
        del process["rlimits"]
        Path(directory, "process.json").write_text(json.dumps(process))
        outputs: list[list[str]] = []
        for command in (runtime.argv, runc):
            with open(f"{directory}/output", "w+") as file:
                begin(command("run", "--detach", "--bundle", bundle, "c1"), _CREATES, file)
                wait_until(lambda name=file.name: Path(name).read_text().endswith("\n0022\n"))  # type: ignore[misc]
                begin(command("exec", "--process", f"{directory}/process.json", "c1"), _EXECS, file)
                begin([*command("exec", "c1"), "/bin/sh", "-c", _SHOW], _EXECS, file)
            outputs.append(Path(file.name).read_text().split("Units"))
        assert runtime("delete", "--force", "c1").code == 0
    ours, theirs = outputs
    assert len(ours) == 4
    for mine, other in zip(ours, theirs, strict=True):
        assert mine == other
    assert "\n321\n0022\n" in ours[1]
    assert ours[3].endswith("\n321\n0077\n")


def test_container_runs_with_all_streams_closed(runtime: Runtime, tmp_path: Path) -> None:
    """Its stdin is at the end of file, and its output is discarded."""
    bundle = str(tmp_path / "bundle")
    script = "cat > /tmp/stdin; echo out && echo error >&2 && echo written > /tmp/done; exit 7"
    make_bundle(bundle, ["/bin/sh", "-c", script])
    words = ["/bin/sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh", *runtime.argv("run", "--bundle", bundle, "c1")]
    assert subprocess.run(words, timeout=patience(40), check=False).returncode == 7
    assert (tmp_path / "bundle/rootfs/tmp/stdin").read_text() == ""
    assert (tmp_path / "bundle/rootfs/tmp/done").read_text() == "written\n"
