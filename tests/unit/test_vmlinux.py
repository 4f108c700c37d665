"""The kernel in a bzImage: position of the payload, compression, and detection of a PVH entry."""

from __future__ import annotations

import bz2
import gzip
import lzma
import struct
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hawse.vm.image import vmlinux
from tests.support.kernels import bz_image, elf, note

COMPRESSED = lzma.compress(elf()) + struct.pack("<I", len(elf()))
HEADER = 0x250


def zstd(data: bytes) -> bytes:
    """A zstd frame of unknown content size with one raw block (RFC 8878, section 3.1.1)."""
    return b"\x28\xb5\x2f\xfd\0\0" + (len(data) << 3 | 1).to_bytes(3, "little") + data


def test_kernel_compressed_with_zstd_is_extracted() -> None:
    """Debian 12's Linux 6.12 and Debian 13's kernels use zstd; the uncompressed length follows the stream."""
    packed = zstd(elf()) + struct.pack("<I", len(elf()))
    assert vmlinux.bootable(bz_image(packed)) == elf()


def test_kernel_with_a_pvh_entry_is_extracted() -> None:
    assert vmlinux.bootable(bz_image(COMPRESSED)) == elf()
    assert vmlinux.bootable(elf()) == elf()


@pytest.mark.parametrize("setup", [0, 1, 2, 4, 5])
@pytest.mark.parametrize("before", [0, 700])
def test_payload_follows_the_setup_sectors(setup: int, before: int) -> None:
    """Zero means four sectors (Linux Documentation/arch/x86/boot.rst, setup_sects)."""
    assert vmlinux.extract(bz_image(COMPRESSED, setup=setup, before=before) + b"what follows") == elf()


@pytest.mark.parametrize("compress", [lzma.compress, gzip.compress, bz2.compress])
def test_compression_formats_of_python_are_supported(compress: Callable[[bytes], bytes]) -> None:
    assert vmlinux.extract(bz_image(compress(elf()))) == elf()


@pytest.mark.parametrize("after", [b"", b"\0" * 4, b"1234", b"YZYZ"])
@pytest.mark.parametrize("compress", [lzma.compress, bz2.compress])
def test_bytes_after_the_compressed_stream_are_ignored(compress: Callable[[bytes], bytes], after: bytes) -> None:
    """The kernel's length follows, with arbitrary bytes (arch/x86/boot/compressed); "YZ" ends an xz stream."""
    assert vmlinux.extract(bz_image(compress(elf()) + after)) == elf()


@pytest.mark.parametrize(
    "image_bytes",
    [
        b"",
        b"no kernel" * 100,
        bz_image(COMPRESSED)[: HEADER - 1],
        bz_image(COMPRESSED).replace(b"HdrS", b"HdrT"),
        bz_image(COMPRESSED, length=0),
        bz_image(lzma.compress(elf()))[:-1],
        bz_image(lzma.compress(elf())[:-1]),
        bz_image(b"\xfd7zXZ\0 but broken"),
        bz_image(b"\xfd7zXZ"),
        bz_image(b"\x1f\x8b broken"),
        bz_image(gzip.compress(elf())[:-9]),
        bz_image(gzip.compress(elf())[:10] + bytes([0xFF]) * 20),
        bz_image(b"BZh broken"),
        bz_image(b"\x28\xb5\x2f\xfd but broken" + struct.pack("<I", 9)),
        bz_image(b"\x28\xb5\x2f\xfd"),
        bz_image(zstd(elf()) + struct.pack("<I", 2**32 - 1)),
        bz_image(zstd(elf()) + struct.pack("<I", len(elf()) + 1)),
        bz_image(zstd(elf()) + struct.pack("<I", len(elf()) - 1)),
        bz_image(b"LZ4 is not in Python's library"),
        bz_image(lzma.compress(elf()), length=2**32 - 1),
        bz_image(lzma.compress(elf(note(kind=7)))),
        bz_image(lzma.compress(b"\x7fELF\x02\x01 cut")),
    ],
)
def test_image_without_a_pvh_kernel_is_used_unchanged(image_bytes: bytes) -> None:
    assert vmlinux.bootable(image_bytes) == image_bytes


def test_image_of_minimum_size_has_no_payload() -> None:
    """The last field that is read ends at the end of the smallest header."""
    head = bz_image(b"", setup=1, before=0)[:HEADER]
    assert vmlinux.extract(head) == b""
    assert vmlinux.extract(head[:-4]) == b""


def test_decompressed_size_is_limited() -> None:
    """A few kilobytes may decompress to gigabytes."""
    kernel = bytes(2 * 1024 * 1024)
    packed = bz_image(gzip.compress(kernel))
    assert vmlinux.extract(packed) == kernel
    assert vmlinux.extract(packed, most=len(kernel)) == kernel
    assert vmlinux.extract(packed, most=len(kernel) - 1) == b""


@pytest.mark.parametrize(
    ("notes", "has_entry"),
    [
        (note(), True),
        (note(name=b"Xen"), True),
        (note(kind=17), False),
        (note(name=b"GNU\0"), False),
        (note(name=b"Xen2"), False),
        (b"", False),
        (note(name=b"GNU\0") + note(), True),
        (note(kind=3) + note(name=b"GNU\0", data=bytes(20)) + note(), True),
        # Names and data are padded to four bytes.
        *((note(name=b"x" * name, data=b"y" * data) + note(), True) for name in range(6) for data in range(6)),
        (note()[:12], False),
        (note() + b"rest", True),
        (note(name=b"GNU\0") + bytes(11), False),
    ],
)
def test_pvh_note_is_found_among_others(notes: bytes, has_entry: bool) -> None:
    assert vmlinux.has_pvh_entry(elf(notes)) is has_entry


@pytest.mark.parametrize("table_last", [False, True])
@pytest.mark.parametrize(
    ("kinds", "has_entry"),
    [((), False), ((1,), False), ((4,), True), ((1, 4), True), ((1, 2, 4), True), ((4, 1), True), ((1, 1), False)],
)
def test_note_segment_may_be_any_segment(kinds: tuple[int, ...], has_entry: bool, table_last: bool) -> None:
    kernel = elf(kinds=kinds, table_last=table_last)
    assert vmlinux.has_pvh_entry(kernel) is has_entry
    assert not vmlinux.has_pvh_entry(b"\x7fELF\x01\x01" + kernel[6:]), "ELF32"


@pytest.mark.parametrize("table_last", [False, True])
def test_truncated_kernel_has_no_pvh_entry(table_last: bool) -> None:
    kernel = elf(kinds=(1, 4), table_last=table_last)
    sizes = [size for size in range(len(kernel)) if vmlinux.has_pvh_entry(kernel[:size])]
    needed = len(kernel) if table_last else len(kernel) - 8 - 1
    assert all(size >= needed for size in sizes), "only the note's own data may be missing"


@given(st.binary(max_size=300))
def test_arbitrary_notes_are_read_within_bounds(data: bytes) -> None:
    vmlinux.has_pvh_entry(b"\x7fELF\x02\x01" + data)
