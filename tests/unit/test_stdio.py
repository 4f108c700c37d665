"""Commands whose caller has closed stdin, stdout or stderr: each combination, with the real program."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path

import pytest

from hawse.linux import stdio
from hawse.state.store import CREATED, STOPPED, Store
from tests.support import bundles
from tests.support.fake_monitor import FakeMonitor
from tests.support.patience import patience, wait_until
from tests.support.proxies import Attached
from tests.support.ready import Sandboxes
from tests.support.runtime import Runtime

CLOSED = [numbers for count in (1, 2, 3) for numbers in combinations(range(3), count)]
closed = pytest.mark.parametrize("numbers", CLOSED, ids=lambda numbers: "".join(map(str, numbers)))
NULL = os.stat("/dev/null").st_rdev


@pytest.fixture
def bundle(tmp_path: Path) -> str:
    (tmp_path / "bundle/rootfs").mkdir(parents=True)
    bundles.write(f"{tmp_path}/bundle", bundles.specification(["sh"]))
    return f"{tmp_path}/bundle"


@pytest.fixture
def runtime(tmp_path: Path) -> Runtime:
    return Runtime(str(tmp_path))


@pytest.fixture
def monitor(runtime: Runtime, bundle: str) -> Iterator[FakeMonitor]:
    with FakeMonitor(Store(runtime.root, "c1"), bundle=bundle) as fake:
        yield fake


def begin(argv: list[str], numbers: tuple[int, ...]) -> subprocess.Popen[bytes]:
    """Start a program with these descriptors closed, and pipes for the others."""
    closing = " ".join(f"{number}>&-" for number in numbers)
    pipe = subprocess.PIPE
    words = ["/bin/sh", "-c", f'exec "$@" {closing}', "sh", *argv]
    return subprocess.Popen(words, stdin=pipe, stdout=pipe, stderr=pipe)


def end(process: subprocess.Popen[bytes]) -> tuple[int, str, str]:
    """Wait for the program; returns exit code and outputs."""
    output, errors = process.communicate(timeout=patience(20))
    return process.returncode, output.decode(), errors.decode()


#: All verbs share the code: test each combination for one of them, and all three for the others.
OTHERS = [
    ["list"], ["start", "c1"], ["kill", "c1", "TERM"], ["events", "--stats", "c1"], ["ps", "--format", "json", "c1"],
    ["update", "--resources", "-", "c1"], ["spec", "--bundle", "/none"], ["features"], ["doctor"], ["--version"],
    ["--help"], ["timeline", "none"], ["nonsense"],
]  # fmt: skip


@pytest.mark.parametrize(
    ("words", "numbers"),
    [(["state", "c1"], numbers) for numbers in CLOSED] + [(words, (0, 1, 2)) for words in OTHERS],
    ids=lambda value: "".join(map(str, value if isinstance(value, tuple) else value[:1])),
)
def test_verb_works_as_with_all_three_open(
    runtime: Runtime, monitor: FakeMonitor, words: list[str], numbers: tuple[int, ...]
) -> None:
    """The exit code and the remaining output are those of a call with nothing closed and an empty stdin."""
    monitor.answers |= {"start": [], "statistics": {"id": "c1"}, "pids": [1]}
    result, expected = (end(begin(runtime.argv(*words), closing)) for closing in (numbers, ()))
    left = ("" if 1 in numbers else expected[1], "" if 2 in numbers else expected[2])
    assert result == (expected[0], *left)
    methods = monitor.methods
    assert methods[::2] == methods[1::2], "both called the monitor in the same way"


def test_container_is_deleted_with_all_three_closed(runtime: Runtime, monitor: FakeMonitor) -> None:
    assert end(begin(runtime.argv("delete", "--force", "c1"), (0, 1, 2))) == (0, "", "")
    assert monitor.methods == ["delete"]


@closed
def test_exec_process_reads_end_of_file_and_its_output_is_discarded(
    runtime: Runtime, monitor: FakeMonitor, numbers: tuple[int, ...]
) -> None:
    process = begin(runtime.argv("exec", "c1", "true"), numbers)
    try:
        if 0 not in numbers:
            assert process.stdin is not None
            process.stdin.write(b"typed")
            process.stdin.close()
            process.stdin = None
        with Attached(monitor) as proxy:
            if 0 not in numbers:
                assert proxy.next_data() == (0, b"typed")
            assert proxy.next_data() == (0, None)
            proxy.write(1, b"to stdout")
            proxy.write(2, b"to stderr")
            proxy.exit(7)
            outputs = tuple("" if fd in numbers else words for fd, words in ((1, "to stdout"), (2, "to stderr")))
            assert end(process) == (7, *outputs)
    finally:
        process.kill()


@closed
@pytest.mark.parametrize("verb", ["create", "run"])
def test_container_that_cannot_be_created_is_an_error(
    runtime: Runtime, bundle: str, numbers: tuple[int, ...], verb: str
) -> None:
    """As far as a container can be created without a VM: the monitor and the log exist."""
    Path(bundle, "config.json").write_text(json.dumps(bundles.specification([])))
    code, output, errors = end(begin(runtime.argv(verb, "--bundle", bundle, "c2", log=True), numbers))
    assert (code, output) == (1, "")
    assert ("args: empty" in errors) == (2 not in numbers)
    assert "args: empty" in Path(runtime.log).read_text()
    assert not os.path.exists(f"{runtime.root}/c2")


@closed
def test_container_is_run_and_created(tmp_path: Path, numbers: tuple[int, ...]) -> None:
    """With a real monitor and a fake VM, whose programs write a greeting and exit."""
    with Sandboxes(str(tmp_path)) as host:
        host.program("exit", "7")
        runtime = Runtime(host.directory)
        runtime.configure(host.text)
        result = end(begin(runtime.argv("run", "--bundle", host.bundle, "c1"), numbers))
        assert result == (7, "" if 1 in numbers else "hello\n", "")
        # The container has open pipes that are not closed here: do not wait for the end of its output.
        created = begin(runtime.argv("create", "--bundle", host.bundle, "c2"), numbers)
        try:
            assert created.wait(patience(20)) == 0
            assert host.state("c2")["status"] == CREATED
            assert end(begin(runtime.argv("start", "c2"), numbers)) == (0, "", "")
            wait_until(lambda: host.state("c2")["status"] == STOPPED)
            assert end(begin(runtime.argv("delete", "c2"), numbers)) == (0, "", "")
        finally:
            created.communicate(timeout=patience(20))
        assert host.names() == []


@closed
def test_descriptors_of_a_program_and_of_its_children_are_dev_null(numbers: tuple[int, ...], tmp_path: Path) -> None:
    """A file that is opened later never gets one of the three numbers."""
    program = (
        "import json, os, sys; from hawse.linux import stdio; stdio.complete(); log = open(sys.argv[1], 'w');"
        "print('out'); print('err', file=sys.stderr); sys.stdin.read();"
        "facts = [os.fstat(n).st_rdev for n in range(3)]; json.dump([log.fileno(), facts], log)"
    )
    assert end(begin([sys.executable, "-c", program, f"{tmp_path}/log"], numbers))[0] == 0
    number, facts = json.loads((tmp_path / "log").read_text())
    assert number > 2
    assert [fact == NULL for fact in facts] == [fd in numbers for fd in range(3)]


def test_nothing_changes_if_all_three_are_open() -> None:
    before = (os.listdir("/proc/self/fd"), sys.stdin, sys.stdout, sys.stderr)
    stdio.complete()
    assert (os.listdir("/proc/self/fd"), sys.stdin, sys.stdout, sys.stderr) == before
