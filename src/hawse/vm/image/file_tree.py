"""The image's file tree: the files that the guest runs, out of the unpacked packages. Every byte is read at boot."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Sequence

from hawse.errors import ImageError
from hawse.linux import mounts
from hawse.linux.process_capabilities import keep_only
from hawse.linux.processes import ChildrenApart, give_up_privileges, leave_namespaces

_LOADER = "/lib64/ld-linux-x86-64.so.2"
_HAWSE = "usr/lib/hawse/hawse"
_PYTHON = "/usr/bin/python3"

# Runs in the unpacked tree: prints the files of every module that importing the named ones loads.
_LIST_MODULES = """
import importlib, sys
sys.path.append("/usr/lib/hawse")
for name in sys.argv[1:]:
    importlib.import_module(name)
for module in list(sys.modules.values()):
    file = getattr(module, "__file__", None)
    if file and file.startswith("/usr/lib/python3"):
        print(file)
"""
#: The mount point of a program's tree before it becomes the root; any directory of the host serves.
_PLACE = "/tmp"
_LIBRARY = "import os; print(os.path.dirname(os.__file__))"
# Runs in the unpacked tree too, so that the guest's Python compiles the byte code, whichever Python runs the build. The
# file name in the byte code is the path in the guest. Unchecked: Python does not compare it with a source, since the
# image contains no sources.
_COMPILE = """
import py_compile, sys
for path in sys.stdin.read().split():
    py_compile.compile("/" + path, cfile="/compiled/" + path + "c", dfile="/" + path, doraise=True,
                       invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH)
"""


def add_programs(full: str, tree: str, programs: Sequence[str], links: dict[str, str]) -> None:
    """Copy programs and the shared libraries that they need; create the symbolic links."""
    for program in programs:
        if not os.path.lexists(f"{full}/{program}"):
            raise ImageError(f"guest image: none of the packages contains /{program}")
        _copy_with_libraries(full, tree, program)
    for path, target in links.items():
        os.makedirs(os.path.dirname(f"{tree}/{path}"), exist_ok=True)
        os.symlink(target, f"{tree}/{path}")


def add_python(full: str, tree: str, sources: Sequence[tuple[str, str]], extra: Sequence[str]) -> None:
    """Add the agent and the part of Python's library that it loads, as byte code; import it in ``tree`` as a test."""
    for name, path in sources:
        target = inside(full, f"{_HAWSE}/{name}")
        os.makedirs(os.path.dirname(target), exist_ok=True)
        shutil.copyfile(path, target)
    names = [f"hawse.{name[:-3].replace('/', '.')}" for name, _ in sources if not name.endswith("__init__.py")]
    listed = chroot(full, _PYTHON, "-IS", "-c", _LIST_MODULES, *names, *extra).split()
    files = sorted({path.lstrip("/") for path in listed})
    compiled = [path for path in files if path.endswith(".py")] + [f"{_HAWSE}/{name}" for name, _ in sources]
    chroot(full, _PYTHON, "-IS", "-c", _COMPILE, stdin="\n".join(compiled))
    for path in compiled:
        _copy(full, tree, f"{path}c", f"compiled/{path}c")
    for path in files:
        if path.endswith(".so"):
            _copy_with_libraries(full, tree, path)
    # By this directory, which may be empty, Python recognizes its library (CPython Modules/getpath.py).
    os.makedirs(f"{tree}{chroot(full, _PYTHON, '-IS', '-c', _LIBRARY).strip()}/lib-dynload", exist_ok=True)
    chroot(tree, _PYTHON, "-IS", "-c", _LIST_MODULES, *names, *extra)


def chroot(tree: str, *argv: str, stdin: str = "") -> str:
    """Run a program of the tree with the tree as its root; returns its stdout.

    It runs as root, which owns the files, without capabilities, device nodes and network, in its own PID namespace. It
    sees no files outside the tree. Raises :class:`ImageError` with its stderr.
    """
    environment = {"PATH": "/usr/bin:/usr/sbin", "PYTHONDONTWRITEBYTECODE": "1"}
    try:
        with ChildrenApart():
            answer = subprocess.run(
                argv, input=stdin, capture_output=True, text=True, check=False, env=environment,
                preexec_fn=lambda: _confine(tree),
            )  # fmt: skip
    except (OSError, subprocess.SubprocessError) as error:
        if isinstance(error, OSError) and error.filename == argv[0]:
            raise ImageError(f"guest image: cannot run {argv[0]} of the image", evidence=str(error.strerror)) from None
        raise ImageError(
            f"guest image: cannot isolate {argv[0]} of the image from the host", hint="run as root with CAP_SYS_ADMIN"
        ) from None
    if answer.returncode:
        raise ImageError(f"guest image: {argv[0]} of the image fails", evidence=answer.stderr[-2000:])
    return answer.stdout


def _confine(tree: str) -> None:
    """In a forked child: make the tree the root, in new namespaces and without privileges. Raises OSError."""
    leave_namespaces()
    mounts.mount("none", "/", "", mounts.REC | mounts.PRIVATE)
    root = mounts.open_tree(tree)
    mounts.set_attributes(root, mounts.ATTR_NOSUID | mounts.ATTR_NODEV, recursive=False)
    mounts.attach_at(root, _PLACE)
    mounts.change_root(_PLACE)
    keep_only(())
    give_up_privileges()


def inside(tree: str, path: str) -> str:
    """The path of a file in the tree. Raises :class:`ImageError` if a symbolic link in the path leaves the tree."""
    root = os.path.realpath(tree).rstrip("/")
    if not f"{os.path.realpath(os.path.join(root, path))}/".startswith(f"{root}/"):
        raise ImageError(
            f"guest image: /{path} of the packages leads out of the image through a symbolic link",
            hint="use another mirror",
        )
    return f"{tree}/{path}"


def _copy_with_libraries(full: str, tree: str, path: str) -> None:
    _copy(full, tree, path)
    if path == "usr/bin/busybox":
        return  # static
    listed = chroot(full, _LOADER, "--list", f"/{path}")
    _copy(full, tree, _LOADER.lstrip("/"))
    for library in re.findall(r"=> (/\S+)", listed):
        _copy(full, tree, library.lstrip("/"))


def _copy(full: str, tree: str, path: str, source: str = "") -> None:
    """Copy a file, from ``source`` if given, to ``path`` in the tree; symbolic links are resolved inside ``full``."""
    target = f"{tree}/{path}"
    if os.path.exists(target):
        return
    source = source or path
    while os.path.islink(f"{full}/{source}"):
        link = os.readlink(f"{full}/{source}")
        source = link.lstrip("/") if link.startswith("/") else os.path.join(os.path.dirname(source), link)
    source = inside(full, source)
    os.makedirs(os.path.dirname(target), exist_ok=True)
    shutil.copyfile(source, target)
    os.chmod(target, os.stat(source).st_mode & 0o755)
