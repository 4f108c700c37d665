"""Each of a sandbox's processes is killed at each step of attaching and releasing. Nothing may be left behind.

A step is recognised by what the sandbox has written so far. The monitor, which drives every step, is stopped while the
test looks: so the kill comes at that step and not at a later one.
"""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from hawse.errors import NotFoundError
from hawse.sandbox.state import Store
from tests.support.bundles import add_devices, make_bundle, make_probe_bundle, write
from tests.support.host import prove_unchanged, snapshot
from tests.support.patience import patience
from tests.support.runtime import Result, Runtime

pytestmark = pytest.mark.vm

GROUPS = '[emulated]\n5 = ["edu"]\n6 = ["e1000e"]\n'
NAME = "victim"


def wrote(name: str, text: str = "") -> Callable[[str], bool]:
    """A file of the sandbox exists and contains the text."""

    def look(directory: str) -> bool:
        try:
            return text in Path(f"{directory}/{name}").read_text(errors="replace")
        except OSError:
            return False

    return look


#: In the order in which a sandbox gets there.
MOMENTS = {
    "QEMU starts": wrote("console.log"),
    "the group is plugged": wrote("qmp.log", '"vfio-5-0"'),
    "the container is created": wrote("state.json", '"created"'),
    "the container runs": wrote("state.json", '"running"'),
    "a group is attached": wrote("qmp.log", '"vfio-6-0"'),
    "a group is detached": wrote("qmp.log", '"device_del"'),
    "its netdev is removed": wrote("qmp.log", '"netdev_del"'),
}
MONITOR = "hawse.sandbox.monitor"
#: Words of the command line of each process.
VICTIMS = {
    "QEMU": "qemu-system-x86",
    "virtiofsd": "virtiofsd",
    "monitor": MONITOR,
    "proxy": f"hawse[{NAME}]: ",
    "command": "bin/hawse",
}
#: The guest, and its agent with it, can be made to crash once its container runs.
CRASHES = ["the container runs", "a group is attached", "a group is detached"]
CRASH = ["exec", NAME, "/bin/sh", "-c", "echo c >/proc/sysrq-trigger"]
#: A test process that is not scheduled for some 100 ms misses a step; the sandbox is then made again.
TRIES = 5


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A bundle whose container stays, with group 5."""
    directory = str(tmp_path_factory.mktemp("bundles") / "stays")
    spec = make_bundle(directory, ["/bin/sleep", "1000"])
    spec["linux"]["readonlyPaths"] = []  # /proc/sysrq-trigger among them
    add_devices(spec, [("/dev/vfio/vfio", 10, 196), ("/dev/vfio/5", 511, 5)])
    write(directory, spec)
    return directory


class Story:
    """The life of a container in a thread: run, attach, detach, delete. Every command may fail."""

    def __init__(self, runtime: Runtime, bundle: str) -> None:
        self._runtime = runtime
        self._bundle = bundle
        self.results: list[Result] = []
        self._thread = threading.Thread(target=self._tell)
        self._thread.start()

    def _tell(self) -> None:
        self.results.append(begin(self._runtime, self._bundle))
        for words in (("attach", NAME, "6"), ("detach", NAME, "6"), ("delete", "--force", NAME)):
            self.results.append(self._runtime(*words))

    @property
    def goes_on(self) -> bool:
        """Whether a command runs or is to come."""
        return self._thread.is_alive()

    def end(self) -> list[Result]:
        """The results of all commands."""
        self._thread.join()
        return self.results


def begin(runtime: Runtime, bundle: str) -> Result:
    """`run --detach`, with its output in a file: a pipe would be the container's too, and end with it."""
    with open(f"{bundle}/output", "w+") as file:
        words = runtime.argv("run", "--detach", "--bundle", bundle, NAME)
        ended = subprocess.run(
            words, stdin=subprocess.DEVNULL, stdout=file, stderr=file, timeout=patience(30), check=False
        )
        file.seek(0)
        return Result(ended.returncode, "", file.read())


def crash(runtime: Runtime) -> None:
    """Have the guest's kernel panic; nobody answers the command that asks for it."""
    null = subprocess.DEVNULL
    with runtime.start(*CRASH, stdin=null, stdout=null, stderr=null) as asking:
        asking.wait(timeout=patience(30))


def pids(words: str) -> list[int]:
    """Processes whose command line contains the words."""
    matching = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            line = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if words in line and int(pid) != os.getpid():
            matching.append(int(pid))
    return matching


def send(processes: list[int], number: signal.Signals) -> None:
    """Send a signal to those of the processes that still exist."""
    for pid in processes:
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            continue


def strike(story: Story, directory: str, moment: str, victim: str) -> bool:
    """Kill the victim at the moment; returns whether it was hit.

    A victim that does not exist at the moment is killed as soon as it does.
    """
    while story.goes_on and not MOMENTS[moment](directory):
        time.sleep(0.001)
    waited = False
    while story.goes_on:
        monitor = pids(MONITOR)
        send(monitor, signal.SIGSTOP)
        try:
            if processes := pids(VICTIMS[victim]):
                late = any(MOMENTS[later](directory) for later in after(moment))
                hit = os.path.isdir(directory) and (waited or not late)
                send(processes, signal.SIGKILL)
                return hit
        finally:
            send(monitor, signal.SIGCONT)
        waited = True
        time.sleep(0.001)
    return False


def after(moment: str) -> list[str]:
    """The moments after one."""
    names = list(MOMENTS)
    return names[names.index(moment) + 1 :]


def check_words(results: list[Result]) -> None:
    """Every command succeeded, was killed, or failed with a sentence."""
    for result in results:
        assert result.code in (0, 1, -signal.SIGKILL), result
        assert "Traceback" not in result.errors
        assert result.code != 1 or result.errors.startswith("hawse: "), result


def check_nothing_left(runtime: Runtime, before: dict[str, set[str]]) -> None:
    """Delete succeeds, and the host is as before."""
    assert runtime("delete", "--force", NAME).code == 0
    prove_unchanged(before)
    with pytest.raises(NotFoundError):
        Store(runtime.root, NAME).read()


@pytest.mark.parametrize(("moment", "victim"), list(itertools.product(MOMENTS, VICTIMS)))
def test_killed_process_leaves_nothing_behind(
    runtime: Runtime, bundle: str, fault_survived: Callable[[str], None], moment: str, victim: str
) -> None:
    runtime.configure(GROUPS)
    before = snapshot()
    for _ in range(TRIES):
        story = Story(runtime, bundle)
        hit = strike(story, f"{runtime.root}/{NAME}", moment, victim)
        results = story.end()
        check_words(results)
        check_nothing_left(runtime, before)
        if hit:
            break
    assert hit, f"{victim} was never killed while {moment}: {results}"
    fault_survived(f"{victim} when {moment}")


@pytest.mark.parametrize("moment", CRASHES)
def test_crashed_guest_leaves_nothing_behind(
    runtime: Runtime, bundle: str, fault_survived: Callable[[str], None], moment: str
) -> None:
    runtime.configure(GROUPS)
    before = snapshot()
    story = Story(runtime, bundle)
    directory = f"{runtime.root}/{NAME}"
    while story.goes_on and not (MOMENTS[moment](directory) and wrote("state.json", '"running"')(directory)):
        time.sleep(0.001)
    crash(runtime)
    results = story.end()
    check_words(results)
    assert [result.code for result in results][1:3] != [0, 0], f"the guest did not crash in time: {results}"
    check_nothing_left(runtime, before)
    fault_survived(f"guest when {moment}")


def test_device_works_after_all_faults(runtime: Runtime, tmp_path: Path) -> None:
    runtime.configure(GROUPS)
    probe = str(tmp_path / "probe")
    make_probe_bundle(probe, group=("/dev/vfio/5", 511, 5))
    result = runtime("run", "--bundle", probe, "again")
    assert result.code == 0, result
    assert json.loads(result.output)["passed"] is True
