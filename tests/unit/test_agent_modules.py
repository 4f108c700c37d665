"""Kernel modules in the guest are loaded in the order of modules.dep, each set once."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from hawse.agent.system.modules import Modules

DEP = """kernel/fs/fuse/virtiofs.ko: kernel/fs/fuse/fuse.ko
kernel/fs/fuse/fuse.ko:
kernel/drivers/vfio/pci/vfio-pci.ko: kernel/drivers/vfio/pci/vfio-pci-core.ko kernel/drivers/vfio/vfio.ko
kernel/drivers/vfio/pci/vfio-pci-core.ko: kernel/drivers/vfio/vfio.ko
kernel/drivers/vfio/vfio.ko:
"""


@pytest.fixture
def loaded() -> list[str]:
    """The files of the modules that were loaded, in their order."""
    return []


@pytest.fixture
def table(tmp_path: Path, loaded: list[str]) -> Modules:
    def load(path: str) -> None:
        if path in loaded:
            raise OSError(errno.EEXIST, os.strerror(errno.EEXIST), path)
        loaded.append(path)

    (tmp_path / "modules.dep").write_text(DEP)
    return Modules(str(tmp_path), load=load)


def test_dependencies_are_loaded_before_the_module(table: Modules, loaded: list[str]) -> None:
    table.load(("vfio_pci", "virtiofs"))
    assert [os.path.basename(path) for path in loaded] == [
        "vfio.ko", "vfio-pci-core.ko", "vfio-pci.ko", "fuse.ko", "virtiofs.ko",
    ]  # fmt: skip


def test_set_is_loaded_once_and_built_in_modules_are_skipped(table: Modules, loaded: list[str]) -> None:
    for _ in range(2):
        table.load(("virtiofs", "ext4"))
    assert len(loaded) == 2


def test_module_that_cannot_be_loaded_is_reported_on_the_console(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(path: str) -> None:
        raise OSError(errno.ENOEXEC, "", path)

    (tmp_path / "modules.dep").write_text(DEP)
    Modules(str(tmp_path), load=refuse).load(("virtiofs",))
    assert "module kernel/fs/fuse/virtiofs.ko: Exec format error" in capsys.readouterr().out


def test_loaded_module_is_not_an_error(table: Modules, loaded: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    table.load(("vfio",))
    table.load(("vfio_pci",))
    assert len(loaded) == 3
    assert capsys.readouterr().out == ""
