"""Small shell scripts that replace programs of the host."""

from __future__ import annotations

import os


def write_program(path: str, body: str) -> str:
    """Write an executable shell script; returns its path.

    It is written under another name first: a file that another process still has open for writing, such as a child that
    was just forked, cannot be executed (ETXTBSY).
    """
    with open(f"{path}.new", "w") as file:
        file.write(f"#!/bin/sh\n{body}\n")
    os.chmod(f"{path}.new", 0o755)
    os.rename(f"{path}.new", path)
    return path
