"""Kernel modules, loaded by a program that stands for modprobe: its words, its silence, and its end."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from hawse.vfio.writes import load_module
from tests.support.scripts import write_program


@pytest.fixture
def modprobe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Its path, which is the first on PATH."""
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
def test_the_reason_why_a_module_is_not_loaded(modprobe: str, body: str, reason: str) -> None:
    write_program(modprobe, body)
    assert load_module("vfio-pci", 0.1 if "sleep" in body else 20) == reason


def test_a_name_is_never_an_option(modprobe: str, tmp_path: Path) -> None:
    write_program(modprobe, f'echo "$@" >{tmp_path}/called')
    assert load_module("--version", 20) == ""
    assert (tmp_path / "called").read_text() == "-- --version\n"


def test_a_host_without_modprobe_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert load_module("vfio-pci", 20) == "modprobe cannot be started: No such file or directory"
