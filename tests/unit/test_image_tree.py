"""The image's file tree: programs with their libraries, Python as byte code."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path

import pytest

from hawse.errors import ImageError
from hawse.vm.image import packages
from hawse.vm.image.file_tree import add_programs, add_python, chroot
from hawse.vm.image.modules import add_kernel_modules
from hawse.vm.image.store import guest_sources
from tests.support.guest_files import lay_out, runtime

RELEASE = "6.1.0-test"


@pytest.fixture
def trees(tmp_path: Path) -> tuple[str, str]:
    """Two empty merged-/usr trees: one for the packages and one for the image."""
    for name in ("full", "tree"):
        packages.unpack((), f"{tmp_path}/{name}")
    return f"{tmp_path}/full", f"{tmp_path}/tree"


def files_of(directory: str) -> dict[str, bytes]:
    return {
        os.path.relpath(f"{parent}/{name}", directory): Path(parent, name).read_bytes()
        for parent, _, names in os.walk(directory)
        for name in names
    }


def test_program_runs_in_the_tree_with_only_its_libraries(trees: tuple[str, str]) -> None:
    tree = trees[1]
    add_programs("/", tree, ["usr/bin/env"], {"usr/local/bin/env2": "../../bin/env", "usr/bin/env3": "env"})
    for program in ("/usr/bin/env", "/usr/local/bin/env2", "/usr/bin/env3"):
        assert "PATH=/usr/bin:/usr/sbin" in chroot(tree, program)
    names = {name.rpartition("/")[2].partition(".")[0] for name in files_of(tree)}
    assert {"env", "libc"} < names
    assert not any(name.startswith("python") for name in names)


def test_program_missing_in_all_packages_is_named_in_the_error(trees: tuple[str, str]) -> None:
    with pytest.raises(ImageError, match="none of the packages contains /usr/bin/none"):
        add_programs(*trees, ["usr/bin/none"], {})


def test_static_program_is_copied_through_links_inside_the_tree(trees: tuple[str, str]) -> None:
    """Absolute links are resolved from the tree's root, relative ones from their directory; no libraries are added."""
    full, tree = trees
    Path(full, "usr/lib/busybox.real").write_text("static")
    os.chmod(f"{full}/usr/lib/busybox.real", 0o4777)
    os.symlink("busybox.real", f"{full}/usr/lib/busybox")
    os.makedirs(f"{full}/etc/alternatives")
    os.symlink("/usr/lib/busybox", f"{full}/etc/alternatives/busybox")
    os.symlink("../../etc/alternatives/busybox", f"{full}/usr/bin/busybox")
    add_programs(full, tree, ["usr/bin/busybox"], {})
    copied = os.lstat(f"{tree}/usr/bin/busybox")
    assert Path(tree, "usr/bin/busybox").read_text() == "static"
    assert (stat.S_ISREG(copied.st_mode), stat.S_IMODE(copied.st_mode)) == (True, 0o755)
    Path(full, "usr/lib/busybox.real").write_text("another")
    add_programs(full, tree, ["usr/bin/busybox"], {})
    assert Path(tree, "usr/bin/busybox").read_text() == "static", "existing files of the tree are kept"


def test_program_that_fails_in_the_tree_is_reported_with_its_stderr() -> None:
    assert chroot("/", "/bin/sh", "-c", "cat", stdin="input") == "input"
    with pytest.raises(ImageError, match="guest image: /bin/sh of the image fails") as caught:
        chroot("/", "/bin/sh", "-c", "echo out; echo why >&2; exit 3")
    assert caught.value.evidence == "why\n"


def test_programs_of_packages_are_isolated_from_the_host(trees: tuple[str, str]) -> None:
    """They run as root, which owns the files; without capabilities, device nodes, network, and the host's processes."""
    tree = trees[1]
    add_programs("/", tree, ["usr/bin/env", "bin/sh", "usr/bin/python3", "usr/bin/readlink"], {})
    lay_out(tree, runtime())
    script = """
import ctypes, json, os, socket, sys
libc = ctypes.CDLL(None)
os.mkdir("/proc")
mounted = libc.mount(b"proc", b"/proc", b"proc", 0, None)
try:
    os.mknod("/node", 0o020666, os.makedev(1, 3))
    node = "made"
except OSError as error:
    node = error.strerror
open("/written", "w").close()
print(json.dumps([os.getpid(), os.getuid(), mounted, node, socket.if_nameindex(), sorted(os.listdir("/")),
                  libc.prctl(39, 0, 0, 0, 0), [libc.prctl(23, number, 0, 0, 0) for number in range(8)]]))
"""
    pid, user, mounted, created, interfaces, names, no_new, bounding = json.loads(
        chroot(tree, "/usr/bin/python3", "-IS", "-c", script)
    )
    assert (pid, user, mounted, created) == (1, 0, -1, "Operation not permitted")
    assert [name for _, name in interfaces] == ["lo"]
    assert set(names) == {"bin", "sbin", "lib", "lib64", "usr", "proc", "written"} | set(os.listdir(tree))
    assert (no_new, bounding) == (1, [0] * 8)
    assert os.path.exists(f"{tree}/written")


def test_program_that_cannot_be_executed_is_reported(trees: tuple[str, str]) -> None:
    with pytest.raises(ImageError, match="guest image: cannot run /usr/bin/none of the image") as caught:
        chroot(trees[1], "/usr/bin/none")
    assert caught.value.evidence == "No such file or directory"


def test_symlink_of_a_package_out_of_the_tree_is_refused(trees: tuple[str, str], tmp_path: Path) -> None:
    full, tree = trees
    (tmp_path / "victim").mkdir()
    (tmp_path / "victim" / "program").write_text("secret")
    os.symlink(tmp_path / "victim", f"{full}/usr/share")
    os.symlink("../../../victim/program", f"{full}/usr/bin/program")
    os.symlink(tmp_path / "victim", f"{full}/usr/lib/hawse")
    os.symlink(tmp_path / "victim", f"{full}/usr/lib/modules")
    for name in ("usr/share/program", "usr/bin/program"):
        with pytest.raises(ImageError, match="of the packages leads out of the image"):
            add_programs(full, tree, [name], {})
    with pytest.raises(ImageError, match=r"/usr/lib/hawse/hawse/__init__\.py of the packages leads out of the image"):
        add_python(full, tree, guest_sources(), [])
    with pytest.raises(ImageError, match="of the packages leads out of the image"):
        add_kernel_modules(full, tree, str(tmp_path), RELEASE, [])
    assert os.listdir(tmp_path / "victim") == ["program"]


def test_agent_byte_code_is_imported_by_the_trees_python(trees: tuple[str, str]) -> None:
    full, tree = trees
    lay_out(full, runtime())
    add_programs(full, tree, ["usr/bin/python3"], {})
    add_python(full, tree, guest_sources(), ["encodings.ascii"])
    names = set(files_of(tree))
    assert {f"usr/lib/hawse/hawse/{name}c" for name, _ in guest_sources()} <= names
    assert not {name for name in names if name.endswith(".py")}, "byte code only"
    assert not any("argparse" in name for name in names), "only modules that the agent loads"
    text = (
        "import sys; sys.path.append('/usr/lib/hawse'); import encodings.ascii, hawse.agent.__main__ as m; "
        "print(m.main.__code__.co_filename)"
    )
    assert chroot(tree, "/usr/bin/python3", "-IS", "-c", text) == "/usr/lib/hawse/hawse/agent/__main__.py\n"
    [library] = {name.rpartition("/os.pyc")[0] for name in names if name.endswith("/os.pyc")}
    assert os.path.isdir(f"{tree}/{library}/lib-dynload")
