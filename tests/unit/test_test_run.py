"""The output and the evidence of a run in which tests fail, hang and are skipped: see tests/conftest.py."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

_TOP = Path(__file__).parents[2]
_TESTS = """
import subprocess, sys
import pytest
from tests.support import evidence

pytestmark = pytest.mark.vm


def test_fails(tmp_path):
    state = tmp_path / "state" / "c1"
    state.mkdir(parents=True)
    for name in ("console.log", "qmp.log", "state.json"):
        (state / name).write_text(name)
    evidence.watch(str(tmp_path / "state"))
    assert not "a failure"


@pytest.mark.timeout(2)
def test_hangs():
    subprocess.run([sys.executable, "-c", "import time; time.sleep(1000)", "hawse-stand-in"])


def test_skipped():
    pytest.skip("needs huge pages: reserve some")


def test_survives(fault_survived):
    fault_survived("a fault")
"""


def test_failing_run_saves_evidence_and_closes_with_counts(tmp_path: Path) -> None:
    (tmp_path / "test_sample.py").write_text(_TESTS)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "tests.conftest", "-p", "no:cacheprovider",
         "-c", f"{_TOP}/pyproject.toml", f"--basetemp={tmp_path}/base", "--durations=10", f"{tmp_path}/test_sample.py"],
        cwd=_TOP, capture_output=True, text=True, env=os.environ | {"HAWSE_EVIDENCE": str(tmp_path / "evidence")},
        check=False,
    )  # fmt: skip
    assert done.returncode == 1, done.stdout + done.stderr
    saved = re.findall(rf"^{tmp_path}/evidence/\S+", done.stdout, re.MULTILINE)
    failed, hung = sorted(saved)
    names = {path.name for path in Path(failed).rglob("*") if path.is_file()}
    assert names == {"console.log", "qmp.log", "state.json", "processes.txt"}
    processes = Path(hung, "processes.txt").read_text()
    assert "hawse-stand-in" in processes, "the hanging process still exists when evidence is saved"
    assert "<module> (<string>:1)" in processes, "with its Python stack"
    assert "not run: Skipped: needs huge pages: reserve some\n" in done.stdout
    assert "faults injected and survived: 1\n" in done.stdout
    assert "slowest 10 durations" in done.stdout
    assert re.search(r"=+ 2 failed, 1 passed, 1 skipped in [\d.]+s =+\n\Z", done.stdout), "the counts are last"
