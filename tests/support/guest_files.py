"""Files of this host that replace those of the guest's packages: Python, a shell, and their libraries."""

from __future__ import annotations

import os
import re
import subprocess

PYTHON = "/usr/bin/python3"
_LIBRARY = "import os; print(os.path.dirname(os.__file__))"
#: The largest parts of Python's library that the agent does not use.
_WITHOUT = {
    "__pycache__", "asyncio", "config", "curses", "dist-packages", "distutils", "email", "ensurepip", "idlelib",
    "lib2to3", "multiprocessing", "pydoc_data", "sqlite3", "test", "tkinter", "unittest", "wsgiref", "xml",
}  # fmt: skip


def shell() -> dict[str, str]:
    """{path in a merged-/usr tree: path on the host} of a shell and its libraries."""
    return {"usr/bin/sh": "/bin/sh"} | _libraries("/bin/sh")


def runtime() -> dict[str, str]:
    """The same for a shell and Python with its library."""
    files = {"usr/bin/python3": PYTHON}
    library = subprocess.run([PYTHON, "-IS", "-c", _LIBRARY], capture_output=True, text=True, check=True).stdout.strip()
    for directory, directories, names in os.walk(library):
        directories[:] = [name for name in directories if name.partition("-")[0] not in _WITHOUT]
        files |= {f"{directory}/{name}".lstrip("/"): f"{directory}/{name}" for name in names if _may_be_used(name)}
    return files | shell() | _libraries(PYTHON, *(path for path in files.values() if path.endswith(".so")))


def lay_out(tree: str, files: dict[str, str]) -> None:
    """Copy files into a tree, as hard links if both are on one file system."""
    for path, source in files.items():
        os.makedirs(os.path.dirname(f"{tree}/{path}"), exist_ok=True)
        try:
            os.link(os.path.realpath(source), f"{tree}/{path}")
        except OSError:
            with open(source, "rb") as read, open(f"{tree}/{path}", "wb") as written:
                written.write(read.read())
            os.chmod(f"{tree}/{path}", os.stat(source).st_mode)


def depmod(dependencies: str, aliases: str) -> bytes:
    """A program for /usr/sbin/depmod that writes these tables for any release whose modules exist."""
    return f"""#!/bin/sh
cd "/usr/lib/modules/$1/kernel" || exit 1
printf '%s' '{dependencies}' >../modules.dep
printf '%s' '{aliases}' >../modules.alias
""".encode()


def _libraries(*programs: str) -> dict[str, str]:
    listed = subprocess.run(["ldd", *programs], capture_output=True, text=True, check=True).stdout
    return {f"usr/{path.lstrip('/').removeprefix('usr/')}": path for path in re.findall(r"(/\S+) \(0x", listed)}


def _may_be_used(name: str) -> bool:
    """False for most text encodings, and for C modules that are large or need large libraries."""
    return not name.startswith(
        ("_bz2", "_codecs_", "_curses", "_dbm", "_decimal", "_hashlib", "_lzma", "_pydecimal", "_sqlite3", "_ssl",
         "_test", "_tkinter", "cp", "iso", "mac_", "readline")
    )  # fmt: skip
