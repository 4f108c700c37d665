"""Options of a further process, and the processes that `kill` reaches."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.bundles import FILE_CAPABILITIES, make_bundle, specification
from tests.support.patience import patience
from tests.support.pod_bundles import FOREVER
from tests.support.running import running_container
from tests.support.runtime import Runtime

pytestmark = pytest.mark.vm


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Runtime, str]]:
    """A running container, for all tests of this module."""
    directory = str(tmp_path_factory.mktemp("options"))
    bundle = f"{directory}/bundle"
    make_bundle(bundle, FOREVER, capabilities=FILE_CAPABILITIES)
    with running_container(directory, bundle, "c1") as runtime:
        yield runtime, bundle


def status(text: str) -> dict[str, str]:
    """/proc/self/status as a table."""
    return {key: value.strip() for key, _, value in (line.partition(":") for line in text.splitlines())}


def test_groups_capabilities_and_privileges(running: tuple[Runtime, str]) -> None:
    runtime, _ = running
    plain = status(runtime("exec", "c1", "/bin/cat", "/proc/self/status").output)
    options = ["--additional-gids", "7", "-g", "8", "--cap", "CAP_NET_RAW", "--no-new-privs"]
    changed = status(runtime("exec", *options, "c1", "/bin/cat", "/proc/self/status").output)
    net_raw = 1 << 13  # linux/capability.h
    assert int(plain["CapEff"], 16) & net_raw == 0
    assert int(changed["CapEff"], 16) == int(plain["CapEff"], 16) | net_raw
    assert int(changed["CapBnd"], 16) & net_raw
    assert {"7", "8"} <= set(changed["Groups"].split())
    assert not {"7", "8"} & set(plain["Groups"].split())
    assert changed["NoNewPrivs"] == "1"


def test_labels_of_the_host_in_the_process_of_an_engine(running: tuple[Runtime, str], tmp_path: Path) -> None:
    """Docker sets its AppArmor profile. The guest kernel has no AppArmor, and crun would fail."""
    runtime, _ = running
    process = specification(["/bin/id", "-u"], user={"uid": 5, "gid": 6})["process"]
    process |= {"apparmorProfile": "docker-default", "selinuxLabel": "system_u:system_r:container_t:s0"}
    (tmp_path / "process.json").write_text(json.dumps(process))
    result = runtime("exec", "--process", str(tmp_path / "process.json"), "c1")
    assert (result.code, result.output) == (0, "5\n"), result.errors


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--cgroup", "sub"], "the process runs in the container's cgroup"),
        (["--ignore-paused"], "a paused container cannot start a process"),
        (["--cap", "everything"], "'everything' is not a capability"),
    ],
)
def test_error_names_a_missing_field(running: tuple[Runtime, str], options: list[str], words: str) -> None:
    runtime, _ = running
    result = runtime("exec", *options, "c1", "/bin/true")
    assert result.code == 255
    assert words in result.errors


def test_kill_all_reaches_every_process(running: tuple[Runtime, str]) -> None:
    """The first process of a PID namespace ignores SIGTERM; the others end."""
    runtime, _ = running
    beside = [
        runtime.start("exec", "c1", "/bin/sh", "-c", "echo up; sleep 1000", stdout=subprocess.PIPE) for _ in range(2)
    ]
    for process in beside:
        assert process.stdout is not None
        assert process.stdout.readline() == b"up\n"
    assert runtime("kill", "c1", "0").code == 0
    assert runtime("kill", "--all", "c1", "SIGTERM").code == 0
    for process in beside:
        assert process.wait(timeout=patience(10)) == 143
        assert process.stdout is not None
        process.stdout.close()
    assert runtime.state("c1")["status"] == "running"
