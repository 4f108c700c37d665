"""Conventions of a runtime's command that engines rely on, and that the tests with engines do not show."""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from hawse.version import SPEC_VERSION, VERSION
from tests.support.bundles import make_bundle
from tests.support.host import prove_unchanged, snapshot
from tests.support.patience import patience
from tests.support.runtime import HAWSE, Runtime

pytestmark = pytest.mark.engine


def bare(*argv: str, **options: object) -> subprocess.CompletedProcess[str]:
    """Run hawse as Podman does for kill, delete and pause: without PATH and HOME (libpod oci_conmon_common.go)."""
    null = subprocess.DEVNULL
    return subprocess.run(argv, env={}, stdin=null, text=True, check=False, timeout=patience(30), **options)  # type: ignore[call-overload, no-any-return]


def test_version_has_the_format_that_engines_parse() -> None:
    done = bare(HAWSE, "--version", capture_output=True)
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.strip().split("\n")
    # `docker info` (moby daemon/info_unix.go, parseRuntimeVersion): one line has "version", one begins with "commit:".
    [line] = [line for line in lines if "version" in line]
    name, number = line.split("version")
    assert (name.strip(), number.strip()) == ("hawse", VERSION)
    assert [line.removeprefix("commit:").strip() for line in lines if line.startswith("commit:")] == [VERSION]
    # go-runc (runc.go, parseVersion) parses the second line and later ones. If the first line does not begin with
    # runc's name, the version is empty, which is not an error.
    assert lines[1:] == [f"commit: {VERSION}", f"spec: {SPEC_VERSION}"]
    assert re.fullmatch(r"\d+\.\d+\.\d+", SPEC_VERSION)


def test_program_starts_without_a_path_variable() -> None:
    """`env -i` sets no PATH, so the interpreter must be named by an absolute path."""
    first = Path(HAWSE).read_bytes().split(b"\n")[0]
    assert first.startswith(b"#!/"), first
    assert b"/env" not in first


@pytest.mark.parametrize("verb", ["checkpoint", "restore"])
@pytest.mark.parametrize("options", [[], ["--image-path", "/x", "--work-path", "/y"], ["--help"]])
def test_checkpoint_and_restore_are_refused_with_one_sentence(tmp_path: Path, verb: str, options: list[str]) -> None:
    """Podman first runs `checkpoint --help`. If that fails, it knows that the runtime does not support checkpoints."""
    log = tmp_path / "log.json"
    words = ["--root", f"{tmp_path}/root", "--log", str(log), "--log-format", "json"]
    done = bare(HAWSE, *words, verb, *options, "c1", capture_output=True)
    sentence = f"unknown command '{verb}': a virtual machine with devices cannot be saved [see `hawse --help`]"
    assert (done.returncode, done.stdout, done.stderr) == (1, "", f"hawse: {sentence}\n")
    assert json.loads(log.read_text())["msg"] == sentence


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Runtime]:
    """A container `c1` that was created and started without an environment."""
    before = snapshot()
    runtime = Runtime(str(tmp_path))
    make_bundle(f"{tmp_path}/bundle", ["/bin/sh", "-c", "trap 'exit 3' TERM; while :; do sleep 1; done"])
    with open(f"{tmp_path}/said", "w+") as said:
        for words in (["create", "--bundle", f"{tmp_path}/bundle", "c1"], ["start", "c1"]):
            done = bare(*runtime.argv(*words), stdout=subprocess.DEVNULL, stderr=said)
            said.seek(0)
            assert done.returncode == 0, said.read()
    yield runtime
    runtime("delete", "--force", "c1")
    prove_unchanged(before)


@pytest.mark.vm
def test_all_commands_work_without_an_environment(running: Runtime) -> None:
    def run(*words: str) -> str:
        done = bare(*running.argv(*words), capture_output=True)
        assert done.returncode == 0, done
        return str(done.stdout)

    assert json.loads(run("state", "c1"))["status"] == "running"
    for verb, status in (("pause", "paused"), ("resume", "running")):
        run(verb, "c1")
        assert json.loads(run("state", "c1"))["status"] == status
    assert run("exec", "c1", "echo", "words") == "words\n"
    run("kill", "c1", "9")
    run("delete", "--force", "c1")


@pytest.mark.vm
@pytest.mark.parametrize("options", [[], ["--log-format", "json"]])
def test_state_is_printed_when_nobody_reads_stderr(running: Runtime, options: list[str]) -> None:
    """Podman 4 closes the other end of stderr at once (libpod oci_conmon_common.go), so writing there may fail."""
    reader, writer = os.pipe()
    os.close(reader)
    try:
        done = bare(*running.argv(*options, "state", "c1"), stdout=subprocess.PIPE, stderr=writer)
        absent = bare(*running.argv(*options, "state", "none"), stdout=subprocess.PIPE, stderr=writer)
    finally:
        os.close(writer)
    assert done.returncode == 0
    assert json.loads(done.stdout)["status"] == "running"
    assert (absent.returncode, absent.stdout) == (1, "")
