"""Configurations of tests."""

from __future__ import annotations

from hawse.config import ANNOTATIONS

_LINE = f"annotations = {list(ANNOTATIONS)}\n"


def with_annotations(text: str) -> str:
    """A configuration's text in which containers may have every annotation, unless it says which they may have."""
    if "\nannotations = " in text:
        return text
    if "[devices]\n" in text:
        return text.replace("[devices]\n", f"[devices]\n{_LINE}", 1)
    return f"{text}\n[devices]\n{_LINE}"
