"""Whether /dev/iommu maps files: only the error of an unknown command proves that it does not."""

from __future__ import annotations

import errno
import fcntl
import os
from pathlib import Path

import pytest

from hawse.vfio.host.iommufd import maps_files


@pytest.fixture
def root(tmp_path: Path) -> str:
    (tmp_path / "dev").mkdir()
    (tmp_path / "dev" / "iommu").touch()
    return str(tmp_path)


@pytest.mark.parametrize(
    ("number", "can"), [(0, True), (errno.EINVAL, True), (errno.ENOTTY, False), (errno.EOPNOTSUPP, True)]
)
def test_unknown_command_is_recognized_by_its_error(root: str, number: int, can: bool) -> None:
    calls: list[tuple[int, bytes]] = []

    def ioctl(fd: int, command: int, argument: bytes) -> None:
        assert os.path.samestat(os.fstat(fd), os.stat(f"{root}/dev/iommu"))
        assert fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDWR
        calls.append((command, argument))
        if number:
            raise OSError(number, os.strerror(number))

    before = os.listdir("/proc/self/fd")
    assert maps_files(root=root, ioctl=ioctl) is can
    # IOMMU_IOAS_MAP_FILE, with a size that no command accepts (Linux include/uapi/linux/iommufd.h).
    assert calls == [(ord(";") << 8 | 0x8F, b"\0\0\0\0")]
    assert os.listdir("/proc/self/fd") == before


def test_file_that_is_not_iommufd_has_no_command(root: str) -> None:
    assert not maps_files(root=root)


def test_host_without_iommufd_is_assumed_able(tmp_path: Path) -> None:
    assert maps_files(root=str(tmp_path))
