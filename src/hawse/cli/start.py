"""`hawse start ID`."""

from __future__ import annotations

from hawse.cli.options import expect, split
from hawse.container.client import call
from hawse.errors import StateError
from hawse.sandbox.state import STOPPED

TYPE_CHECKING = False  # typing's import would cost a hot verb a tenth of its time
if TYPE_CHECKING:
    from hawse.cli.settings import Settings

HELP = "start the program of a created container"
USAGE = "ID"


def main(words: list[str], settings: Settings) -> int:
    """Ask the monitor."""
    [name] = expect(split(words), "start", "ID")
    store = settings.store(name)
    if store.read()["status"] == STOPPED:
        raise StateError(f"cannot start a container that has stopped: {name}", hint="delete it and create it anew")
    call(store, "start", {})
    return 0
