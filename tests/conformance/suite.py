"""Cases, groups of cases that share a container, and the judgement of answers.

A case consists of a sentence of the OCI runtime specification, a command and the correct answer. A VM needs seconds to
start, so the cases of a group share one container, or one sequence of commands.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from tests.conformance.subject import Bundle, Subject

Spec = dict[str, Any]
Answers = dict[str, str]
#: The whole answer, or a pattern that must occur in it.
Right = str | re.Pattern[str]

_MARK = "@@ "


@dataclass(frozen=True)
class Case:
    """One case. ``command``: run by a shell in the container, if the case concerns the inside of the container."""

    id: str
    section: str
    says: str
    right: Right
    command: str = ""

    def judge(self, answer: str) -> str:
        """Returns what is wrong with an answer; empty if it is correct."""
        good = answer == self.right if isinstance(self.right, str) else bool(self.right.search(answer))
        return "" if good else f"{self.id}: {self.says}: {answer!r} is not {self.right!r}"


@dataclass(frozen=True)
class Group:
    """Cases that are answered together. ``ask`` returns the answers by the ids of the cases."""

    name: str
    cases: Sequence[Case]
    ask: Callable[[Subject], Answers]


def inside(name: str, edit: Callable[[Spec, Bundle], None], cases: Sequence[Case]) -> Group:
    """A group whose cases are commands in one container. ``edit`` changes its bundle."""

    def ask(subject: Subject) -> Answers:
        script = "\n".join(f"echo; echo '{_MARK}{case.id}'; ( {case.command} ) 2>&1" for case in cases)
        bundle = subject.bundle(["/bin/sh", "-c", script])
        edit(bundle.spec, bundle)
        done = subject.run(bundle)
        sections = f"\n{done.output}".split(f"\n{_MARK}")[1:]
        assert sections, f"the container did not run: {done}"
        return dict(map(_section, sections))

    return Group(name, cases, ask)


def refused(name: str, section: str, bundles: Sequence[tuple[str, str, str, Callable[[Spec, Bundle], None]]]) -> Group:
    """A group of bundles that must be refused. Each has an id, a sentence, a pattern of the error, and an edit."""

    def ask(subject: Subject) -> Answers:
        answers = {}
        for case, _, _, edit in bundles:
            bundle = subject.bundle(["/bin/true"])
            edit(bundle.spec, bundle)
            done = subject.create(bundle)
            answers[case] = "it was created" if done.code == 0 else done.errors
            if done.code == 0:
                subject("delete", "--force", bundle.name)
            elif subject("state", bundle.name).code == 0:
                answers[case] = "it failed, and exists"
        return answers

    cases = [Case(case, section, says, re.compile(words)) for case, says, words, _ in bundles]
    return Group(name, cases, ask)


def _section(text: str) -> tuple[str, str]:
    name, _, answer = text.partition("\n")
    return name, answer.rstrip("\n")
