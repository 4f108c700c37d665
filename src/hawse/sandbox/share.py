"""The directory that the guest sees: bind mounts in a mount namespace of the monitor's own.

The namespace is the undo: it ends with the monitor and its children, whatever ends them, and its mounts with it.
The host's own mount table never shows one of them. All ctypes of the host side is here.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Sequence

from hawse.errors import ConfigError, HostError
from hawse.sandbox.plan import Share

_CLONE_NEWNS = 0x20000
_MS_RDONLY, _MS_REMOUNT, _MS_BIND, _MS_REC, _MS_SLAVE = 1, 32, 4096, 16384, 1 << 19
_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None, use_errno=True)


def enter_private_namespace() -> None:
    """From here on mounts of this process stay its own; mounts that the host makes later still arrive.

    To be called while the process has one thread. Raises :class:`HostError` where it is not permitted.
    """
    if _libc.unshare(_CLONE_NEWNS):
        raise HostError(f"cannot make a mount namespace: {_reason()}", hint="hawse needs root, with CAP_SYS_ADMIN")
    _mount("none", "/", _MS_REC | _MS_SLAVE)


def populate(shares: Sequence[Share], directory: str) -> None:
    """Bind every share below ``directory``. Raises :class:`ConfigError` naming a source that cannot be bound."""
    for share in shares:
        target = f"{directory}/{share.name}"
        try:
            os.makedirs(directory, mode=0o755, exist_ok=True)
            if share.is_dir:
                os.mkdir(target)
            else:
                os.close(os.open(target, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600))
            _mount(share.source, target, _MS_BIND | _MS_REC)
            if share.readonly:
                _mount("none", target, _MS_BIND | _MS_REMOUNT | _MS_RDONLY)
        except OSError as error:
            raise ConfigError(f"cannot share {share.source} with the guest: {error.strerror}") from None


def die_with_parent() -> None:
    """In a forked child: be killed when the parent's thread ends, however it ends (prctl(2), PR_SET_PDEATHSIG)."""
    _libc.prctl(_PR_SET_PDEATHSIG, 9, 0, 0, 0)


def _mount(source: str, target: str, flags: int) -> None:
    if _libc.mount(source.encode(), target.encode(), None, ctypes.c_ulong(flags), None):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), target)


def _reason() -> str:
    return os.strerror(ctypes.get_errno())
