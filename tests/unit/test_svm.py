"""The patch of the lab's QEMU removes exactly one instruction, and no similar one."""

from __future__ import annotations

import re

import pytest

from tests.support.svm import without_store

#: Stores of %esi and %r12d, a call of a function 0x100 bytes from the start, then another possible store.
STORE, OTHER, AFTER = (bytes.fromhex(text) for text in ("89b350c2ffff", "4489a350c2ffff", "89b350c2ffff90"))


def call(at: int, called: int = 0x100) -> bytes:
    return b"\xe8" + (called - at - 5).to_bytes(4, "little", signed=True)


def test_store_before_the_call_is_removed() -> None:
    before = OTHER + STORE + b"\x90" * 3
    code = before + call(len(before)) + AFTER
    patched = without_store(code, 0x100)
    assert len(patched) == len(code)
    assert [at for at in range(len(code)) if code[at] != patched[at]] == list(range(len(OTHER), len(OTHER + STORE)))


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (STORE + AFTER, "calls do_interrupt_x86_hardirq 0 times"),
        (STORE + call(6) + call(11), "calls do_interrupt_x86_hardirq 2 times"),
        (OTHER + call(7), "has 0 stores of a vector"),
        (STORE * 2 + call(12), "has 2 stores of a vector"),
        (STORE + b"\x90" * 200 + call(206), "has 0 stores of a vector"),
    ],
)
def test_code_without_exactly_one_match_is_refused(code: bytes, words: str) -> None:
    with pytest.raises(ValueError, match=re.escape(words)):
        without_store(code, 0x100)
