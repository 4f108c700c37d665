"""Arguments of the global options and of the hot verbs.

By hand, where argparse serves the other verbs: to load it takes as long as a hot verb has for everything.
"""

from __future__ import annotations

from hawse.errors import UsageError

TYPE_CHECKING = False  # typing's import would cost a hot verb a tenth of its time
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


class Words:
    """Options by name without dashes ("log-format"; flags True), and the words that are none, in order."""

    def __init__(self) -> None:
        self.options: dict[str, str] = {}
        self.flags: set[str] = set()
        self.rest: list[str] = []


def split(
    words: Sequence[str], *, options: Sequence[str] = (), flags: Mapping[str, str] | None = None, verb: bool = False
) -> Words:
    """Take words apart: ``--option value``, ``--option=value``, flags long and short, others; ``--`` ends options.

    ``options`` are names without dashes, ``flags`` maps every spelling to a name. With ``verb`` the first other word
    ends it too: the rest is the verb's. Raises :class:`UsageError`.
    """
    found = Words()
    flags = flags or {}
    left = list(words)
    while left:
        word = left.pop(0)
        name, equals, value = word.removeprefix("--").partition("=")
        if word == "--":
            found.rest += left
            break
        if word in flags:
            found.flags.add(flags[word])
        elif word.startswith("--") and name in options:
            if not equals:
                if not left:
                    raise UsageError(f"--{name} needs a value", hint="see `hawse --help`")
                value = left.pop(0)
            found.options[name] = value
        elif word.startswith("-") and word != "-":
            raise UsageError(f"unknown option {word[:80]!r}", hint="see `hawse --help`")
        elif verb:
            found.rest = [word, *left]
            break
        else:
            found.rest.append(word)
    return found


def expect(words: Words, verb: str, *names: str, optional: int = 0) -> list[str]:
    """The positional words, one for each name, the last ``optional`` of which may be missing. Raises UsageError."""
    if not len(names) - optional <= len(words.rest) <= len(names):
        raise UsageError(
            f"{verb} takes {usage(names, optional)}, not {len(words.rest)} words", hint="see `hawse --help`"
        )
    return words.rest


def usage(names: Sequence[str], optional: int = 0) -> str:
    """ID [SIGNAL]"""
    needed = len(names) - optional
    return " ".join([*names[:needed], *(f"[{name}]" for name in names[needed:])])
