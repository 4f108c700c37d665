"""C programs of tests, compiled once for each source text and kept in the cache.

The lab uses this host's cache, since it compiles ten times as slowly.
"""

from __future__ import annotations

import hashlib
import os
import subprocess

from tests.support.caches import kept

_FLAGS = ["-static", "-O2", "-Wall", "-Wextra", "-Werror"]


def compiled(source: str) -> str:
    """Compile a source text to a static program; returns its path."""
    digest = hashlib.sha256(source.encode()).hexdigest()[:16]

    def compile_it(directory: str) -> None:
        os.makedirs(directory)
        command = ["gcc", *_FLAGS, "-x", "c", "-", "-o", f"{directory}/program"]
        subprocess.run(command, input=source.encode(), check=True)

    return f"{kept(f'program-{digest}', compile_it)}/program"


def compiled_file(path: str) -> str:
    """Compile a source file to a static program; returns its path."""
    with open(path) as file:
        return compiled(file.read())
