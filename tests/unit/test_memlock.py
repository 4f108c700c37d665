"""Locked memory: nothing is said unless nothing helps."""

from __future__ import annotations

import resource

import pytest

from hawse.vfio import memlock

IPC_LOCK, SYS_RESOURCE = 1 << 14, 1 << 24


@pytest.mark.parametrize(
    ("limit", "capabilities", "confined", "words"),
    [
        (resource.RLIM_INFINITY, 0, True, ""),
        (8 << 20, SYS_RESOURCE, True, ""),
        (8 << 20, SYS_RESOURCE, False, ""),
        (8 << 20, IPC_LOCK, False, ""),
        (8 << 20, IPC_LOCK, True, "maps more than 8192 KiB for its device will fail"),
        (8 << 20, 0xFFFF ^ IPC_LOCK, False, "maps more than 8192 KiB for its device will fail"),
        (0, 0, True, "LimitMEMLOCK=infinity"),
    ],
)
def test_limit_that_cannot_be_raised_for_qemu_is_warned_of(
    limit: int, capabilities: int, confined: bool, words: str
) -> None:
    """CAP_IPC_LOCK exempts hawse's own process, which QEMU inherits only without a jail."""
    said = memlock.warning(limit, capabilities, confined=confined)
    assert words in said
    assert bool(said) == bool(words)


def test_this_process_has_a_limit_and_capabilities() -> None:
    limit, capabilities = memlock.read()
    assert limit >= -1
    assert capabilities > 0, "tests run as root"
