"""Directories of huge pages, recognized with this host's kernel, in a private mount namespace."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import hawse

_PACKAGES = os.path.dirname(os.path.dirname(os.path.abspath(hawse.__file__)))


def hugetlbfs_at(directory: Path, path: str) -> str:
    """The huge pages at a path below a hugetlbfs with pages of 2 MiB, or the error."""
    if not os.path.isdir("/sys/kernel/mm/hugepages/hugepages-2048kB"):
        pytest.skip("this kernel has no huge pages of 2 MiB")
    program = (
        f"import sys; sys.path.insert(0, {_PACKAGES!r})\n"
        "from hawse.oci.guest.hugetlbfs import hugetlbfs\n"
        "try: print(hugetlbfs(sys.argv[1]))\n"
        "except Exception as error: print(error)"
    )
    script = (
        "mount -t hugetlbfs -o pagesize=2M,mode=1750,uid=7,gid=8 none $1 && mkdir -m 700 $1/below && >$1/file && "
        'exec "$2" -c "$3" "$1/$4"'
    )
    words = ["unshare", "--mount", "sh", "-c", script, "sh", str(directory), sys.executable, program, path]
    return subprocess.check_output(words, text=True).strip()


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("", "Hugetlbfs(kib=2048, mode=1000, uid=7, gid=8)"),
        ("below", "Hugetlbfs(kib=2048, mode=448, uid=0, gid=0)"),
        ("none", "None"),
        ("..", "None"),
    ],
)
def test_directory_of_huge_pages_has_their_size_and_its_owners(tmp_path: Path, path: str, words: str) -> None:
    assert hugetlbfs_at(tmp_path, path) == words


def test_file_of_huge_pages_is_refused(tmp_path: Path) -> None:
    assert hugetlbfs_at(tmp_path, "file") == (
        f"{tmp_path}/file is a file of the host's huge pages, which cannot be shared with a virtual machine"
    )
