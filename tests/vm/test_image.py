"""Real builds of the image."""

from __future__ import annotations

import os
import tomllib
from pathlib import Path

import pytest

from hawse.errors import ImageError
from hawse.vm.image.build import build, kernel_packages, unpack_kernel
from hawse.vm.image.store import FILES, file_digest, locate, recipe_directory
from tests.support.caches import CACHE

pytestmark = pytest.mark.vm


def cache_with_packages(directory: Path) -> str:
    """A private cache, with the packages that were downloaded before."""
    directory.mkdir()
    os.symlink(f"{CACHE}/packages", directory / "packages")
    return str(directory)


def test_two_builds_from_the_same_inputs_are_identical(tmp_path: Path) -> None:
    """The image that the other tests boot is one of them."""
    images = [build(cache=cache, progress=print) for cache in (cache_with_packages(tmp_path / "own"), CACHE)]
    assert images[0].digest == images[1].digest
    for name in FILES:
        first, second = (file_digest(f"{os.path.dirname(image.kernel)}/{name}") for image in images)
        assert first == second
    assert locate(cache=str(tmp_path / "own")) == images[0]
    assert images[0].size > 0
    for parent, _, names in os.walk(images[0].modules):
        for name in names:
            if name.endswith(".ko"):  # another driver of PCI devices would bind to a plugged device
                assert b"alias=pci:" not in Path(parent, name).read_bytes(), name


def test_custom_kernel_has_a_separate_image(tmp_path: Path) -> None:
    cache = cache_with_packages(tmp_path / "cache")
    with open(f"{recipe_directory()}/recipe.toml", "rb") as file:
        recipe = tomllib.load(file)
    packages = kernel_packages(recipe, CACHE, print)
    kernel, modules = unpack_kernel(packages, str(tmp_path / "kernel"))
    own = build(cache=cache, progress=print, kernel=kernel, modules=modules)
    assert own.release == os.path.basename(modules)
    assert locate(cache=cache, kernel=kernel, modules=modules) == own
    with pytest.raises(ImageError, match="there is no guest image"):
        locate(cache=cache)
    Path(kernel).touch()
    with pytest.raises(ImageError, match=r"there is no guest image in .*: those in it are of another"):
        locate(cache=cache, kernel=kernel, modules=modules)


def test_error_names_a_module_that_the_kernel_lacks(tmp_path: Path) -> None:
    kernel, modules = tmp_path / "vmlinuz", tmp_path / "6.9.0-own"
    kernel.write_bytes(b"\x7fELF a kernel of the user's own")
    (modules / "kernel").mkdir(parents=True)
    (modules / "modules.builtin").write_text("kernel/drivers/char/virtio_console.ko\n")
    (modules / "modules.order").write_text("")
    with pytest.raises(ImageError, match=r"6\.9\.0-own has no module virtio_pci"):
        build(cache=cache_with_packages(tmp_path / "cache"), progress=print, kernel=str(kernel), modules=str(modules))
    assert not [name for name in os.listdir(tmp_path / "cache" / "images") if name not in ("lock",)]
