"""The parts of the guest image: archive, kernel, packages, and what is noticed about a kept image."""

from __future__ import annotations

import hashlib
import io
import json
import lzma
import os
import stat
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hawse.errors import ImageError
from hawse.vm import image, vmlinux
from hawse.vm.cpio import write_archive
from hawse.vm.image_tree import module_name
from hawse.vm.packages import merged, parse_uris


def read_archive(data: bytes) -> dict[str, tuple[int, bytes]]:
    """An independent reader of "newc": {path: (mode, content)}; checks the alignment and the trailer."""
    entries: dict[str, tuple[int, bytes]] = {}
    at = 0
    while True:
        assert data[at : at + 6] == b"070701"
        fields = [int(data[at + 6 + 8 * i : at + 14 + 8 * i], 16) for i in range(13)]
        mode, uid, gid, mtime, size, name_size = fields[1], fields[2], fields[3], fields[5], fields[6], fields[11]
        assert (uid, gid, mtime) == (0, 0, 0)
        name = data[at + 110 : at + 110 + name_size - 1].decode()
        at += (110 + name_size + 3) // 4 * 4
        content = data[at : at + size]
        at += (size + 3) // 4 * 4
        if name == "TRAILER!!!":
            assert at == len(data)
            return entries
        entries[name] = (mode, content)


names = st.text(st.characters(min_codepoint=33, max_codepoint=1000, exclude_characters="/"), min_size=1, max_size=20)


@given(st.dictionaries(names.filter(lambda name: name not in (".", "..")), st.binary(max_size=50), max_size=6))
def test_an_archive_holds_what_the_tree_held(files: dict[str, bytes]) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as tree:
        os.mkdir(f"{tree}/dir-")
        for name, content in files.items():
            Path(tree, "dir-", name).write_bytes(content)
        os.symlink("dir-", f"{tree}/link")
        output = io.BytesIO()
        size = write_archive(tree, output, nodes=[("console", stat.S_IFCHR | 0o600, 5, 1)])
    assert size == len(output.getvalue())
    entries = read_archive(output.getvalue())
    assert {name: content for name, (mode, content) in entries.items() if stat.S_ISREG(mode)} == {
        f"dir-/{name}": content for name, content in files.items()
    }
    assert entries["link"] == (stat.S_IFLNK | 0o777, b"dir-")
    assert stat.S_ISCHR(entries["console"][0])


def elf(note: bytes = b"Xen\0", kind: int = 18) -> bytes:
    """A file of ELF64 with one note."""
    notes = struct.pack("<III", len(note), 8, kind) + note + bytes(8)
    header = b"\x7fELF\x02\x01" + bytes(26) + struct.pack("<Q", 64) + bytes(14) + struct.pack("<HH", 56, 1)
    header = header.ljust(64, b"\0")
    return header + struct.pack("<IIQQQQQQ", 4, 0, 120, 0, 0, len(notes), 0, 0) + notes


def bz_image(payload: bytes, *, length: int | None = None) -> bytes:
    """A bzImage with one sector of setup."""
    head = bytearray(1024)
    head[0x1F1] = 1
    head[0x202:0x206] = b"HdrS"
    struct.pack_into("<II", head, 0x248, 16, len(payload) if length is None else length)
    return bytes(head) + bytes(16) + payload


def zstd(data: bytes) -> bytes:
    """A zstd frame of unknown content size with one raw block (RFC 8878, section 3.1.1)."""
    return b"\x28\xb5\x2f\xfd\0\0" + (len(data) << 3 | 1).to_bytes(3, "little") + data


@pytest.mark.parametrize("compress", [lzma.compress, zstd])
def test_bootable_returns_the_decompressed_kernel(compress: Callable[[bytes], bytes]) -> None:
    """XZ is Debian 12's format for Linux 6.1, zstd for 6.12, and Debian 13's."""
    compressed = compress(elf()) + struct.pack("<I", len(elf()))
    assert vmlinux.bootable(bz_image(compressed)) == elf()
    assert vmlinux.bootable(elf()) == elf()


@pytest.mark.parametrize(
    "image_bytes",
    [
        b"",
        b"no kernel" * 100,
        bz_image(b"\xfd7zXZ\0 but broken"),
        bz_image(b"LZ4 is not in Python's library"),
        bz_image(b"\x28\xb5\x2f\xfd but broken" + struct.pack("<I", 9)),
        bz_image(zstd(elf()) + struct.pack("<I", 2**32 - 1)),
        bz_image(b"\x28\xb5\x2f\xfd"),
        bz_image(lzma.compress(elf()), length=2**32 - 1),
        bz_image(lzma.compress(elf(kind=7))),
        bz_image(lzma.compress(b"\x7fELF\x02\x01 cut")),
    ],
)
def test_an_image_without_such_a_kernel_stays_as_it_is(image_bytes: bytes) -> None:
    assert vmlinux.bootable(image_bytes) == image_bytes


@given(st.binary(max_size=300))
def test_notes_of_any_kind_are_read_within_their_bounds(data: bytes) -> None:
    vmlinux.has_pvh_entry(b"\x7fELF\x02\x01" + data)


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("./bin/sh", "usr/bin/sh"),
        ("./usr/bin/crun", "usr/bin/crun"),
        ("./lib/modules/x", "usr/lib/modules/x"),
        ("./lib", "lib"),
        ("../../etc/passwd", ""),
        ("./a/../../b", ""),
        ("/etc/x", "etc/x"),
        (".", ""),
    ],
)
def test_packages_paths_are_merged_and_kept_inside(path: str, expected: str) -> None:
    assert merged(path) == expected


def test_apts_list_is_read() -> None:
    text = """'http://host/pool/c/crun_1.8.1_amd64.deb' crun_1.8.1_amd64.deb 123 SHA256:abc
NOTE: something
'http://host/l/libc6_2%3a1_amd64.deb' libc6_2%3a1_amd64.deb 456 MD5Sum:def
'http://host/x' ../evil.deb 1 MD5Sum:x
"""
    assert parse_uris(text) == [
        ("crun_1.8.1_amd64.deb", 123, "SHA256:abc"),
        ("libc6_2%3a1_amd64.deb", 456, "MD5Sum:def"),
    ]


def test_module_names() -> None:
    assert module_name("kernel/drivers/vfio/pci/vfio-pci.ko") == "vfio_pci"
    assert module_name("kernel/fs/9p/9p.ko.xz") == "9p"


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    """A cache with a small image that is whole and current."""
    directory = tmp_path / "images" / "d1"
    directory.mkdir(parents=True)
    files = {"vmlinux": b"kernel", "initrd.cpio": b"archive"}
    for name, content in files.items():
        (directory / name).write_bytes(content)
    manifest = {
        "digest": "d1",
        "sources": image.sources_digest("", ""),
        "release": "6.1.0",
        "build_seconds": 1.5,
        "files": {n: {"size": len(c), "sha256": hashlib.sha256(c).hexdigest()} for n, c in files.items()},
    }
    (directory / "manifest.json").write_text(json.dumps(manifest))
    Path(image.current_path(str(tmp_path))).write_text("d1")
    return tmp_path


def test_a_whole_image_is_found(cache: Path) -> None:
    found = image.locate(cache=str(cache))
    assert (found.digest, found.release, found.size, found.build_seconds) == ("d1", "6.1.0", 13, 1.5)
    assert found == image.locate(cache=str(cache))


def test_every_damage_is_named(cache: Path) -> None:
    directory = cache / "images" / "d1"
    image.locate(cache=str(cache))  # and remembers that the files were right

    def said() -> str:
        with pytest.raises(ImageError) as caught:
            image.locate(cache=str(cache))
        assert "hawse image build" in caught.value.hint
        return caught.value.message

    (directory / "initrd.cpio").write_bytes(b"ARCHIVE")
    assert said().endswith("initrd.cpio was altered")
    (directory / "initrd.cpio").write_bytes(b"arch")
    assert said().endswith("initrd.cpio has 4 bytes, not 7")
    (directory / "initrd.cpio").unlink()
    assert "initrd.cpio: No such file" in said()
    (directory / "manifest.json").write_text("{")
    assert said().endswith("manifest.json")
    (directory / "manifest.json").unlink()
    assert said().endswith("is gone")
    Path(image.current_path(str(cache))).unlink()
    assert said() == f"there is no guest image in {cache}"


def test_a_kernel_of_the_users_own_that_is_gone_is_named(cache: Path) -> None:
    Path(image.current_path(str(cache), "/none", "/none")).write_text("d1")
    with pytest.raises(ImageError, match="/none: No such file"):
        image.locate(cache=str(cache), kernel="/none", modules="/none")
