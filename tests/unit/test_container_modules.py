"""Modules that every guest loads: their names are looked up in the image's directories before anything is started."""

from __future__ import annotations

from pathlib import Path

import pytest

from hawse.errors import ConfigError, ImageError
from hawse.planner.kernel_modules import check_loaded, modules_share


@pytest.fixture
def directory(tmp_path: Path) -> str:
    (tmp_path / "modules.dep").write_text("kernel/net/dm-crypt.ko: kernel/x/dm-mod.ko\nkernel/x/dm-mod.ko: \n")
    (tmp_path / "modules.builtin").write_text("kernel/net/ipv6/ipv6.ko\n")
    return str(tmp_path)


@pytest.mark.parametrize("names", [[], ["dm_crypt"], ["dm-crypt", "dm_mod"], ["ipv6"]])
def test_names_of_modules_in_the_image_or_built_in(directory: str, names: list[str]) -> None:
    check_loaded(names, directory)


def test_names_that_are_missing(directory: str) -> None:
    with pytest.raises(ConfigError) as caught:
        check_loaded(["dm_crypt", "nfsd", "dm", "ipv-6"], directory)
    assert caught.value.message == "vm.load_modules: nfsd, dm, ipv-6: not among the modules of the guest image"
    assert caught.value.hint == "add it to image.extra_modules, then `hawse image build`"


def test_damaged_image_is_named(tmp_path: Path) -> None:
    check_loaded([], str(tmp_path))
    with pytest.raises(ImageError, match=r"the guest image is damaged: \S+/modules\.dep: No such file or directory"):
        check_loaded(["dm_crypt"], str(tmp_path))


def test_share_is_read_only() -> None:
    share = modules_share("/c/images/d1/vmlinux")
    assert (share.source, share.readonly, share.is_dir) == ("/c/images/d1/modules", True, True)
