"""Each of a sandbox's processes is killed at each step of attaching and releasing. Nothing may be left behind.

The files that the sandbox has written show its step. The monitor, which carries out every step, is stopped while the
test looks, so the process is killed at this step and not at a later one.
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
from hawse.state.store import Store
from tests.support.bundles import add_devices, make_bundle, make_probe_bundle, write
from tests.support.host import prove_unchanged, snapshot
from tests.support.patience import patience, wait_until
from tests.support.processes import with_words
from tests.support.runtime import Result, Runtime

pytestmark = pytest.mark.vm

GROUPS = '[emulated]\n5 = ["edu"]\n6 = ["e1000e"]\n'
NAME = "victim"


def wrote(name: str, text: str = "") -> Callable[[str], bool]:
    """A function that returns whether a file of the sandbox contains the text."""

    def look(directory: str) -> bool:
        try:
            return text in Path(f"{directory}/{name}").read_text(errors="replace")
        except OSError:
            return False

    return look


#: In the order in which a sandbox reaches them.
MOMENTS = {
    "QEMU starts": wrote("console.log"),
    "the group is plugged": wrote("qmp.log", '"vfio-5-0"'),
    "the container is created": wrote("state.json", '"status": "created"'),
    "the container runs": wrote("state.json", '"status": "running"'),
    "a group is attached": wrote("qmp.log", '"vfio-6-0"'),
    "a group is detached": wrote("qmp.log", '"device_del"'),
    "its netdev is removed": wrote("qmp.log", '"netdev_del"'),
}
MONITOR = "hawse.monitor.main"
#: Words of the command line of each process.
VICTIMS = {
    "QEMU": "qemu-system-x86",
    "virtiofsd": "virtiofsd",
    "monitor": MONITOR,
    "proxy": f"hawse[{NAME}]: ",
    "command": "bin/hawse",
}
GUEST = "guest"
#: The guest kernel, and the agent with it, can crash as soon as the container runs.
CRASHES = ["the container runs", "a group is attached", "a group is detached"]
FAULTS = [*itertools.product(MOMENTS, VICTIMS), *((moment, GUEST) for moment in CRASHES)]
#: The process of the container. A file triggers the crash: a command would take about 100 ms, and need the monitor.
SCRIPT = "until [ -e /data/crash ]; do busybox usleep 10000; done; echo c >/proc/sysrq-trigger"
#: If the test is not scheduled for about 100 ms, it misses a step, and the sandbox is created again.
TRIES = 5


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A bundle whose container runs until it is killed, with group 5."""
    directory = str(tmp_path_factory.mktemp("bundles") / "stays")
    spec = make_bundle(directory, ["/bin/sh", "-c", SCRIPT])
    spec["linux"]["readonlyPaths"] = []  # so that /proc/sysrq-trigger is writable
    add_devices(spec, [("/dev/vfio/vfio", 10, 196), ("/dev/vfio/5", 511, 5)])
    write(directory, spec)
    return directory


class Story:
    """The life of a container, in a thread: run, attach, detach, delete. Every command may fail.

    ``await_crash``: the guest will crash, and the container is deleted afterwards.
    """

    def __init__(self, runtime: Runtime, bundle: str, *, await_crash: bool) -> None:
        self._runtime = runtime
        self._bundle = bundle
        self._await_crash = await_crash
        self.results: list[Result] = []
        self._thread = threading.Thread(target=self._tell)
        self._thread.start()

    def _tell(self) -> None:
        self.results.append(begin(self._runtime, self._bundle))
        self.results += [self._runtime("attach", NAME, "6"), self._runtime("detach", NAME, "6")]
        if self._await_crash:
            wait_until(lambda: not with_words(VICTIMS["QEMU"]))
        self.results.append(self._runtime("delete", "--force", NAME))

    @property
    def goes_on(self) -> bool:
        """Whether commands are running or pending."""
        return self._thread.is_alive()

    def end(self) -> list[Result]:
        """The results of all commands."""
        self._thread.join()
        assert len(self.results) == 4, "the guest did not crash"
        return self.results


def begin(runtime: Runtime, bundle: str) -> Result:
    """Run `run --detach` with its output in a file: the container would inherit a pipe and keep it open."""
    with open(f"{bundle}/output", "w+") as file:
        words = runtime.argv("run", "--detach", "--bundle", bundle, NAME)
        ended = subprocess.run(
            words, stdin=subprocess.DEVNULL, stdout=file, stderr=file, timeout=patience(30), check=False
        )
        file.seek(0)
        return Result(ended.returncode, "", file.read())


def send(processes: list[int], number: signal.Signals) -> None:
    """Send a signal to those of the processes that still exist."""
    for pid in processes:
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            continue


def strike(story: Story, directory: str, moment: str, kill: Callable[[], bool]) -> bool:
    """Call ``kill`` at the moment; returns whether this succeeded in time.

    ``kill`` returns whether its victim exists. If it does not exist yet, it is killed as soon as it does.
    """
    while story.goes_on and not MOMENTS[moment](directory):
        time.sleep(0.001)
    waited = False
    while story.goes_on:
        monitor = with_words(MONITOR)
        send(monitor, signal.SIGSTOP)
        try:
            late = any(MOMENTS[later](directory) for later in after(moment))
            hit = os.path.isdir(directory) and (waited or not late)
            if kill():
                return hit
        finally:
            send(monitor, signal.SIGCONT)
        waited = True
        time.sleep(0.001)
    return False


def trigger(bundle: str) -> Path:
    """The file whose appearance makes the container crash the guest kernel."""
    return Path(f"{bundle}/rootfs/data/crash")


def killing(victim: str, bundle: str) -> Callable[[], bool]:
    """A function that kills the victim and returns whether it exists."""

    def kill() -> bool:
        if victim == GUEST:
            trigger(bundle).touch()
            return True
        processes = with_words(VICTIMS[victim])
        send(processes, signal.SIGKILL)
        return bool(processes)

    return kill


def after(moment: str) -> list[str]:
    """The later moments."""
    names = list(MOMENTS)
    return names[names.index(moment) + 1 :]


def check_words(results: list[Result]) -> None:
    """Check that every command succeeded, was killed, or failed with a sentence."""
    for result in results:
        assert result.code in (0, 1, -signal.SIGKILL), result
        assert "Traceback" not in result.errors
        assert result.code != 1 or result.errors.startswith("hawse: "), result


def check_nothing_left(runtime: Runtime, before: dict[str, set[str]]) -> None:
    """Check that delete succeeds, and that the host is unchanged."""
    assert runtime("delete", "--force", NAME).code == 0
    prove_unchanged(before)
    with pytest.raises(NotFoundError):
        Store(runtime.root, NAME).read()


@pytest.mark.parametrize(("moment", "victim"), FAULTS)
def test_killed_process_leaves_nothing_behind(
    runtime: Runtime, bundle: str, fault_survived: Callable[[str], None], moment: str, victim: str
) -> None:
    runtime.configure(GROUPS)
    before = snapshot()
    for _ in range(TRIES):
        trigger(bundle).unlink(missing_ok=True)
        story = Story(runtime, bundle, await_crash=victim == GUEST)
        hit = strike(story, f"{runtime.root}/{NAME}", moment, killing(victim, bundle))
        results = story.end()
        check_words(results)
        check_nothing_left(runtime, before)
        if hit:
            break
    assert hit, f"{victim} was never killed while {moment}: {results}"
    fault_survived(f"{victim} when {moment}")


def test_device_works_after_all_faults(runtime: Runtime, tmp_path: Path) -> None:
    runtime.configure(GROUPS)
    probe = str(tmp_path / "probe")
    make_probe_bundle(probe, group=("/dev/vfio/5", 511, 5))
    result = runtime("run", "--bundle", probe, "again")
    assert result.code == 0, result
    assert json.loads(result.output)["passed"] is True
