"""`hawse delete [--force] ID`."""

from __future__ import annotations

from hawse.cli.options import expect, split
from hawse.commands.delete import delete

TYPE_CHECKING = False  # typing's import would cost a hot verb a tenth of its time
if TYPE_CHECKING:
    from hawse.cli.settings import Settings

HELP = "delete a container and all that it holds; --force: also when it runs, and no error when it is not there"
USAGE = "[--force] ID"


def main(words: list[str], settings: Settings) -> int:
    """Delete it."""
    found = split(words, flags={"-f": "force", "--force": "force"})
    [name] = expect(found, "delete", "ID")
    settings.log.tell(("warning", text) for text in delete(settings.store(name), force="force" in found.flags))
    return 0
