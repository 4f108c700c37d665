"""virtiofsd in its two dialects: QEMU's former one in C (Debian 12) and the one in Rust (Debian 13)."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence

from hawse.errors import HostError

CANDIDATES = ("/usr/libexec/virtiofsd", "/usr/lib/qemu/virtiofsd")

#: The warning where virtiofsd cannot keep its capabilities while it makes a file (hawse.linux.capabilities).
FEW_RIGHTS = (
    "vm.share: virtiofsd makes files with the rights of their user id and group id only, since hawse has no "
    "CAP_SETPCAP: a container's process whose rights come from supplementary groups or capabilities cannot make files "
    "in shared directories [run hawse with CAP_SETPCAP]"
)

#: The warning where 9p is taken in its place.
MISSING = (
    "vm.share: files are shared by 9p, since no virtiofsd is installed that QEMU can use: all mounts of a container "
    "have one device number, so find -xdev, tar --one-file-system and rsync -x cross them, and QEMU before 9.2.1 makes "
    "no FIFOs and UNIX sockets in them "
    '[install virtiofsd, or set vm.share = "9p" to end this warning]'
)


def find(configured: str, *, candidates: Sequence[str] = CANDIDATES) -> str:
    """The program's path, "" when there is none. Raises :class:`HostError` when the configured one is missing.

    ``candidates``: the paths where it may be if none is configured.
    """
    if configured:
        if not os.access(configured, os.X_OK):
            raise HostError(f"virtiofsd: {configured} cannot be executed", hint="check vm.virtiofsd")
        return configured
    return next((path for path in candidates if os.access(path, os.X_OK)), "")


def arguments(program: str, *, fd: str = "{fd}", directory: str = "{directory}") -> list[str]:
    """Its argument vector, in the dialect that its own help shows; the braces are for :func:`filled`.

    ``fd`` is an inherited listening socket, ``directory`` what is shared. Without CAP_MKNOD an attacker who runs code
    in virtiofsd cannot make a node of the host's disk.
    """
    if is_rust(program):
        return [
            program, f"--fd={fd}", f"--shared-dir={directory}", "--sandbox=namespace", "--cache=auto",
            "--inode-file-handles=never", "--announce-submounts", "--xattr", "--modcaps=-mknod",
        ]  # fmt: skip
    # The limit of open files cannot be raised without CAP_SYS_RESOURCE, and the C one ends when its default cannot be
    # set: it is given what it has. No log to syslog, which nobody would read.
    most = _open_files()
    return [
        program, f"--fd={fd}", "-o", f"source={directory}", "-o", "sandbox=namespace", "-o", "cache=auto",
        "-o", "announce_submounts", "-o", "xattr", "-o", "modcaps=-mknod", f"--rlimit-nofile={most}",
    ]  # fmt: skip


def filled(vector: Sequence[str], *, fd: int, directory: str) -> list[str]:
    """An argument vector with the descriptor and the directory.

    The C one divides a value of ``-o`` at commas that no backslash precedes (QEMU 7.2 tools/virtiofsd/fuse_opt.c,
    process_real_option_group()).
    """
    escaped = directory.replace("\\", "\\\\").replace(",", "\\,")
    return [
        part.replace("{fd}", str(fd)).replace("{directory}", escaped if part.startswith("source=") else directory)
        for part in vector
    ]


def is_rust(program: str) -> bool:
    """Whether the program takes the options of the Rust one."""
    try:
        answer = subprocess.run([program, "--help"], capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise HostError(f"virtiofsd: {program}: {error}", hint="set vm.share to 9p, or repair it") from None
    return "--shared-dir" in answer.stdout + answer.stderr


def _open_files() -> int:
    import resource

    return resource.getrlimit(resource.RLIMIT_NOFILE)[1]
