"""The files in the root of a confined QEMU: the program, its libraries, one module and its firmware.

``<cache>/jails/<digest>/`` contains them at the same paths as on the host, and empty directories as mount points. This
tree is created once for each QEMU, and again when one of the files has changed.
"""

from __future__ import annotations

import fcntl
import glob
import hashlib
import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterable, Iterator

from hawse.cache import results, trusted
from hawse.errors import HostError
from hawse.jail import elf, seccomp
from hawse.jail.root_directory import INITRD, KERNEL
from hawse.json_text import parse
from hawse.linux.files import replace_file, sync_file
from hawse.linux.processes import give_up_privileges

#: The version of the tree: increase it when the tree contains other files for the same QEMU.
_FORMAT = 2
#: A user without privileges, for the trial run, which only reads the tree.
_NOBODY = 65534
_SECONDS = 30
_BIOS = "bios-256k.bin"
_FIRMWARE = (_BIOS, "kvmvapic.bin", "linuxboot_dma.bin", "pvh.bin")
#: The directories where QEMU looks for firmware and modules, below its installation prefix (-L help): Debian's,
#: Fedora's, Red Hat's and upstream's. The program itself may be installed elsewhere.
_FIRMWARE_DIRECTORIES = ("share/qemu", "share/seabios", "share/qemu-firmware", "share/qemu-kvm")
_MODULE_DIRECTORIES = ("lib/*-linux-gnu/qemu", "lib64/qemu", "lib/qemu")
#: The module that a modular QEMU needs to run without KVM.
_MODULES = "accel-tcg-x86_64.so"
_DIRECTORIES = ("dev", "proc", "sys", "boot")
#: A trial run that proves that QEMU finds its files: it starts, answers QMP commands and exits.
_TRIAL = ["-machine", "none", "-nodefaults", "-no-user-config", "-display", "none", "-qmp", "stdio"]
_COMMANDS = '{"execute": "qmp_capabilities"}\n{"execute": "quit"}\n'


def obtain(qemu: str, *, cache: str) -> str:
    """The directory of the tree for a QEMU; created if necessary.

    Raises :class:`HostError` with the reason why no tree can be created for this QEMU.
    """
    directory = trusted.make(cache, "jails")
    record = f"{directory}/{hashlib.sha256(qemu.encode()).hexdigest()[:16]}.json"
    if tree := _known(record, directory):
        return tree
    with results.locked(f"{directory}/lock"):
        return _known(record, directory) or _make(qemu, directory, record)


def _known(record: str, directory: str) -> str:
    """The directory of the tree that a record names, if all its files are unchanged; otherwise ""."""
    try:
        with open(record, "rb") as file:
            content = parse(file.read(1024 * 1024))
        if content["format"] == _FORMAT and all(_stamp(path) == stamp for path, stamp in content["files"].items()):
            tree = f"{directory}/{content['tree']}"
            sizes = {path: size for path, (size, *_) in content["files"].items()}
            return tree if all(os.path.getsize(tree + path) == size for path, size in sizes.items()) else ""
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        pass  # the record is missing or damaged: the tree is created again
    return ""


def _make(qemu: str, directory: str, record: str) -> str:
    files = {path: _stamp(path) for path in sorted(set(_sources(qemu)))}
    name = hashlib.sha256(json.dumps([_FORMAT, files]).encode()).hexdigest()[:32]
    tree, new = f"{directory}/{name}", f"{directory}/.{name}.new"
    shutil.rmtree(new, ignore_errors=True)  # left by a process that was killed
    try:
        for path in files:
            trusted.make_directories(os.path.dirname(new + path))
            _copy(path, new + path)
        for below in _DIRECTORIES:
            trusted.make_directories(f"{new}/{below}")
        for path in (KERNEL, INITRD):
            os.close(trusted.open_file(new + path))
        _prove(qemu, new)
        if os.path.isdir(tree):  # damaged, and perhaps the root of a running QEMU
            name = f"{name}-{time.time_ns()}"
        os.rename(new, f"{directory}/{name}")
        content = {"format": _FORMAT, "tree": name, "files": files}
        replace_file(record, json.dumps(content).encode(), mode=0o644)
    except OSError as error:
        raise HostError(f"cannot create the jail's files in {directory}: {error.strerror}: {error.filename}") from None
    finally:
        shutil.rmtree(new, ignore_errors=True)
    _prune(directory)
    return f"{directory}/{name}"


def _copy(source: str, target: str) -> None:
    """Copy a file and sync it: otherwise a power failure may leave an empty file, which every start would use."""
    shutil.copyfile(source, target)
    os.chmod(target, 0o555)
    sync_file(target)


def _sources(qemu: str) -> Iterator[str]:
    """The paths of all files that the tree contains."""
    try:
        with open(qemu, "rb") as file:
            is_program = file.read(4) == b"\x7fELF"
    except OSError as error:
        raise HostError(f"QEMU cannot be run: {qemu}: {error.strerror}", hint="check vm.qemu") from None
    if not is_program:
        raise HostError(
            f"{qemu} is not an ELF program, and the jail does not contain an interpreter for scripts",
            hint="set vm.qemu to the QEMU program itself",
        )
    yield qemu
    loader = elf.interpreter(qemu)
    # Do not use LD_TRACE_LOADED_OBJECTS: a static program ignores it and runs.
    libraries = [loader, *_libraries([loader, "--list", qemu])] if loader else []
    yield from libraries
    prefixes = dict.fromkeys((os.path.dirname(os.path.dirname(os.path.realpath(qemu))), "/usr", "/usr/local"))
    for name in _FIRMWARE:
        places = [f"{prefix}/{directory}/{name}" for prefix in prefixes for directory in _FIRMWARE_DIRECTORIES]
        existing = [place for place in places if os.path.exists(place)]
        if not existing and name == _BIOS:
            raise HostError(
                f"{qemu}: its firmware {name} is missing", hint="install the package that contains it, such as seabios"
            )
        yield from existing
    for directory in _MODULE_DIRECTORIES:
        for module in glob.glob(f"{next(iter(prefixes))}/{directory}/{_MODULES}"):
            yield module
            library_path = ":".join(sorted({os.path.dirname(path) for path in libraries}))
            yield from _libraries([loader, "--library-path", library_path, "--list", module])


def _libraries(argv: list[str]) -> list[str]:
    """The libraries of a program, as its loader finds them (ld.so(8), --list)."""
    try:
        done = subprocess.run(
            argv, env={}, capture_output=True, text=True, timeout=_SECONDS, check=False, stdin=subprocess.DEVNULL
        )
    except OSError as error:
        raise HostError(f"cannot list the libraries of {argv[-1]}: {argv[0]}: {error.strerror}") from None
    except subprocess.TimeoutExpired:
        raise HostError(f"cannot list the libraries of {argv[-1]}: no result within {_SECONDS} s") from None
    libraries = []
    for line in done.stdout.splitlines():
        words = line.partition("=>")[2].split() or line.split()
        if "not found" in line:
            raise HostError(f"cannot list the libraries of {argv[-1]}: {line.strip()}")
        if words and words[0].startswith("/"):
            libraries.append(words[0])
    return libraries


def _prove(qemu: str, tree: str) -> None:
    """Raise :class:`HostError` unless QEMU starts with only the tree's files, the jail's filter and no privileges."""

    def enter() -> None:
        os.chroot(tree)
        os.chdir("/")
        os.setgroups([])
        os.setresgid(_NOBODY, _NOBODY, _NOBODY)
        os.setresuid(_NOBODY, _NOBODY, _NOBODY)
        give_up_privileges()
        seccomp.install()

    try:
        done = subprocess.run(
            [qemu, *_TRIAL], input=_COMMANDS, capture_output=True, text=True, timeout=_SECONDS, check=False, env={},
            preexec_fn=enter,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise HostError(
            f"{qemu} does not answer within {_SECONDS} s with only the jail's files",
            hint="set vm.confine to off if the host is not just busy",
        ) from None
    except (OSError, subprocess.SubprocessError) as error:
        reason = error.strerror if isinstance(error, OSError) else "cannot enter the jail"
        raise HostError(
            f"cannot run {qemu} with only the jail's files: {reason}",
            hint="the file system of image.cache must not be mounted noexec; or set vm.confine to off",
        ) from None
    if done.returncode:
        raise HostError(
            f"{qemu} exits at startup with only the jail's files",
            hint="see its stderr; or set vm.confine to off",
            evidence=done.stderr[-4096:],
        )


def _stamp(path: str) -> list[int]:
    """Size, modification time in ns, and inode of a file: at least one changes when the content changes."""
    status = os.stat(path)
    return [status.st_size, status.st_mtime_ns, status.st_ino]


def hold(tree: str) -> int:
    """Prevent the removal of a tree while the returned file descriptor is open. Raises OSError if it is removed."""
    fd = _open(tree)
    try:
        fcntl.flock(fd, fcntl.LOCK_SH)
        os.stat(tree)
    except OSError:
        os.close(fd)
        raise
    return fd


def _prune(directory: str) -> None:
    """Remove trees that no record names and no VM uses.

    If a directory is removed, the kernel unmounts the mounts on it in every mount namespace (Linux fs/namespace.c,
    detach_mounts()): a running QEMU would lose its /dev and /sys.
    """
    used = set(_trees_in_use(directory))
    for name in os.listdir(directory):
        path = f"{directory}/{name}"
        if not os.path.isdir(path) or name in used:
            continue
        try:
            fd = _open(path)
        except OSError:
            continue
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(path, ignore_errors=True)
        except BlockingIOError:
            continue
        finally:
            os.close(fd)


def _open(tree: str) -> int:
    return os.open(tree, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)


def _trees_in_use(directory: str) -> Iterable[str]:
    for path in glob.glob(f"{directory}/*.json"):
        try:
            with open(path, "rb") as file:
                yield str(parse(file.read(1024 * 1024))["tree"])
        except (OSError, ValueError, KeyError, TypeError):
            continue
