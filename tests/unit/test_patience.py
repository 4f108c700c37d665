"""Limits of tests, and waits that report what they have seen."""

from __future__ import annotations

import pytest

from tests.support.patience import patience, wait_until


def test_limit_is_never_shorter_than_stated() -> None:
    assert patience(10) >= 10
    assert patience(20) == pytest.approx(2 * patience(10), rel=0.5)


def test_wait_returns_first_true_value() -> None:
    values = iter([0, "", None, 7, 8])
    assert wait_until(lambda: next(values)) == 7


def test_wait_reports_condition_and_what_was_seen() -> None:
    with pytest.raises(AssertionError) as raised:
        wait_until(lambda: 0, seconds=0, seen=lambda: {"state": "created"})
    text = str(raised.value)
    assert "wait_until(lambda: 0" in text
    assert "last value: 0: {'state': 'created'}" in text
