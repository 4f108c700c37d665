"""Programs of this package as text for ``python -I -c``, and the environment of their processes."""

from __future__ import annotations

import os

import hawse

#: The directory that contains this package.
PACKAGES = os.path.dirname(os.path.dirname(os.path.abspath(hawse.__file__)))
#: The variables of the engine's environment that the processes of a sandbox keep. Others may hold passwords of proxies
#: and registries. The last two are for an interpreter and a system bus in unusual places.
_KEPT = ("PATH", "LD_LIBRARY_PATH", "DBUS_SYSTEM_BUS_ADDRESS")


def environment() -> dict[str, str]:
    """The environment of the monitor and the proxies, which QEMU and virtiofsd inherit."""
    return {name: os.environ[name] for name in _KEPT if name in os.environ}


def program(module: str) -> str:
    """The text that calls ``main`` of a module of this package, even where another copy of the package is installed.

    Only the package itself is imported from its directory: other modules there would shadow installed ones.
    """
    return (
        f"import sys; sys.path.insert(0, {PACKAGES!r}); import hawse; del sys.path[0]; "
        f"from {module} import main; main()"
    )
