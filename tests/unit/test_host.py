"""The comparison of a host before and after, which tests of engines and VMs end with."""

from __future__ import annotations

import pytest

from tests.support import traces
from tests.support.host import difference


def test_difference_marks_what_is_left_and_what_is_gone() -> None:
    before = {"processes": {"1 stays", "2 exits"}, "mounts": {"/"}}
    after = {"processes": {"1 stays", "3 stays too"}, "mounts": {"/"}}
    assert difference(before, after) == {"processes": {"+3 stays too", "-2 exits"}}
    assert difference(before, before) == {}


def test_failure_names_a_process_that_was_exiting_when_the_comparison_began() -> None:
    """The message says that the process is gone: it must not read as if the process still ran."""
    before = {"programs": {"7 conmon"}, "temporary files": set[str]()}
    after = {"programs": set[str](), "temporary files": set[str]()}
    with pytest.raises(AssertionError, match=r"left behind \(\+\) or gone \(-\): \{'programs': \{'-7 conmon'\}\}"):
        traces.prove_same(before, lambda: after, seconds=0)
