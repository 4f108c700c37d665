"""Errors that get a context: a new error of the same kind, and the first one stays as it is."""

from __future__ import annotations

from typing import Any

import pytest

from hawse.errors import KINDS, CommandError, DeviceError, HawseError, RefusedError, VmError, from_wire
from hawse.notes import Note, debug, noted, warning
from hawse.vfio.bind.driver_moves import HangError


def parts(error: HawseError) -> tuple[type[HawseError], str, str, str, int, tuple[Any, ...]]:
    return type(error), error.message, error.hint, error.evidence, error.exit_code, error.notes


@pytest.mark.parametrize(
    ("context", "message", "hint", "evidence"),
    [
        ({}, "no", "", ""),
        ({"where": "config.json"}, "config.json: no", "", ""),
        ({"message": "never"}, "never", "", ""),
        ({"where": "config.json", "message": "never"}, "config.json: never", "", ""),
        ({"then": "it stays"}, "no; and then it stays", "", ""),
        ({"where": "c1", "then": "it stays", "hint": "end it"}, "c1: no; and then it stays", "end it", ""),
        ({"hint": "end it", "evidence": "console"}, "no", "end it", "console"),
    ],
)
def test_context_is_added(context: dict[str, str], message: str, hint: str, evidence: str) -> None:
    error = VmError("no")
    assert parts(error.with_context(**context)) == (VmError, message, hint, evidence, 1, ())
    assert parts(error) == (VmError, "no", "", "", 1, ())


def test_hint_and_evidence_of_the_error_go_first() -> None:
    error = DeviceError("no", hint="bind it", evidence="dmesg")
    changed = error.with_context("here", hint="end it", evidence="console")
    assert (changed.hint, changed.evidence) == ("bind it", "dmesg")


@pytest.mark.parametrize("kind", [*KINDS.values(), HangError])
def test_kind_and_exit_code_stay(kind: type[HawseError]) -> None:
    for error, code in ((kind("no"), kind.exit_code), (kind("no", exit_code=42), 42)):
        for changed in (
            error.with_context("here"), error.followed_by(VmError("x", exit_code=7)), error.after([debug("a")]),
        ):  # fmt: skip
            assert (type(changed), changed.exit_code, changed is not error) == (kind, code, True)
    assert kind("no").exit_code == (127 if kind is CommandError else 1)


@pytest.mark.parametrize(
    ("first", "second", "hint"),
    [("", "", ""), ("bind it", "", "bind it"), ("", "end it", "end it"), ("a", "b", "a; b"), ("a", "a", "a")],
)
def test_second_failure_is_added_with_its_hint(first: str, second: str, hint: str) -> None:
    error, problem = DeviceError("no", hint=first, evidence="dmesg"), VmError("it stays", hint=second, evidence="log")
    assert parts(error.followed_by(problem)) == (DeviceError, "no; and then it stays", hint, "dmesg", 1, ())
    assert (error.message, error.hint) == ("no", first)
    assert (problem.message, problem.hint) == ("it stays", second)


def test_several_failures_are_in_their_order() -> None:
    error = VmError("no").followed_by(DeviceError("b", hint="c")).with_context(then="d").with_context("here")
    assert error.sentence() == "here: no; and then b; and then d [c]"


def test_notes_are_before_those_of_the_error_and_survive_a_context() -> None:
    first, second, third = debug("a"), warning("b"), warning("c")
    error = RefusedError("no").after([third]).after([first, second])
    assert error.notes == (first, second, third)
    for changed in (error.with_context("here"), error.followed_by(VmError("x")), error.after([])):
        assert changed.notes == (first, second, third)


def test_notes_are_not_sent_to_other_processes() -> None:
    """A peer's error must not be able to write lines of the log that look like this process's."""
    error = VmError("no").after([warning("a")])
    assert "notes" not in error.to_wire()
    assert from_wire(error.to_wire() | {"notes": [["warning", "b"]]}).notes == ()


def test_failure_has_the_notes_so_far() -> None:
    notes: list[Note] = [warning("a")]
    with pytest.raises(DeviceError, match=r"^no$") as caught, noted(notes):
        notes.append(debug("b"))
        with noted([warning("c")]):
            raise DeviceError("no")
    assert caught.value.notes == (warning("a"), debug("b"), warning("c"))
    assert caught.value.__cause__ is None


def test_success_and_other_exceptions_pass() -> None:
    with noted([warning("a")]):
        pass
    with pytest.raises(OSError, match=r"^x$"), noted([warning("a")]):
        raise OSError("x")
