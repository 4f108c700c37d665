"""Loading kernel modules with a fake modprobe: its output, its exit status, and its timeout."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from hawse.vfio.bind.sysfs_writes import load_module
from tests.support.scripts import write_program


@pytest.fixture
def modprobe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The path of a fake modprobe in the first directory of PATH."""
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    return f"{tmp_path}/modprobe"


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("exit 0", ""),
        ("echo 'modprobe: only a warning' >&2", ""),
        ("echo 'modprobe: FATAL:' >&2; echo '  Module  not found.' >&2; exit 1", "modprobe: FATAL: Module not found."),
        ("echo 'on stdout'; exit 1", "on stdout"),
        ("exit 3", "modprobe ended with 3"),
        ("kill -9 $$", "modprobe ended with -9"),
        ("sleep 100", "modprobe has not ended after 0.1 s"),
    ],
)
def test_failure_has_the_output_of_modprobe(modprobe: str, body: str, reason: str) -> None:
    write_program(modprobe, body)
    assert load_module("vfio-pci", 0.1 if "sleep" in body else 20) == reason


def test_name_is_not_parsed_as_an_option(modprobe: str, tmp_path: Path) -> None:
    write_program(modprobe, f'echo "$@" >{tmp_path}/called')
    assert load_module("--version", 20) == ""
    assert (tmp_path / "called").read_text() == "-- --version\n"


def test_missing_modprobe_is_reported(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert load_module("vfio-pci", 20) == "modprobe cannot be started: No such file or directory"
