"""The image's kernel modules, in the initial ramfs and in directories next to it, each with its dependencies."""

from __future__ import annotations

import gzip
import lzma
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from hawse.errors import ImageError
from hawse.vm.image import packages
from hawse.vm.image.modules import add_autoload, add_drivers, add_kernel_modules, find, matching
from tests.support.guest_files import depmod, lay_out, shell


def zstd(content: bytes) -> bytes:
    """A zstd frame of one raw block (RFC 8878, section 3.1.1): magic number, content size, block header, content."""
    header = bytes([0x28, 0xB5, 0x2F, 0xFD, 0x20, len(content)])
    return header + (len(content) << 3 | 1).to_bytes(3, "little") + content


PACKED: dict[str, Callable[[bytes], bytes]] = {".xz": lzma.compress, ".gz": gzip.compress, ".zst": zstd}
RELEASE = "6.1.0-test"
DEPENDENCIES = """\
kernel/drivers/net/virtio_net.ko: kernel/drivers/net/net_failover.ko.xz kernel/net/core/failover.ko.gz
kernel/drivers/net/net_failover.ko.xz: kernel/net/core/failover.ko.gz
kernel/net/core/failover.ko.gz:
kernel/drivers/net/e1000-e.ko.zst:
kernel/drivers/net/igb.ko: kernel/drivers/dca/dca.ko
kernel/drivers/dca/dca.ko:
kernel/drivers/sound.ko:
kernel/net/sctp/sctp.ko.zst: kernel/lib/libcrc32c.ko
kernel/net/sctp/sctp_diag.ko: kernel/net/sctp/sctp.ko.zst kernel/lib/libcrc32c.ko
kernel/lib/libcrc32c.ko:
"""
ALIASES = """\
alias pci:v00008086d000010D3sv*sd*bc*sc*i* e1000_e
alias pci:v00008086d0000*sv*sd*bc*sc*i* igb
alias usb:v1d2 igb
alias pci:v00001AF4d00001000sv*sd*bc*sc*i* virtio_net
alias net-pf-2-proto-132 sctp
alias net-pf-16-proto-4-type-2-132 sctp_diag
alias snd-card-0 sound
"""


@pytest.fixture
def trees(tmp_path: Path) -> tuple[str, str]:
    """Two empty merged-/usr trees: one for the packages and one for the image."""
    for name in ("full", "tree"):
        packages.unpack((), f"{tmp_path}/{name}")
    return f"{tmp_path}/full", f"{tmp_path}/tree"


@pytest.fixture
def kernel(tmp_path: Path, trees: tuple[str, str]) -> str:
    """A kernel's modules, and a depmod for them in the packages' tree."""
    lay_out(trees[0], shell())
    Path(trees[0], "usr/sbin/depmod").write_bytes(depmod(DEPENDENCIES, ALIASES))
    os.chmod(f"{trees[0]}/usr/sbin/depmod", 0o755)
    modules = tmp_path / "modules"
    for line in DEPENDENCIES.splitlines():
        path = modules / line.partition(":")[0]
        path.parent.mkdir(parents=True, exist_ok=True)
        name = path.name.partition(".")[0].encode()
        path.write_bytes(PACKED.get(path.suffix, bytes)(name))
    (modules / "modules.builtin").write_text("kernel/drivers/char/virtio-console.ko\n")
    (modules / "modules.order").write_text("")
    (modules / "source").write_text("not copied")
    return str(modules)


def files_of(directory: str) -> dict[str, bytes]:
    return {
        os.path.relpath(f"{parent}/{name}", directory): Path(parent, name).read_bytes()
        for parent, _, names in os.walk(directory)
        for name in names
    }


def test_modules_are_copied_with_their_dependencies(trees: tuple[str, str], kernel: str) -> None:
    full, tree = trees
    add_kernel_modules(full, tree, kernel, RELEASE, ["virtio_net", "virtio_console", "e1000_e"])
    expected = {
        "kernel/drivers/net/virtio_net.ko": b"virtio_net",
        "kernel/drivers/net/net_failover.ko": b"net_failover",
        "kernel/net/core/failover.ko": b"failover",
        "kernel/drivers/net/e1000-e.ko": b"e1000-e",
    }
    files = files_of(f"{tree}/usr/lib/modules/{RELEASE}")
    assert files.pop("modules.dep").decode().splitlines() == [
        "kernel/drivers/net/e1000-e.ko: ",
        "kernel/drivers/net/net_failover.ko: kernel/net/core/failover.ko",
        "kernel/drivers/net/virtio_net.ko: kernel/drivers/net/net_failover.ko kernel/net/core/failover.ko",
        "kernel/net/core/failover.ko: ",
    ]
    assert files == expected


def test_depmod_sees_the_kernels_tables(trees: tuple[str, str], kernel: str) -> None:
    """Only modules.builtin.modinfo may be missing, on kernels before 5.2."""
    add_kernel_modules(*trees, kernel, RELEASE, [])
    work = f"{trees[0]}/usr/lib/modules/{RELEASE}"
    assert {"modules.order", "modules.builtin", "kernel", "modules.dep", "modules.alias"} == set(os.listdir(work))


def test_missing_module_is_named_in_the_error(trees: tuple[str, str], kernel: str) -> None:
    with pytest.raises(ImageError, match=rf"the kernel in \S+/{RELEASE} has no module virtiofs") as caught:
        add_kernel_modules(*trees, kernel, RELEASE, ["virtio_net", "virtiofs"])
    assert caught.value.hint == "build it as a module or into the kernel"


def test_drivers_are_copied_with_dependencies_and_pci_aliases(
    trees: tuple[str, str], kernel: str, tmp_path: Path
) -> None:
    add_kernel_modules(*trees, kernel, RELEASE, ["virtio_net"])
    add_drivers(trees[0], f"{tmp_path}/drivers", RELEASE, ["igb", "ixgbe", "net_failover"])
    assert files_of(f"{tmp_path}/drivers") == {
        "kernel/drivers/net/igb.ko": b"igb",
        "kernel/drivers/dca/dca.ko": b"dca",
        "kernel/drivers/net/net_failover.ko": b"net_failover",
        "kernel/net/core/failover.ko": b"failover",
        "modules.dep": (
            b"kernel/drivers/dca/dca.ko: \n"
            b"kernel/drivers/net/igb.ko: kernel/drivers/dca/dca.ko\n"
            b"kernel/drivers/net/net_failover.ko: kernel/net/core/failover.ko\n"
            b"kernel/net/core/failover.ko: \n"
        ),
        "modules.alias": b"alias pci:v00008086d0000*sv*sd*bc*sc*i* igb\n",
    }


@pytest.mark.parametrize(
    ("patterns", "extra", "modules", "aliases"),
    [
        (["net/sctp/sctp"], [], ["libcrc32c", "sctp"], ["net-pf-2-proto-132"]),
        (["net/sctp/*", "net/none/*"], [], ["libcrc32c", "sctp", "sctp_diag"], ["net-pf-2-", "net-pf-16-"]),
        ([], ["sctp-diag", "virtio_console"], ["libcrc32c", "sctp", "sctp_diag"], ["net-pf-2-", "net-pf-16-"]),
        (["drivers/sound"], ["e1000-e"], ["sound", "e1000-e"], ["snd-card-0"]),
        ([], [], [], []),
    ],
)
def test_autoload_modules_are_listed_by_alias(
    trees: tuple[str, str], kernel: str, tmp_path: Path, patterns: list[str], extra: list[str], modules: list[str],
    aliases: list[str],
) -> None:  # fmt: skip
    """Modules are decompressed and come with their dependencies; PCI aliases are left out."""
    add_kernel_modules(*trees, kernel, RELEASE, ["virtio_net"])
    add_autoload(trees[0], f"{tmp_path}/beside", RELEASE, patterns, extra)
    files = files_of(f"{tmp_path}/beside")
    table = files.pop("modules.dep").decode()
    assert sorted(os.path.basename(line.partition(".ko:")[0]) for line in table.splitlines()) == sorted(modules)
    lines = files.pop("modules.alias").decode().splitlines()
    assert [line.split()[1].startswith(alias) for line, alias in zip(lines, aliases, strict=True)] == [True] * len(
        lines
    )
    assert files.pop("modules.builtin") == b"kernel/drivers/char/virtio-console.ko\n"
    assert sorted(files.values()) == sorted(name.encode() for name in modules)
    assert all(name.endswith(".ko") for name in files)


def test_missing_extra_module_is_named_in_the_error(trees: tuple[str, str], kernel: str, tmp_path: Path) -> None:
    add_kernel_modules(*trees, kernel, RELEASE, ["virtio_net"])
    with pytest.raises(ImageError) as caught:
        add_autoload(trees[0], f"{tmp_path}/beside", RELEASE, [], ["sctp", "nosuch-module", "ipv7"])
    assert caught.value.message == (
        f"guest image: image.extra_modules: the kernel {RELEASE} has no module nosuch-module, ipv7"
    )
    assert caught.value.hint == "correct the name, or set image.kernel and image.modules to a kernel that has it"


def test_damaged_zstd_module_is_named_in_the_error(trees: tuple[str, str], kernel: str) -> None:
    Path(kernel, "kernel/net/sctp/sctp.ko.zst").write_bytes(b"\x28\xb5\x2f\xfd cut")
    with pytest.raises(ImageError, match=r"guest image: cannot decompress \S+/sctp\.ko\.zst: "):
        add_kernel_modules(*trees, kernel, RELEASE, ["sctp"])


PATHS = ["kernel/net/ipv4/gre.ko", "kernel/net/ipv4/netfilter/ip_tables.ko.xz", "kernel/net/ipv6/ip6_gre.ko.zst"]


@pytest.mark.parametrize(
    ("patterns", "indexes"),
    [
        (["net/*"], [0, 1, 2]),
        (["net/ipv4/*"], [0, 1]),
        (["net/ipv4/gre"], [0]),
        (["*gre"], [0, 2]),
        (["net/ipv4/gre.ko", "ipv4/*", "kernel/*"], []),
        (["net/ipv6/*", "net/ipv4/netfilter/*", "net/ipv6/ip6_gre"], [1, 2]),
        ([], []),
    ],
)
def test_patterns_match_paths_of_modules(patterns: list[str], indexes: list[int]) -> None:
    assert matching(patterns, PATHS) == [PATHS[index] for index in indexes]


@pytest.mark.parametrize(
    ("names", "paths", "missing"),
    [
        (["gre"], ["kernel/net/ipv4/gre.ko"], []),
        (["ip-tables", "ip_tables"], ["kernel/net/ipv4/netfilter/ip_tables.ko.xz"], []),
        (["loop"], [], []),
        (["gre", "none-a", "loop"], ["kernel/net/ipv4/gre.ko"], ["none-a"]),
        ([], [], []),
    ],
)
def test_module_names_are_found_as_by_modprobe(names: list[str], paths: list[str], missing: list[str]) -> None:
    assert find(names, PATHS, {"loop"}) == (paths, missing)
