"""Locked memory: nothing is said unless nothing helps."""

from __future__ import annotations

import resource

import pytest

from hawse.vfio import memlock

IPC_LOCK, SYS_RESOURCE = 1 << 14, 1 << 24


@pytest.mark.parametrize(
    ("limit", "capabilities", "words"),
    [
        (resource.RLIM_INFINITY, 0, ""),
        (8 << 20, SYS_RESOURCE, ""),
        (8 << 20, IPC_LOCK, ""),
        (8 << 20, 0xFFFF ^ IPC_LOCK, "maps more than 8192 KiB for its device will fail"),
        (0, 0, "LimitMEMLOCK=infinity"),
    ],
)
def test_a_limit_that_cannot_be_lifted_is_told(limit: int, capabilities: int, words: str) -> None:
    said = memlock.warning(limit, capabilities)
    assert words in said
    assert bool(said) == bool(words)


def test_this_process_has_a_limit_and_capabilities() -> None:
    limit, capabilities = memlock.read()
    assert limit >= -1
    assert capabilities > 0, "tests run as root"
