"""`hawse kill ID [SIGNAL]`."""

from __future__ import annotations

import signal

from hawse.cli.options import expect, split
from hawse.commands.client import MonitorEndedError, call
from hawse.errors import StateError, UsageError, VmError
from hawse.state.store import STOPPED

TYPE_CHECKING = False  # typing's import would cost a hot verb a tenth of its time
if TYPE_CHECKING:
    from hawse.cli.settings import Settings

HELP = "send a signal to the first process of a container, --all: to every one"
USAGE = "[--all] ID [SIGNAL]"


def main(words: list[str], settings: Settings) -> int:
    """Ask the monitor."""
    found = split(words, flags={"-a": "all", "--all": "all"})
    name, *named = expect(found, "kill", "ID", "SIGNAL", optional=1)
    number = parse_signal(named[0] if named else "SIGTERM")
    everyone = "all" in found.flags
    store = settings.store(name)
    if not everyone and store.read()["status"] == STOPPED:
        raise StateError(f"container not running: {name}")
    try:
        call(store, "kill", {"signal": number, "all": everyone})
    except MonitorEndedError:
        # The agent did not answer, and the host has ended the virtual machine.
        if number != signal.SIGKILL:
            raise
    except (StateError, VmError):
        # Engines send it to every one after the end, to be sure, and runc accepts it then. A machine that has ended
        # too, or is about to, has nothing left to kill.
        if not everyone or store.read()["status"] != STOPPED:
            raise
    return 0


def parse_signal(text: str) -> int:
    """The number of "9", "KILL", "SIGKILL", "sigkill" or "RTMIN+3", systemd's wish to be stopped; 0 sends nothing.

    Raises UsageError.
    """
    if text.isascii() and text.isdigit():
        if int(text) <= signal.SIGRTMAX:
            return int(text)
    else:
        name = text.upper().removeprefix("SIG")
        base, sign, distance = name.partition("+") if "+" in name else name.partition("-")
        if base in ("RTMIN", "RTMAX") and ((distance.isascii() and distance.isdigit()) or not sign):
            number = int(signal.Signals[f"SIG{base}"]) + int(f"{sign}{distance}" or 0)
            if signal.SIGRTMIN <= number <= signal.SIGRTMAX:
                return number
        elif f"SIG{name}" in signal.Signals.__members__:
            return int(signal.Signals[f"SIG{name}"])
    raise UsageError(f"unknown signal {text[:80]!r}", hint="give a number or a name such as KILL")
