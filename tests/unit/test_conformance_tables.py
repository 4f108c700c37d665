"""The conformance suite's tables: the page is generated from them, and they refer only to existing cases and fields."""

from __future__ import annotations

import os
import re

import pytest

from hawse.oci.fields import APPLIED, FIELDS
from tests.conformance import suite
from tests.conformance.cases import GROUPS
from tests.conformance.differences import DIFFERENCES
from tests.conformance.page import PAGE, RUNTIMES, page
from tests.conformance.proofs import PROOFS

CASES = [case for group in GROUPS for case in group.cases]
ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))


def test_page_is_generated_from_the_tables() -> None:
    assert PAGE.read_text() == page(), "python -m tests.conformance.page > docs/conformance.md"


def test_names_of_cases_are_unique() -> None:
    assert len(CASES) == len({case.id for case in CASES}) >= 150
    assert len(GROUPS) == len({group.name for group in GROUPS})


def test_difference_belongs_to_a_case_and_has_a_reason() -> None:
    assert DIFFERENCES.keys() <= {case.id for case in CASES}
    for differences in DIFFERENCES.values():
        assert differences.keys() <= set(RUNTIMES)
        assert all(len(each.why.split()) > 4 for each in differences.values())


def test_every_applied_field_has_a_proof() -> None:
    """By a case that hawse passes, or by a test module."""
    applied = {field.path for field in FIELDS if field.fate in APPLIED}
    assert applied == PROOFS.keys()
    passed = {case.id for case in CASES if "hawse" not in DIFFERENCES.get(case.id, {})}
    for proofs in PROOFS.values():
        for proof in proofs:
            assert proof in passed or os.path.isfile(f"{ROOT}/{proof}"), proof


@pytest.mark.parametrize(
    ("right", "answer", "good"),
    [("a", "a", True), ("a", "ab", False), (re.compile("a"), "ba", True), (re.compile("^a"), "ba", False)],
)
def test_answer_equals_the_text_or_matches_the_pattern(right: suite.Right, answer: str, good: bool) -> None:
    case = suite.Case("id", "section", "what it says", right)
    assert bool(case.judge(answer)) is not good
