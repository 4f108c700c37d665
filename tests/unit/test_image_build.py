"""Build a whole image: a kernel and an initial ramfs from packages, the same bytes for the same inputs."""

from __future__ import annotations

import json
import lzma
import os
import shutil
import stat
import struct
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from hawse.errors import ImageError
from hawse.vm.image import store
from hawse.vm.image.build import build, kernel_packages, unpack_kernel
from hawse.vm.image.lock import hold
from hawse.vm.image.packages import Package
from hawse.vm.image.store import Image
from tests.support.cpio import read_archive
from tests.support.debs import Entry, Mirror, directory, file, link, make_deb
from tests.support.guest_files import depmod, runtime
from tests.support.kernels import bz_image, elf

RELEASE = "6.1.0-test"
KERNEL = "linux-image-6.1.0-test_6.1_amd64.deb"
BUILT_IN = [
    "virtio_console", "virtio_rng", "virtio_blk", "virtiofs", "9p", "9pnet_virtio", "overlay", "vfio_pci",
    "vfio_iommu_type1",
]  # fmt: skip
MODULES = ("drivers/virtio/virtio_pci", "drivers/net/virtio_net", "drivers/net/ethernet/igb", "net/sctp/sctp")
ALIASES = "alias pci:v00008086d*sv*sd*bc*sc*i* igb\nalias net-pf-2-proto-132 sctp\n"


@dataclass
class Builder:
    """A host whose mirror has all packages of the recipe; they contain files of the real host."""

    mirror: Mirror
    cache: str
    progress: list[str] = field(default_factory=list)

    def build(self, **options: Any) -> Image:
        return build(cache=self.cache, progress=self.progress.append, **options)

    def images(self) -> list[str]:
        return sorted(name for name in os.listdir(f"{self.cache}/images") if not name.startswith("current-"))


def offer_recipe(mirror: Mirror) -> None:
    programs = [
        file(f"./{path}", Path(source).read_bytes(), stat.S_IMODE(os.stat(source).st_mode))
        for path, source in runtime().items()
    ]
    tables = (
        "".join(f"kernel/{path}.ko:\n" for path in MODULES),
        ALIASES,
    )
    packages: dict[str, list[Entry]] = {
        "python3-minimal_3_amd64.deb": [*programs, file("./usr/share/doc/python", b"not needed")],
        "crun_1_amd64.deb": [link("./usr/bin/crun", "sh")],
        "kmod_30_amd64.deb": [file("./sbin/depmod", depmod(*tables), 0o755)],
        "busybox-static_1_amd64.deb": [file("./bin/busybox", b"busybox", 0o755)],
        KERNEL: [
            file(f"./boot/vmlinuz-{RELEASE}", bz_image(lzma.compress(elf()) + struct.pack("<I", len(elf())))),
            file(f"./boot/config-{RELEASE}", b""),
            directory(f"./lib/modules/{RELEASE}"),
            file(f"./lib/modules/{RELEASE}/modules.builtin", "".join(f"k/{name}.ko\n" for name in BUILT_IN).encode()),
            *(file(f"./lib/modules/{RELEASE}/kernel/{path}.ko", path.encode()) for path in MODULES),
        ],
        "linux-image-amd64_6_amd64.deb": [],
        "linux-base_4_all.deb": [],
    }
    for name, entries in packages.items():
        make_deb(f"{mirror.path}/{name}", entries)
    needs = {name.partition("_")[0]: [name] for name in packages}
    kernels = ["linux-image-amd64_6_amd64.deb", "linux-base_4_all.deb", KERNEL]
    mirror.offer(needs | {"libpython3-stdlib": [], "linux-image-amd64": kernels})


@pytest.fixture
def builder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Builder:
    mirror = Mirror(f"{tmp_path}/mirror", monkeypatch.setenv)
    offer_recipe(mirror)
    return Builder(mirror, f"{tmp_path}/cache")


def test_image_is_built_once_and_rebuilt_identically_when_damaged(builder: Builder) -> None:
    began = time.monotonic()
    built = builder.build()
    assert built.fresh
    assert 0 <= built.build_seconds <= time.monotonic() - began + 0.1
    assert (built.release, built.digest) == (RELEASE, os.path.basename(os.path.dirname(built.kernel)))
    assert store.locate(cache=builder.cache) == built
    assert builder.images() == sorted([built.digest, f"{built.digest}.lock", "lock"]), "nothing else is left behind"
    manifest = json.loads(Path(builder.cache, "images", built.digest, "manifest.json").read_text())
    assert manifest["packages"] == {
        "busybox-static": "1", "crun": "1", "kmod": "30", "linux-image-6.1.0-test": "6.1", "python3-minimal": "3",
    }  # fmt: skip
    assert Path(built.kernel).read_bytes() == elf()
    assert Path(built.drivers, "modules.dep").read_text() == "kernel/drivers/net/ethernet/igb.ko: \n"
    assert Path(built.modules, "modules.dep").read_text() == "kernel/net/sctp/sctp.ko: \n"
    assert Path(built.modules, "modules.alias").read_text() == "alias net-pf-2-proto-132 sctp\n"
    initrd = Path(built.initrd).read_bytes()
    entries = read_archive(initrd)
    assert entries["init"].mode == stat.S_IFREG | 0o755
    assert {name: (entry.mode, entry.device) for name, entry in entries.items() if entry.device != (0, 0)} == {
        "dev/console": (stat.S_IFCHR | 0o600, (5, 1)),
        "dev/null": (stat.S_IFCHR | 0o666, (1, 3)),
    }
    assert entries["usr/bin/sh"].content == b"busybox"
    assert entries["usr/lib/hawse/modprobe"].content == b"../../bin/busybox"
    assert entries[f"usr/lib/modules/{RELEASE}"].content == b"/run/hawse/modules"
    modules = {name.rpartition("/")[2] for name in entries if name.endswith(".ko")}
    assert modules == {"virtio_pci.ko", "virtio_net.ko"}
    assert not [name for name in entries if name.startswith("usr/share")]

    builder.progress.clear()
    assert not builder.build().fresh
    assert builder.build() == built
    assert builder.progress == [], "nothing is downloaded or built again"

    before = Path(builder.cache, "images", "0" * 64)
    before.mkdir()
    Path(store.current_path(builder.cache)).write_text(before.name)
    builder.build()
    assert before.exists(), "a start may have read the pointer"
    os.utime(before, (0, 0))
    assert builder.build() == built
    assert not before.exists()
    assert builder.progress == ["removed 1 images that nothing uses"]

    builder.progress.clear()
    Path(built.initrd).write_bytes(b"damaged")
    held = hold(os.path.dirname(built.initrd))
    with open(built.initrd, "rb") as in_use:
        again = builder.build()
        assert os.fstat(in_use.fileno()).st_nlink == 1, "the damaged image stays while a sandbox runs with it"
    os.close(held)
    assert (again.digest, Path(again.initrd).read_bytes() == initrd) == (built.digest, True)
    assert builder.progress[0].startswith("unpacking ")
    builder.build()
    assert builder.images() == sorted([built.digest, f"{built.digest}.lock", "lock"])


def test_extra_modules_give_a_separate_image(builder: Builder) -> None:
    plain = builder.build()
    built = builder.build(extra=["igb"])
    assert built.digest != plain.digest
    assert sorted(os.listdir(f"{built.modules}/kernel")) == ["drivers", "net"]
    assert [store.file_digest(path) for path in (built.kernel, built.initrd)] == [
        store.file_digest(path) for path in (plain.kernel, plain.initrd)
    ]
    assert (store.locate(cache=builder.cache), store.locate(cache=builder.cache, extra=["igb"])) == (plain, built)
    before = builder.images()
    with pytest.raises(ImageError, match=f"the kernel {RELEASE} has no module nosuch"):
        builder.build(extra=["igb", "nosuch"])
    assert builder.images() == before


def test_image_is_the_same_under_every_umask(builder: Builder) -> None:
    """QEMU runs as a separate user and reads the kernel and the initrd; only root may write to them."""
    images = []
    for umask in (0o000, 0o077):
        before = os.umask(umask)
        try:
            built = builder.build()
        finally:
            os.umask(before)
        images.append(Path(built.initrd).read_bytes())
        for parent, directories, files in os.walk(builder.cache):
            modes = {name: stat.S_IMODE(os.stat(f"{parent}/{name}").st_mode) for name in (*directories, *files)}
            assert {name: mode for name, mode in modes.items() if mode & 0o022} == {}
        directory = os.path.dirname(built.kernel)
        readable = [builder.cache, f"{builder.cache}/images", directory, built.drivers, built.kernel, built.initrd]
        assert [path for path in readable if not os.stat(path).st_mode & 0o004] == []
        shutil.rmtree(builder.cache)
    assert images[0] == images[1]


@pytest.mark.parametrize("options", [{"kernel": "/k"}, {"modules": "/m"}])
def test_kernel_without_modules_is_refused(tmp_path: Path, options: dict[str, str]) -> None:
    with pytest.raises(ImageError, match=r"image\.kernel and image\.modules go together"):
        build(cache=str(tmp_path), progress=print, **options)


@pytest.fixture
def mirror(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Mirror:
    mirror = Mirror(f"{tmp_path}/mirror", monkeypatch.setenv)
    for name in ("linux-image-amd64_6_amd64.deb", "linux-base_4_all.deb", KERNEL, "linux-image-7_7_amd64.deb"):
        Path(mirror.path, name).write_text("")
    return mirror


@pytest.mark.parametrize(("others", "count"), [([], 0), ([KERNEL, "linux-image-7_7_amd64.deb"], 2)])
def test_kernel_package_must_depend_on_exactly_one_kernel(
    mirror: Mirror, tmp_path: Path, others: list[str], count: int
) -> None:
    mirror.offer({"linux-image-amd64": ["linux-image-amd64_6_amd64.deb", "linux-base_4_all.deb", *others]})
    with pytest.raises(ImageError, match=f"linux-image-amd64 depends on {count} kernels, not on one"):
        kernel_packages({"kernel_package": "linux-image-amd64"}, str(tmp_path), print)


def test_the_kernel_and_its_modules_are_unpacked(tmp_path: Path) -> None:
    prefix = f"./lib/modules/{RELEASE}"
    deb = make_deb(
        f"{tmp_path}/{KERNEL}",
        [
            file(f"./boot/vmlinuz-{RELEASE}", b""), file(f"{prefix}/modules.order", b""),
            file(f"{prefix}/kernel/net/core/a.ko", b""), file("./usr/share/doc/x", b""),
        ],
    )  # fmt: skip
    packages = [Package("linux-image-6.1.0-test", "6.1", "", deb)]
    paths = unpack_kernel(packages, f"{tmp_path}/into")
    assert paths == (f"{tmp_path}/into/boot/vmlinuz-{RELEASE}", f"{tmp_path}/into/usr/lib/modules/{RELEASE}")
    names = {name for _, _, files in os.walk(f"{tmp_path}/into") for name in files}
    assert names == {f"vmlinuz-{RELEASE}", "modules.order", "a.ko"}
