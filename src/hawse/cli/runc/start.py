"""`hawse start ID`: start the program of a created container."""

from __future__ import annotations

import os

from hawse.cli.hot_options import expect, split
from hawse.commands.start import start
from hawse.notes import warning

TYPE_CHECKING = False  # typing's import would cost a hot verb a tenth of its time
if TYPE_CHECKING:
    from hawse.cli.settings import Settings

HELP = "start the program of a created container"
USAGE = "ID"


def main(words: list[str], settings: Settings) -> int:
    """Start the program through the monitor."""
    [name] = expect(split(words, command="start"), "start", "ID")
    warnings = start(settings.store(name), notify=os.environ.get("NOTIFY_SOCKET", ""))
    settings.log.tell(warning(text) for text in warnings)
    return 0
