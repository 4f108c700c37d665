"""Run commands of tests with a time limit; evidence is saved before a hanging command is killed."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tests.support import evidence
from tests.support.patience import patience


@dataclass(frozen=True)
class Result:
    """The result of a command."""

    code: int
    output: str
    errors: str


def run(
    argv: Sequence[str], *, seconds: float, stdin: str | None = None, environment: Mapping[str, str] | None = None
) -> Result:
    """Run a command and wait for its end. ``seconds`` is passed to :func:`patience`; ``stdin``: its input, or None.

    Raises AssertionError when it does not end in time, with the directory of the evidence.
    """
    limit = patience(seconds)
    with subprocess.Popen(
        argv, env=environment, text=True, errors="replace", stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        stdin=subprocess.DEVNULL if stdin is None else subprocess.PIPE,
    ) as process:  # fmt: skip
        try:
            output, errors = process.communicate(stdin, timeout=limit)
        except subprocess.TimeoutExpired:
            # pytest sets the variable to "tests/vm/test_x.py::test_y (call)".
            test = os.environ.get("PYTEST_CURRENT_TEST", "unknown").partition(" ")[0]
            saved = evidence.save(test.removeprefix("tests/"))
            process.kill()
            raise AssertionError(f"{' '.join(argv)} did not end within {limit:.0f} s; evidence: {saved}") from None
        except BaseException:
            process.kill()
            raise
    return Result(process.returncode, output, errors)
