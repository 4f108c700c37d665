"""The version number of the interface between commands and monitors. Standard library only: hot verbs use this.

A monitor lives as long as its sandbox, so after an update of hawse, commands of the new version meet monitors of the
old one. A monitor writes the number to its lock file, to which the directory of each joined container links. A command
compares it with its own number before it sends a request.
"""

from __future__ import annotations

from hawse.version import VERSION

#: Increment it with each incompatible change of a message between commands and monitors: of a method, its parameters or
#: its answer.
INTERFACE = 1
#: Methods whose parameters and answers never change, so that every version can end the sandboxes of all others.
ALWAYS = ("kill", "delete")
_MAX_VERSION = 40


def to_text() -> bytes:
    """The content of the lock file of a monitor of this version."""
    return f"{INTERFACE} {VERSION}\n".encode()


def from_text(text: bytes) -> tuple[int, str]:
    """Parse the interface number and the version of hawse; 0 and "" for a monitor that wrote no number."""
    number, _, version = text.partition(b"\n")[0].partition(b" ")
    if not number.isdigit() or len(number) > 9:
        return 0, ""
    return int(number), version.decode(errors="replace")[:_MAX_VERSION]


def obstacle(method: str, monitor: tuple[int, str]) -> str:
    """The reason why a command of this version cannot call a method of a monitor; "" if it can. Pure."""
    number, version = monitor
    if number == INTERFACE or method in ALWAYS:
        return ""
    theirs = f"of hawse {version}, with interface {number}" if version else "of an older hawse"
    return f"its monitor is {theirs}, and this command of hawse {VERSION}, with interface {INTERFACE}"
