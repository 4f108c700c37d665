"""Run every case on runc and on hawse, or on the runtime that the environment variable RUNTIME names.

A case that a runtime fails must be a known difference, and one that it passes must not be.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from functools import cache

import pytest

from tests.conformance.cases import GROUPS
from tests.conformance.differences import known
from tests.conformance.subject import Subject, chosen
from tests.conformance.suite import Answers, Case, Group
from tests.support.host import prove_unchanged, snapshot


def parameters() -> list[object]:
    """(command, group, case), in the order in which they are answered."""
    cases: list[object] = []
    for command in chosen():
        name = os.path.basename(command[0])
        marks = [pytest.mark.vm] if name == "hawse" else []
        cases += [
            pytest.param(tuple(command), group, case, id=f"{name}-{case.id}", marks=marks)
            for group in GROUPS
            for case in group.cases
        ]
    return cases


class Asked:
    """The answers of the runtimes. Each group is run once."""

    def __init__(self) -> None:
        self._subjects: dict[tuple[str, ...], Subject] = {}
        self.answers = cache(self._ask)

    def _ask(self, command: tuple[str, ...], group: str) -> Answers | Exception:
        if command not in self._subjects:
            directory = tempfile.mkdtemp(prefix="conformance-", dir="/tmp")
            os.chmod(directory, 0o755)  # users of a user namespace must find their root file system
            self._subjects[command] = Subject(command, directory)
        [selected] = [each for each in GROUPS if each.name == group]
        try:
            return selected.ask(self._subjects[command])
        except (AssertionError, OSError, ValueError, KeyError) as error:
            return error

    def close(self) -> None:
        for subject in self._subjects.values():
            subject.close()
            left = [path for path, _, _ in os.walk("/sys/fs/cgroup") if subject.prefix in path]
            assert not left, f"cgroups are left behind: {left}"


@pytest.fixture(scope="module")
def asked() -> Iterator[Asked]:
    """The answers. At the end the host must be unchanged."""
    before = snapshot()
    del before["cgroups"]  # each runtime checks its own
    answers = Asked()
    yield answers
    answers.close()
    prove_unchanged(before)


@pytest.mark.parametrize(("command", "group", "case"), parameters())
def test_case(asked: Asked, command: tuple[str, ...], group: Group, case: Case) -> None:
    answers = asked.answers(command, group.name)
    name = os.path.basename(command[0])
    if isinstance(answers, Exception):
        wrong = f"{group.name}: {answers}"
        # Known differences of some cases do not permit that the container does not run at all.
        assert all(known(each.id, name) for each in group.cases), wrong
    else:
        wrong = case.judge(answers.get(case.id, "no answer"))
    if known(case.id, name):
        assert wrong, f"{case.id}: a known difference no longer exists: remove it from the table"
    else:
        assert not wrong, wrong
