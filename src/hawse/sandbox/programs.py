"""Programs of this package, as text for ``python -I -c``."""

from __future__ import annotations

import os

import hawse

#: The directory that contains this package.
PACKAGES = os.path.dirname(os.path.dirname(os.path.abspath(hawse.__file__)))


def program(module: str) -> str:
    """The text that calls ``main`` of a module of this package, even where another copy of the package is installed.

    Only the package itself is imported from its directory: other modules there would shadow installed ones.
    """
    return (
        f"import sys; sys.path.insert(0, {PACKAGES!r}); import hawse; del sys.path[0]; "
        f"from {module} import main; main()"
    )
