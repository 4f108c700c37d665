"""docs/errors.md: each situation on the page is reproduced, and its error is the one on the page.

``python -m tests.errors.page > docs/errors.md`` writes the page.
"""

from __future__ import annotations

import re

import pytest

from tests.errors.page import PAGE, SECTIONS, SITUATIONS, error_of


@pytest.mark.parametrize("situation", SITUATIONS)
def test_error_of_each_situation_is_on_the_page(situation: str) -> None:
    sections = dict(re.findall(r"\*\*(.*)\.\*\*\n\n    hawse: (.*)\n", PAGE.read_text()))
    assert error_of(SITUATIONS[situation]) == sections[situation]


@pytest.mark.parametrize("situation", SITUATIONS)
def test_error_does_not_repeat_itself(situation: str) -> None:
    """No three words occur twice in the sentence: an error that passes on another one does not repeat its words."""
    sections = dict(re.findall(r"\*\*(.*)\.\*\*\n\n    hawse: (.*)\n", PAGE.read_text()))
    words = [word.strip(":,;") for word in re.sub(r" \[[^]]*\]$", "", sections[situation]).split()]
    runs = [tuple(words[index : index + 3]) for index in range(len(words) - 2)]
    assert [run for run in runs if runs.count(run) > 1] == []


def test_page_contains_exactly_these_situations() -> None:
    assert len(SITUATIONS) >= 25
    assert sum(map(len, SECTIONS.values())) == len(SITUATIONS), "a situation occurs in two sections"
    assert re.findall(r"^## (.*)", PAGE.read_text(), re.MULTILINE) == list(SECTIONS)
    assert re.findall(r"\*\*(.*)\.\*\*", PAGE.read_text()) == list(SITUATIONS)
