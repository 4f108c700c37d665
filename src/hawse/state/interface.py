"""The number of the interface between commands and monitors, so that one can tell that the other is of another version.

A monitor lives as long as its sandbox. After an update of hawse, commands of the new version meet monitors of the old
one. The monitor has the number in its lock file, which is that of each container that has joined it, too: a command
compares it before it asks. Standard library only: hot verbs use this.
"""

from __future__ import annotations

from hawse.version import VERSION

#: To be raised with each change of a message between a command and a monitor that the other version would not
#: understand: a method, its parameters, its answer.
INTERFACE = 1
#: Methods that are the same in every version, parameters and answers included: what has been started can be ended.
ALWAYS = ("kill", "delete")
_MAX_VERSION = 40


def to_text() -> bytes:
    """What the lock file of a monitor of this version has."""
    return f"{INTERFACE} {VERSION}\n".encode()


def from_text(text: bytes) -> tuple[int, str]:
    """Number and version of hawse; 0 and "" for a monitor that was older than the number."""
    number, _, version = text.partition(b"\n")[0].partition(b" ")
    if not number.isdigit() or len(number) > 9:
        return 0, ""
    return int(number), version.decode(errors="replace")[:_MAX_VERSION]


def obstacle(method: str, monitor: tuple[int, str]) -> str:
    """Why a command of this version cannot ask that of a monitor; "" where it can. Pure."""
    number, version = monitor
    if number == INTERFACE or method in ALWAYS:
        return ""
    theirs = f"of hawse {version}, with interface {number}" if version else "of an older hawse"
    return f"its monitor is {theirs}, and this command of hawse {VERSION}, with interface {INTERFACE}"
