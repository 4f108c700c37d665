"""`hawse state ID`: print the OCI state as JSON."""

from __future__ import annotations

import json

from hawse.cli.hot_options import expect, split
from hawse.state.store import public

TYPE_CHECKING = False  # typing's import would cost a hot verb a tenth of its time
if TYPE_CHECKING:
    from hawse.cli.settings import Settings

HELP = "print the state of a container as JSON"
USAGE = "ID"


def main(words: list[str], settings: Settings) -> int:
    """Print the state with runc's indentation, since helpers of conmon compare the text of a line."""
    [name] = expect(split(words, command="state"), "state", "ID")
    print(json.dumps(public(settings.store(name).read()), indent=2))
    return 0
