"""Command lines of the two versions of virtiofsd: QEMU's former one in C (Debian 12), and the Rust one (Debian 13)."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence

from hawse.errors import HostError

CANDIDATES = ("/usr/libexec/virtiofsd", "/usr/lib/qemu/virtiofsd")
_SECONDS = 10
_REPAIR = 'reinstall it, or set vm.share = "9p"'

#: The warning where virtiofsd cannot keep its capabilities while it creates a file (hawse.linux.process_capabilities).
FEW_RIGHTS = (
    "vm.share: virtiofsd makes files with the rights of their user id and group id only, since hawse has no "
    "CAP_SETPCAP: a container's process whose rights come from supplementary groups or capabilities cannot make files "
    "in shared directories [run hawse with CAP_SETPCAP]"
)

#: The warning where 9p is used instead of virtiofsd.
MISSING = (
    "vm.share: files are shared by 9p, since no virtiofsd is installed that QEMU can use: all mounts of a container "
    "have the same device number, so find -xdev, tar --one-file-system and rsync -x cross them "
    '[install virtiofsd, or set vm.share = "9p" to end this warning]'
)

#: The warning where files are shared by 9p, and a QEMU of this version cannot make FIFOs and sockets in them.
NO_SPECIAL_FILES = (
    "vm.share: files are shared by 9p, and QEMU {} makes no FIFOs and UNIX sockets in them: a container that makes one "
    "in its root file system or in a volume gets the error ENXIO "
    "[install virtiofsd and set vm.share to auto, or use QEMU 9.2.1 or later]"
)


def find(configured: str, *, candidates: Sequence[str] = CANDIDATES) -> str:
    """The path of virtiofsd, "" if it is not installed. Raises :class:`HostError` if the configured one is missing.

    ``candidates``: the paths to try if none is configured.
    """
    if configured:
        if not os.access(configured, os.X_OK):
            raise HostError(f"virtiofsd: {configured} cannot be executed", hint="check vm.virtiofsd")
        return configured
    return next((path for path in candidates if os.access(path, os.X_OK)), "")


def arguments(program: str, *, fd: str = "{fd}", directory: str = "{directory}") -> list[str]:
    """The program's argument vector, for the version that its ``--help`` indicates.

    ``fd`` is an inherited listening socket, ``directory`` is the shared directory; the default values are placeholders
    for :func:`filled`. virtiofsd runs without CAP_MKNOD, so that an attacker who runs code in it cannot create a device
    node of the host's disk.
    """
    if is_rust(program):
        return [
            program, f"--fd={fd}", f"--shared-dir={directory}", "--sandbox=namespace", "--cache=auto",
            "--inode-file-handles=never", "--announce-submounts", "--xattr", "--modcaps=-mknod",
        ]  # fmt: skip
    # Without CAP_SYS_RESOURCE the limit of open files cannot be raised, and the C version exits if it cannot set its
    # default: so pass the current limit. It does not log to syslog, where the messages would not be noticed.
    open_files = _open_files()
    return [
        program, f"--fd={fd}", "-o", f"source={directory}", "-o", "sandbox=namespace", "-o", "cache=auto",
        "-o", "announce_submounts", "-o", "xattr", "-o", "modcaps=-mknod", f"--rlimit-nofile={open_files}",
    ]  # fmt: skip


def filled(vector: Sequence[str], *, fd: int, directory: str) -> list[str]:
    """Fill in the placeholders of an argument vector: the file descriptor and the directory.

    The C version splits the value of ``-o`` at commas that no backslash precedes (QEMU 7.2 tools/virtiofsd/fuse_opt.c,
    process_real_option_group()).
    """
    escaped = directory.replace("\\", "\\\\").replace(",", "\\,")
    return [
        part.replace("{fd}", str(fd)).replace("{directory}", escaped if part.startswith("source=") else directory)
        for part in vector
    ]


def is_rust(program: str) -> bool:
    """Whether the program accepts the options of the Rust version."""
    try:
        answer = subprocess.run([program, "--help"], capture_output=True, text=True, timeout=_SECONDS, check=False)
    except OSError as error:
        raise HostError(f"virtiofsd: {program} cannot be executed: {error.strerror}", hint=_REPAIR) from None
    except subprocess.TimeoutExpired:
        raise HostError(f"virtiofsd: {program} --help does not end within {_SECONDS} s", hint=_REPAIR) from None
    return "--shared-dir" in answer.stdout + answer.stderr


def _open_files() -> int:
    import resource

    return resource.getrlimit(resource.RLIMIT_NOFILE)[1]
