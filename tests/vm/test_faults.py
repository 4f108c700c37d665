"""Each of a sandbox's processes killed at each step of attaching and releasing: nothing stays, and the device works on.

The steps are told apart by what the sandbox has written so far; the kill comes at that moment or just after it.
"""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from hawse.errors import NotFoundError
from hawse.sandbox.state import Store
from tests.support.bundles import make_bundle, make_probe_bundle
from tests.support.host import prove_unchanged, snapshot
from tests.support.runtime import Result, Runtime, wait_until

pytestmark = pytest.mark.vm

GROUPS = '[emulated]\n5 = ["edu"]\n6 = ["e1000e"]\n'
NAME = "victim"


def wrote(name: str, text: str = "") -> Callable[[str], bool]:
    """A file of the sandbox's is there, and the text in it."""

    def look(directory: str) -> bool:
        try:
            return text in Path(f"{directory}/{name}").read_text(errors="replace")
        except OSError:
            return False

    return look


MOMENTS = {
    "QEMU starts": wrote("console.log"),
    "the group is plugged": wrote("qmp.log", '"vfio-5-0"'),
    "the container is created": wrote("state.json", '"created"'),
    "the container runs": wrote("state.json", '"running"'),
    "a group is attached": wrote("qmp.log", '"vfio-6-0"'),
    "a group is detached": wrote("qmp.log", '"device_del"'),
    "its netdev is removed": wrote("qmp.log", '"netdev_del"'),
}
#: Words of the command line of each process.
VICTIMS = {
    "QEMU": "qemu-system-x86",
    "virtiofsd": "virtiofsd",
    "monitor": "hawse.sandbox.monitor",
    "proxy": f"hawse[{NAME}]: ",
    "command": "bin/hawse",
}
#: The guest, and its agent with it, can be made to crash once its container runs.
CRASHES = ["the container runs", "a group is attached", "a group is detached"]
CRASH = ["exec", NAME, "/bin/sh", "-c", "echo c >/proc/sysrq-trigger"]


@pytest.fixture(scope="module")
def tally(request: pytest.FixtureRequest) -> Iterator[list[str]]:
    """The faults that were survived; their count is printed."""
    survived: list[str] = []
    yield survived
    capture = request.config.pluginmanager.getplugin("capturemanager")
    assert capture is not None
    with capture.global_and_fixture_disabled():
        print(f"\nfaults tried and survived: {len(survived)}")


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """One whose container stays, and one that proves that the device works."""
    directory = tmp_path_factory.mktemp("bundles")
    probe = str(directory / "probe")
    make_probe_bundle(probe, group=("/dev/vfio/5", 511, 5))
    stays = str(directory / "stays")
    spec = make_bundle(stays, ["/bin/sleep", "1000"])
    spec["linux"]["readonlyPaths"] = []  # /proc/sysrq-trigger among them
    with open(f"{probe}/config.json") as file:
        spec["linux"]["devices"] = json.load(file)["linux"]["devices"]
    with open(f"{stays}/config.json", "w") as file:
        json.dump(spec, file)
    return stays, probe


def story(runtime: Runtime, bundle: str) -> list[Result]:
    """A container's life; every command may fail."""
    said = [begin(runtime, bundle)]
    said += [runtime(*words) for words in (("attach", NAME, "6"), ("detach", NAME, "6"), ("delete", "--force", NAME))]
    return said


def begin(runtime: Runtime, bundle: str) -> Result:
    """`run --detach`, with its words in a file: a pipe would be the container's too, and end with it."""
    with open(f"{bundle}/said", "w+") as file:
        words = runtime.argv("run", "--detach", "--bundle", bundle, NAME)
        ended = subprocess.run(words, stdin=subprocess.DEVNULL, stdout=file, stderr=file, timeout=90, check=False)
        file.seek(0)
        return Result(ended.returncode, "", file.read())


def crash(runtime: Runtime, directory: str) -> int:
    """Have the guest's kernel panic; the pid of the command that asked for it, which nobody answers."""
    wait_until(lambda: wrote("state.json", '"running"')(directory))
    null = subprocess.DEVNULL
    with runtime.start(*CRASH, stdin=null, stdout=null, stderr=null) as asking:
        asking.wait(timeout=90)
    return asking.pid


def pids(words: str) -> list[int]:
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            line = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if words in line and int(pid) != os.getpid():
            found.append(int(pid))
    return found


@pytest.mark.parametrize(
    ("moment", "victim"), [*itertools.product(MOMENTS, VICTIMS), *((moment, "guest") for moment in CRASHES)]
)
def test_a_death_leaves_nothing_and_the_device_works_on(
    runtime: Runtime, bundles: tuple[str, str], tally: list[str], moment: str, victim: str
) -> None:
    runtime.configure(GROUPS)
    stays, probe = bundles
    before = snapshot()
    others = set(pids(VICTIMS[victim])) if victim in VICTIMS else set()
    said: list[Result] = []
    acting = threading.Thread(target=lambda: said.extend(story(runtime, stays)))
    acting.start()
    directory = f"{runtime.root}/{NAME}"
    while acting.is_alive() and not MOMENTS[moment](directory):
        pass
    killed: list[int] = []
    if victim == "guest":
        killed = [crash(runtime, directory)]
    while acting.is_alive() and not killed:
        killed = [pid for pid in pids(VICTIMS[victim]) if pid not in others]
        for pid in killed:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
    acting.join()
    assert killed, said
    for result in said:
        assert result.code in (0, 1, -signal.SIGKILL), result
        assert "Traceback" not in result.errors
        assert result.code != 1 or result.errors.startswith("hawse: "), result
    assert runtime("delete", "--force", NAME).code == 0
    prove_unchanged(before)
    with pytest.raises(NotFoundError):
        Store(runtime.root, NAME).read()
    again = runtime("run", "--bundle", probe, "again")
    assert again.code == 0, again
    assert json.loads(again.output)["passed"] is True
    tally.append(f"{victim} when {moment}")
