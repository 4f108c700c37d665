"""The log as engines read it: Podman the whole file as one object, containerd the last of many errors."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from hawse.log import Log
from tests.support.bundles import add_devices, specification, write
from tests.support.runtime import Runtime


def podman_reads(path: Path) -> str | None:
    """The message; None if it uses stderr instead (libpod/oci_conmon_common.go)."""
    try:
        return str(json.loads(path.read_text())["msg"])
    except ValueError:
        return None


def containerd_reads(path: Path) -> str:
    """The last error (cmd/containerd-shim-runc-v2/process/utils.go). A log that is not JSON raises an error."""
    entries: list[dict[str, Any]] = []
    text, decoder = path.read_text(), json.JSONDecoder()
    while text := text.lstrip():
        entry, end = decoder.raw_decode(text)
        entries.append(entry)
        text = text[end:]
    return str([entry["msg"] for entry in entries if entry["level"] == "error"][-1])


@pytest.mark.parametrize("warnings", [0, 1, 3])
@pytest.mark.parametrize("evidence", ["", "a line\nand another"])
def test_both_engines_read_the_error(tmp_path: Path, warnings: int, evidence: str) -> None:
    path = tmp_path / "log.json"
    log = Log(str(path), form="json", debug=True)
    for number in range(warnings):
        log.warning(f"warning {number}")
        log.debug(f"detail {number}: ü")
    log.error("it failed", evidence)
    assert podman_reads(path) == containerd_reads(path) == "it failed"
    entry = json.loads(path.read_text())
    assert [before["msg"] for before in entry.get("before", ())] == [
        text for number in range(warnings) for text in (f"warning {number}", f"detail {number}: ü")
    ]
    assert entry.get("evidence", "") == evidence


def test_error_contains_the_warnings_of_earlier_commands(tmp_path: Path) -> None:
    path = tmp_path / "log.json"
    Log(str(path), form="json").warning("a warning of create")
    assert len(path.read_text().splitlines()) == 1
    Log(str(path), form="json").warning("a warning of start")
    Log(str(path), form="json").error("delete failed")
    assert podman_reads(path) == "delete failed"


@pytest.mark.parametrize(
    "before",
    [
        '{"level":"error","msg":"an earlier one"}\n',
        '{"level":"warning","msg":"w"}\n{"level":"error","msg":"an earlier one"}\n',
        "time=now level=warning msg=text\n",
        '{"level":"warning"}\n\n',
        "[1]\n",
        '{"level":"warning","msg":"w"}\n' * 3000,
    ],
    ids=["error", "warning and error", "text", "empty line", "array", "journal"],
)
def test_log_of_another_program_is_appended_to(tmp_path: Path, before: str) -> None:
    path = tmp_path / "log.json"
    path.write_text(before)
    Log(str(path), form="json").error("it failed")
    assert path.read_text().startswith(before)
    assert json.loads(path.read_text()[len(before) :])["msg"] == "it failed"


def test_longer_text_is_completely_replaced_by_the_error(tmp_path: Path) -> None:
    """Another program's text with more white space becomes shorter when it is written again."""
    path = tmp_path / "log.json"
    path.write_text('{"level": "warning",' + " " * 1000 + '"msg": "w"}\n')
    Log(str(path), form="json").error("it failed")
    assert podman_reads(path) == containerd_reads(path) == "it failed"


def test_command_that_has_warned_and_failed_leaves_one_object(tmp_path: Path) -> None:
    """No VM is started, since no host has this group."""
    runtime = Runtime(str(tmp_path))
    spec = specification(["/bin/true"], apparmorProfile="docker-default")
    add_devices(spec, [("/dev/vfio/999999", 4095, 1048575)])
    (tmp_path / "rootfs").mkdir()
    write(str(tmp_path), spec)
    result = runtime("create", "--bundle", str(tmp_path), "c1", log=True)
    assert result.code == 1
    message = podman_reads(Path(runtime.log))
    assert message is not None
    assert result.errors == f"hawse: {message}\n"
    [before] = json.loads(Path(runtime.log).read_text())["before"]
    assert before["msg"].startswith("process.apparmorProfile: 'docker-default' has no effect")


def test_text_is_appended(tmp_path: Path) -> None:
    path = tmp_path / "log"
    log = Log(str(path))
    log.warning("w")
    log.error("e")
    assert [line.partition(" level=")[2] for line in path.read_text().splitlines()] == [
        'warning msg="w"', 'error msg="e"',
    ]  # fmt: skip


def test_log_may_be_a_pipe(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    text = "from hawse.log import Log; log = Log('pipe', form='json'); log.warning('w'); log.error('e')"
    with subprocess.Popen([sys.executable, "-c", text], cwd=tmp_path, stderr=subprocess.DEVNULL):
        fd = os.open(tmp_path / "pipe", os.O_RDWR)
        with open(fd) as pipe:
            assert [json.loads(pipe.readline())["msg"] for _ in "we"] == ["w", "e"]


@pytest.mark.parametrize(("spare", "taken_in"), [(0, True), (-1, False)])
def test_file_of_warnings_is_merged_up_to_a_size(tmp_path: Path, spare: int, taken_in: bool) -> None:
    """64 KiB: a larger file belongs to another program."""
    path = tmp_path / "log.json"
    warning = '{"level": "warning", "msg": "w"}\n'
    path.write_text((warning * 1000).rstrip().ljust(64 * 1024 - spare - 1) + "\n")
    Log(str(path), form="json").error("it failed")
    assert (podman_reads(path) == "it failed") is taken_in


@pytest.mark.parametrize(
    ("with_file", "form", "lines"),
    [
        (False, "text", ["hawse: warning: w", "hawse: e"]),
        (False, "json", ["w", "d", "e"]),
        (True, "text", ["hawse: e"]),
        (True, "json", ["hawse: e"]),
    ],
)
def test_output_on_stderr(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], with_file: bool, form: str, lines: list[str]
) -> None:
    """With a log file only the error, as with runc; without a file, JSON goes to stderr."""
    log = Log(str(tmp_path / "log") if with_file else None, form=form, debug=True)
    log.tell([("warning", "w"), ("debug", "d")])
    log.error("e")
    written = capsys.readouterr().err.splitlines()
    if form == "json" and not with_file:
        written = [json.loads(line)["msg"] for line in written]
    assert written == lines
    if with_file:
        text = (tmp_path / "log").read_text()
        assert [level for level in ("warning", "debug", "error") if level in text] == ["warning", "debug", "error"]


def test_evidence_follows_the_error_line_by_line(capsys: pytest.CaptureFixture[str]) -> None:
    Log().error("it failed", "one\ntwo")
    Log().error("it failed")
    assert capsys.readouterr().err == "hawse: it failed\n  | one\n  | two\nhawse: it failed\n"


def test_details_are_printed_only_for_debugging(tmp_path: Path) -> None:
    Log(str(tmp_path / "log")).debug("a detail")
    assert not (tmp_path / "log").exists()
