"""Locked memory: there is a warning only if the limit applies and cannot be raised."""

from __future__ import annotations

import resource

import pytest

from hawse.vfio.host import locked_memory

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
def test_limit_that_cannot_be_raised_for_qemu_is_a_warning(
    limit: int, capabilities: int, confined: bool, words: str
) -> None:
    """CAP_IPC_LOCK exempts the process of hawse. QEMU inherits the capability only without a jail."""
    warning = locked_memory.warning(limit, capabilities, confined=confined)
    assert words in warning
    assert bool(warning) == bool(words)


def test_this_process_has_a_limit_and_capabilities() -> None:
    limit, capabilities = locked_memory.read()
    assert limit >= -1
    assert capabilities > 0, "tests run as root"
