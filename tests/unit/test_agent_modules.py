"""Kernel modules in the guest: loaded in the order that modules.dep gives, each set once."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from hawse.agent.system import modules, syscalls

DEP = """kernel/fs/fuse/virtiofs.ko: kernel/fs/fuse/fuse.ko
kernel/fs/fuse/fuse.ko:
kernel/drivers/vfio/pci/vfio-pci.ko: kernel/drivers/vfio/pci/vfio-pci-core.ko kernel/drivers/vfio/vfio.ko
kernel/drivers/vfio/pci/vfio-pci-core.ko: kernel/drivers/vfio/vfio.ko
kernel/drivers/vfio/vfio.ko:
"""


@pytest.fixture
def loaded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    order: list[str] = []

    def load_module(path: str) -> None:
        if path in order:
            raise OSError(errno.EEXIST, os.strerror(errno.EEXIST), path)
        order.append(path)

    monkeypatch.setattr(syscalls, "load_module", load_module)
    return order


@pytest.fixture
def table(tmp_path: Path) -> modules.Modules:
    (tmp_path / "modules.dep").write_text(DEP)
    return modules.Modules(str(tmp_path))


def test_what_a_module_needs_comes_first(table: modules.Modules, loaded: list[str]) -> None:
    table.load(("vfio_pci", "virtiofs"))
    assert [os.path.basename(path) for path in loaded] == [
        "vfio.ko", "vfio-pci-core.ko", "vfio-pci.ko", "fuse.ko", "virtiofs.ko",
    ]  # fmt: skip


def test_a_set_is_loaded_once_and_what_is_built_in_not_at_all(table: modules.Modules, loaded: list[str]) -> None:
    for _ in range(2):
        table.load(("virtiofs", "ext4"))
    assert len(loaded) == 2


def test_a_module_that_fails_is_told_to_the_console(
    table: modules.Modules, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(path: str) -> None:
        raise OSError(errno.ENOEXEC, "", path)

    monkeypatch.setattr(syscalls, "load_module", refuse)
    table.load(("virtiofs",))
    assert "module kernel/fs/fuse/virtiofs.ko: Exec format error" in capsys.readouterr().out


def test_a_module_that_is_loaded_already_is_no_failure(
    table: modules.Modules, loaded: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    table.load(("vfio",))
    table.load(("vfio_pci",))
    assert len(loaded) == 3
    assert capsys.readouterr().out == ""
