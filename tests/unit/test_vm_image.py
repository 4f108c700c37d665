"""Parts of the guest image: the archive, package paths, and checks of a cached image."""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest

import hawse
from hawse.errors import ImageError
from hawse.vm.image import store
from hawse.vm.image.cpio import write_archive
from hawse.vm.image.packages import merged, parse_uris
from hawse.vm.image.store import module_name
from tests.support.cpio import Entry, read_archive
from tests.support.ready import beside


def test_archive_contains_the_whole_tree(tmp_path: Path) -> None:
    """Names and contents of every alignment, in another order than the archive's."""
    files = {f"{'n' * length}{size}é": b"x" * size for length in range(1, 5) for size in range(9)}
    os.mkdir(tmp_path / "dir-")
    for name, content in files.items():
        (tmp_path / "dir-" / name).write_bytes(content)
    os.chmod(tmp_path / "dir-" / "n1é", 0o750)
    os.mkdir(tmp_path / "empty", 0o700)
    os.symlink("dir-", tmp_path / "link")
    os.mkfifo(tmp_path / "fifo")
    output = io.BytesIO()
    size = write_archive(str(tmp_path), output, nodes=[("console", stat.S_IFCHR | 0o600, 5, 1)])
    assert size == len(output.getvalue())
    entries = read_archive(output.getvalue())
    assert {name: entry.content for name, entry in entries.items() if stat.S_ISREG(entry.mode)} == {
        f"dir-/{name}": content for name, content in files.items()
    }
    assert entries["dir-/n1é"].mode == stat.S_IFREG | 0o750
    assert entries["empty"] == Entry(stat.S_IFDIR | 0o700, b"", (0, 0))
    assert entries["link"] == Entry(stat.S_IFLNK | 0o777, b"dir-", (0, 0))
    assert entries["console"] == Entry(stat.S_IFCHR | 0o600, b"", (5, 1))
    assert "fifo" not in entries
    assert [*entries][:2] == ["dir-", "dir-/n0é"]
    assert [name for name in entries if "/" not in name] == ["dir-", "empty", "link", "console"]


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
def test_package_paths_are_merged_into_usr_and_stay_inside(path: str, expected: str) -> None:
    assert merged(path) == expected


def test_apts_uri_list_is_parsed() -> None:
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
    """A cache with a small image that is complete and current."""
    directory = tmp_path / "images" / "d1"
    directory.mkdir(parents=True)
    for name in store.BESIDE:
        (directory / name).mkdir()
        (directory / name / "modules.dep").write_text("kernel/a.ko: \n")
    files = {"vmlinux": b"kernel", "initrd.cpio": b"archive"}
    for name, content in files.items():
        (directory / name).write_bytes(content)
    manifest = {
        "digest": "d1",
        "sources": store.sources_digest("", ""),
        "release": "6.1.0",
        "build_seconds": 1.5,
        "packages": {f"package{number}": "1.0" for number in range(200)},
        "beside": beside(str(directory)),
        "files": {n: {"size": len(c), "sha256": hashlib.sha256(c).hexdigest()} for n, c in files.items()},
    }
    (directory / "manifest.json").write_text(json.dumps(manifest))
    Path(store.current_path(str(tmp_path))).write_text("d1")
    return tmp_path


def test_complete_image_is_found(cache: Path) -> None:
    current = store.locate(cache=str(cache))
    assert (current.digest, current.release, current.size, current.build_seconds) == ("d1", "6.1.0", 13, 1.5)
    assert (current.modules, current.drivers) == (f"{cache}/images/d1/modules", f"{cache}/images/d1/drivers")
    assert current.beside == 2 * len("kernel/a.ko: \n")
    assert current == store.locate(cache=str(cache))


def test_every_kind_of_damage_is_named_in_the_error(cache: Path) -> None:
    directory = cache / "images" / "d1"
    store.locate(cache=str(cache))  # and records that the files were valid

    def error_text() -> str:
        with pytest.raises(ImageError) as caught:
            store.locate(cache=str(cache))
        assert "hawse image build" in caught.value.hint
        return caught.value.message

    (directory / "initrd.cpio").write_bytes(b"ARCHIVE")
    assert error_text().endswith("initrd.cpio was altered")
    (directory / "initrd.cpio").write_bytes(b"arch")
    assert error_text().endswith("initrd.cpio has 4 bytes, not 7")
    (directory / "initrd.cpio").unlink()
    assert "initrd.cpio: No such file" in error_text()
    (directory / "manifest.json").write_text("{")
    assert error_text().endswith("manifest.json")
    (directory / "manifest.json").unlink()
    assert error_text().endswith("was removed")
    Path(store.current_path(str(cache))).unlink()
    assert error_text() == f"there is no guest image in {cache}"


def test_missing_custom_kernel_is_named_in_the_error(cache: Path) -> None:
    with pytest.raises(ImageError, match="/none: No such file"):
        store.locate(cache=str(cache), kernel="/none", modules="/none")


@pytest.mark.parametrize("name", store.BESIDE)
def test_damaged_module_directory_is_named_in_the_error(cache: Path, name: str) -> None:
    """A start checks only that the directory exists; `hawse image verify` reads its files."""
    directory = cache / "images" / "d1" / name
    store.locate(cache=str(cache), hash_files=True)
    (directory / "modules.dep").write_text("kernel/b.ko: \n")
    store.locate(cache=str(cache))
    with pytest.raises(ImageError, match=rf"the guest image is damaged: \S+/{name} was altered"):
        store.locate(cache=str(cache), hash_files=True)
    shutil.rmtree(directory)
    with pytest.raises(ImageError, match=rf"the guest image is damaged: \S+/{name} is missing"):
        store.locate(cache=str(cache))


def test_extra_modules_change_the_image(cache: Path) -> None:
    """Their order and spelling do not matter."""
    lists = [(), ("dm-crypt",), ("dm-crypt", "nfsd")]
    assert len({store.sources_digest("", "", extra) for extra in lists}) == len(lists)
    assert len({store.current_path("/c", extra=extra) for extra in lists}) == len(lists)
    same = [("dm-crypt", "nfsd"), ("nfsd", "dm_crypt", "nfsd")]
    assert len({(store.sources_digest("", "", extra), store.current_path("/c", extra=extra)) for extra in same}) == 1
    with pytest.raises(ImageError, match=r"there is no guest image with image\.extra_modules dm_crypt,nfsd in ") as no:
        store.locate(cache=str(cache), extra=["nfsd", "dm-crypt"])
    assert no.value.hint == "build it with `hawse image build`"


def test_image_of_other_sources_is_stale(cache: Path) -> None:
    path = cache / "images" / "d1" / "manifest.json"
    manifest = json.loads(path.read_text())
    path.write_text(json.dumps(manifest | {"sources": "0" * 64}))
    with pytest.raises(ImageError, match="the guest image d1 is stale") as caught:
        store.locate(cache=str(cache))
    assert "hawse image build" in caught.value.hint


def test_file_altered_after_a_successful_check_is_detected(cache: Path) -> None:
    """Its size is the same, but its modification time differs."""
    path = cache / "images" / "d1" / "vmlinux"
    store.locate(cache=str(cache))
    path.write_bytes(b"KERNEL")
    os.utime(path, ns=(1, 1))
    with pytest.raises(ImageError, match="vmlinux was altered"):
        store.locate(cache=str(cache))
    path.write_bytes(b"kernel")
    assert store.locate(cache=str(cache)).digest == "d1"


@pytest.mark.parametrize("name", ["sources", "digest", "release", "build_seconds", "files", "beside"])
def test_manifest_without_a_field_is_damaged(cache: Path, name: str) -> None:
    path = cache / "images" / "d1" / "manifest.json"
    manifest = json.loads(path.read_text())
    del manifest[name]
    path.write_text(json.dumps(manifest))
    with pytest.raises(ImageError, match=r"the guest image is damaged: \S+/manifest\.json"):
        store.locate(cache=str(cache))


def test_guest_sources_are_the_modules_that_the_agent_imports() -> None:
    names = [name for name, path in store.guest_sources() if os.path.isfile(path)]
    assert names == sorted(names)
    assert {"errors.py", "agent/__main__.py", "link/frames.py", "vfio/sysfs.py"} < set(names)
    assert all(name.endswith(".py") for name in names)
    assert not any(name.startswith(("cli/", "sandbox/", "vm/")) for name in names)
    assert {"recipe.toml", "init"} <= set(os.listdir(store.recipe_directory()))


def test_custom_kernel_changes_the_image(tmp_path: Path) -> None:
    kernel, modules = tmp_path / "vmlinuz", tmp_path / "modules"
    kernel.write_text("kernel")
    modules.mkdir()
    digests = {store.sources_digest("", ""), store.sources_digest(str(kernel), str(modules))}
    kernel.write_text("another")
    digests.add(store.sources_digest(str(kernel), str(modules)))
    os.utime(modules, ns=(1, 1))
    digests.add(store.sources_digest(str(kernel), str(modules)))
    assert len(digests) == 4
    others = [("", ""), (str(kernel), str(modules)), (str(kernel), str(tmp_path)), (str(modules), str(kernel))]
    pointers = {store.current_path("/c", *paths) for paths in others}
    assert len(pointers) == 4
    assert all(pointer.startswith("/c/images/current-") for pointer in pointers)


def test_installations_of_the_same_sources_share_an_image(tmp_path: Path) -> None:
    """As a wheel that contains the recipe, next to a checkout. An installation with another agent has another image."""
    package = os.path.dirname(hawse.__file__)
    shutil.copytree(package, tmp_path / "hawse", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(store.recipe_directory(), tmp_path / "hawse" / "guest", dirs_exist_ok=True)
    script = "from hawse.vm.image import store; print(store.__file__); print(store.current_path('/c'))"

    def ask() -> list[str]:
        environment = os.environ | {"PYTHONPATH": str(tmp_path)}
        return subprocess.check_output([sys.executable, "-c", script], env=environment, text=True).splitlines()

    assert ask() == [f"{tmp_path}/hawse/vm/image/store.py", store.current_path("/c")]
    os.utime(tmp_path / "hawse" / "agent" / "server.py", ns=(1, 1))
    assert ask()[1] == store.current_path("/c")
    (tmp_path / "hawse" / "agent" / "server.py").write_text("pass\n")
    assert ask()[1] != store.current_path("/c")


def test_image_of_another_version_is_mentioned_if_the_own_is_missing(cache: Path) -> None:
    """After an upgrade or a change of image.kernel."""
    [pointer] = (cache / "images").glob("current-*")
    pointer.rename(cache / "images" / "current-0123456789abcdef")
    with pytest.raises(ImageError) as caught:
        store.locate(cache=str(cache))
    assert caught.value.message == (
        f"there is no guest image in {cache}: those in it are of another version of hawse or another [image] section"
    )
    assert "hawse image build" in caught.value.hint
