"""`hawse delete [--force] ID`: delete a container."""

from __future__ import annotations

from hawse.cli.hot_options import expect, split
from hawse.commands.delete import delete
from hawse.notes import warning

TYPE_CHECKING = False  # typing's import would cost a hot verb a tenth of its time
if TYPE_CHECKING:
    from hawse.cli.settings import Settings

HELP = "delete a container and release its resources; --force: kill it first, and ignore one that does not exist"
USAGE = "[--force] ID"


def main(words: list[str], settings: Settings) -> int:
    """Delete the container."""
    given = split(words, flags={"-f": "force", "--force": "force"}, command="delete")
    [name] = expect(given, "delete", "ID")
    settings.log.tell(warning(text) for text in delete(settings.store(name), force="force" in given.flags))
    return 0
