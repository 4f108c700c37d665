"""`hawse kill ID [SIGNAL]`: send a signal to a container."""

from __future__ import annotations

import signal

from hawse.cli.hot_options import expect, split
from hawse.commands.client import MonitorEndedError, call
from hawse.errors import StateError, UsageError, VmError
from hawse.state.store import STOPPED

TYPE_CHECKING = False  # typing's import would cost a hot verb a tenth of its time
if TYPE_CHECKING:
    from hawse.cli.settings import Settings

HELP = "send a signal (default: SIGTERM) to the first process of a container; --all: to all of its processes"
USAGE = "[--all] ID [SIGNAL]"


def main(words: list[str], settings: Settings) -> int:
    """Send the signal through the monitor."""
    given = split(words, flags={"-a": "all", "--all": "all"}, command="kill")
    name, *signals = expect(given, "kill", "ID", "SIGNAL", optional=1)
    number = parse_signal(signals[0] if signals else "SIGTERM")
    everyone = "all" in given.flags
    store = settings.store(name)
    if not everyone and store.read()["status"] == STOPPED:
        raise StateError(f"container not running: {name}")
    try:
        call(store, "kill", {"signal": number, "all": everyone})
    except MonitorEndedError:
        # The agent in the guest did not answer, so the monitor has ended the VM from the host.
        if number != signal.SIGKILL:
            raise
    except (StateError, VmError):
        # Engines send SIGKILL with --all after the container's end, to be sure, and runc accepts it then. A VM that has
        # ended, or is about to end, has no process left to kill.
        if not everyone or store.read()["status"] != STOPPED:
            raise
    return 0


def parse_signal(text: str) -> int:
    """The number of a signal: "9", "KILL", "SIGKILL", "sigkill" or "RTMIN+3" (which stops systemd). 0 sends nothing.

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
