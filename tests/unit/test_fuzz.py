"""tests.fuzz: each target with a few cases, and the runner's report of a defective parser."""

from __future__ import annotations

import os
from contextlib import nullcontext

import pytest

from hawse.errors import LinkError
from hawse.link import messages
from tests.fuzz import __main__ as runner
from tests.fuzz.engine import fuzz
from tests.fuzz.target import JSON, Target
from tests.fuzz.targets import TARGETS

_CASES = 150


@pytest.mark.parametrize("name", TARGETS)
def test_parser_withstands_hostile_inputs(name: str) -> None:
    """Each parser raises only the documented errors, and its results have a bounded size. `make fuzz` runs as many
    cases as requested."""
    outcome = fuzz(TARGETS[name], seed=1, cases=_CASES)
    assert outcome.cases == _CASES
    assert not outcome.failures, [f"{data.hex()}\n{text}" for data, text in outcome.failures.values()]


def _broken(data: bytes) -> None:
    try:
        name, params = messages.decode_event(data)
    except LinkError:
        return
    if name == "exit" and params["process"] == 0:
        raise KeyError("a bug")


BROKEN = Target("broken", JSON, [b'{"event":"exit","params":{"process":1}}'], lambda: nullcontext(_broken))


def test_same_seed_makes_the_same_cases() -> None:
    outcomes = [fuzz(BROKEN, seed=seed, cases=2000) for seed in (1, 1, 2)]
    inputs = [[data for data, _ in outcome.failures.values()] for outcome in outcomes]
    assert inputs[0] == inputs[1] != inputs[2]
    assert outcomes[0].edges == outcomes[1].edges > 10


def test_failing_input_is_printed_and_saved(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: os.PathLike[str]
) -> None:
    """The exit code is 1, and the saved input fails again."""
    monkeypatch.setitem(TARGETS, "broken", BROKEN)
    monkeypatch.setattr(runner, "EVIDENCE", str(tmp_path))
    assert runner.main(["broken", "--cases", "2000"]) == 1
    saved = [entry.path for entry in os.scandir(os.path.join(tmp_path, "fuzz"))]
    out = capsys.readouterr().out
    assert "2000 cases" in out
    for path in saved:
        with open(path, "rb") as file:
            assert file.read().hex() in out
        with pytest.raises(KeyError):
            runner.main(["broken", "--input", path])


def test_parser_without_failures_succeeds(capsys: pytest.CaptureFixture[str]) -> None:
    assert runner.main(["event", "--cases", "10"]) == 0
    assert " 0 failures" in capsys.readouterr().out
