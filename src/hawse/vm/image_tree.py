"""The image's file tree, picked from unpacked packages: only what the guest runs, since every byte is read at boot."""

from __future__ import annotations

import gzip
import lzma
import os
import re
import shutil
import subprocess
from collections.abc import Sequence

from hawse.errors import ImageError
from hawse.linux import mounts
from hawse.linux.capabilities import keep_only
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
#: Where a program's tree is mounted before it becomes the root; any directory of the host.
_PLACE = "/tmp"
_LIBRARY = "import os; print(os.path.dirname(os.__file__))"
# Runs there too, so that the byte code is of the guest's own Python, whatever runs the build. The name that goes into
# the byte code is the path in the guest; unchecked: no time of a source is compared, since there are no sources.
_COMPILE = """
import py_compile, sys
for path in sys.stdin.read().split():
    py_compile.compile("/" + path, cfile="/compiled/" + path + "c", dfile="/" + path, doraise=True,
                       invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH)
"""


def add_programs(full: str, tree: str, programs: Sequence[str], links: dict[str, str]) -> None:
    """Copy programs and the shared libraries that they need; make links."""
    for program in programs:
        if not os.path.lexists(f"{full}/{program}"):
            raise ImageError(f"guest image: no package brought /{program}")
        _copy_with_libraries(full, tree, program)
    for path, target in links.items():
        os.makedirs(os.path.dirname(f"{tree}/{path}"), exist_ok=True)
        os.symlink(target, f"{tree}/{path}")


def add_python(full: str, tree: str, sources: Sequence[tuple[str, str]], extra: Sequence[str]) -> None:
    """The agent and the part of Python's library that it loads, as byte code; proved by importing it in ``tree``."""
    for name, path in sources:
        target = _inside(full, f"{_HAWSE}/{name}")
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
    # Python takes the directory above for its own by this one (CPython Modules/getpath.py), which may be empty.
    os.makedirs(f"{tree}{chroot(full, _PYTHON, '-IS', '-c', _LIBRARY).strip()}/lib-dynload", exist_ok=True)
    chroot(tree, _PYTHON, "-IS", "-c", _LIST_MODULES, *names, *extra)


def add_kernel_modules(full: str, tree: str, modules: str, release: str, names: Sequence[str]) -> None:
    """The named modules of the directory ``modules`` with their dependencies, and a modules.dep of them.

    depmod runs in ``full``, which has kmod; the image has no need of it. Raises :class:`ImageError` for a name that is
    missing.
    """
    work, target = _inside(full, f"usr/lib/modules/{release}"), f"{tree}/usr/lib/modules/{release}"
    os.makedirs(work)
    os.makedirs(target)  # a kernel may have everything built in
    for table in ("modules.order", "modules.builtin", "modules.builtin.modinfo"):
        if os.path.exists(f"{modules}/{table}"):
            shutil.copyfile(f"{modules}/{table}", f"{work}/{table}")
    shutil.copytree(f"{modules}/kernel", f"{work}/kernel")
    chroot(full, "/usr/sbin/depmod", release)
    kept: dict[str, str] = {}
    needs = _needed(work, names)
    for path in sorted({*needs, *(other for others in needs.values() for other in others)}):
        kept[path] = _add_module(f"{work}/{path}", target, path)
    with open(f"{target}/modules.dep", "w") as file:
        for path in sorted(kept):
            file.write(f"{kept[path]}: {' '.join(kept[other] for other in needs.get(path, []))}\n")


def add_drivers(full: str, target: str, release: str, names: Sequence[str]) -> None:
    """Those of the named modules that the kernel has, with their dependencies, modules.dep and modules.alias of them.

    To be called after :func:`add_kernel_modules`, which has run depmod.
    """
    work = f"{full}/usr/lib/modules/{release}"
    needs = {module_name(path): (path, others) for path, others in _dependencies(work).items()}
    kept: dict[str, str] = {}
    chosen = [name for name in names if name in needs]
    os.makedirs(target)
    with open(f"{target}/modules.dep", "w") as file:
        for name in chosen:
            for path in (needs[name][0], *needs[name][1]):
                kept[path] = kept.get(path) or _add_module(f"{work}/{path}", target, path)
            file.write(f"{kept[needs[name][0]]}: {' '.join(kept[other] for other in needs[name][1])}\n")
    with open(f"{work}/modules.alias") as aliases, open(f"{target}/modules.alias", "w") as file:
        file.writelines(line for line in aliases if " pci:" in line and line.split()[-1] in chosen)


def _dependencies(directory: str) -> dict[str, list[str]]:
    needs: dict[str, list[str]] = {}
    with open(f"{directory}/modules.dep") as file:
        for line in file:
            path, _, others = line.partition(":")
            needs[path] = others.split()
    return needs


def _needed(directory: str, names: Sequence[str]) -> dict[str, list[str]]:
    """The files of the named modules and of all that they depend on, each with its dependencies."""
    needs = _dependencies(directory)
    by_name = {module_name(path): path for path in needs}
    with open(f"{directory}/modules.builtin") as file:
        builtin = {module_name(line.strip()) for line in file}
    keep: set[str] = set()
    for name in names:
        if name in by_name:
            keep |= {by_name[name], *needs[by_name[name]]}
        elif name not in builtin:
            raise ImageError(
                f"guest image: the kernel in {directory} has no module {name}",
                hint="build it as a module or into the kernel",
            )
    return {path: needs[path] for path in keep}


def _add_module(source: str, target: str, path: str) -> str:
    """Copy one module, uncompressed where Python can; its path below ``target``."""
    name, suffix = os.path.splitext(path)
    unpack = {".xz": lzma.decompress, ".gz": gzip.decompress}.get(suffix)
    with open(source, "rb") as packed:
        content = packed.read()
    if unpack is not None:
        path, content = name, unpack(content)
    os.makedirs(os.path.dirname(f"{target}/{path}"), exist_ok=True)
    with open(f"{target}/{path}", "wb") as file:
        file.write(content)
    return path


def module_name(path: str) -> str:
    """kernel/drivers/vfio/pci/vfio-pci.ko is the module vfio_pci."""
    return re.sub(r"\.ko(\.\w+)?$", "", os.path.basename(path)).replace("-", "_")


def chroot(tree: str, *argv: str, stdin: str = "") -> str:
    """Run a program of the tree in the tree; its stdout. Raises :class:`ImageError` with its stderr.

    It runs as root, which owns the files, and has no capability, no device node, no network, and no process or file
    but those of the tree.
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
            raise ImageError(f"guest image: {argv[0]} fails in it", evidence=str(error.strerror)) from None
        raise ImageError(
            f"guest image: {argv[0]} cannot be run apart from the host", hint="run as root with CAP_SYS_ADMIN"
        ) from None
    if answer.returncode:
        raise ImageError(f"guest image: {argv[0]} fails in it", evidence=answer.stderr[-2000:])
    return answer.stdout


def _confine(tree: str) -> None:
    """In a forked child: be among the tree's files and nothing else. Raises OSError."""
    leave_namespaces()
    mounts.mount("none", "/", "", mounts.REC | mounts.PRIVATE)
    root = mounts.open_tree(tree)
    mounts.set_attributes(root, mounts.ATTR_NOSUID | mounts.ATTR_NODEV, recursive=False)
    mounts.attach_at(root, _PLACE)
    mounts.change_root(_PLACE)
    keep_only(())
    give_up_privileges()


def _inside(tree: str, path: str) -> str:
    """The path of a file of the tree. Raises :class:`ImageError` where a symbolic link on the way leaves the tree."""
    root = os.path.realpath(tree).rstrip("/")
    if not f"{os.path.realpath(os.path.join(root, path))}/".startswith(f"{root}/"):
        raise ImageError(f"guest image: /{path} of the packages leads out of their tree", hint="use another mirror")
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
    """Copy a file to the same path, or from another, through links as they point inside of ``full``."""
    target = f"{tree}/{path}"
    if os.path.exists(target):
        return
    source = source or path
    while os.path.islink(f"{full}/{source}"):
        link = os.readlink(f"{full}/{source}")
        source = link.lstrip("/") if link.startswith("/") else os.path.join(os.path.dirname(source), link)
    source = _inside(full, source)
    os.makedirs(os.path.dirname(target), exist_ok=True)
    shutil.copyfile(source, target)
    os.chmod(target, os.stat(source).st_mode & 0o755)
