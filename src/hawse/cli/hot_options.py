"""Parse the global options and the arguments of the hot verbs.

The other verbs use argparse. Loading argparse takes as long as a whole hot verb may take.
"""

from __future__ import annotations

from hawse.errors import UsageError

TYPE_CHECKING = False  # typing's import would cost a hot verb a tenth of its time
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


class Words:
    """Values of options by names without dashes ("log-format"), names of flags, and the other words in their order."""

    def __init__(self) -> None:
        self.options: dict[str, str] = {}
        self.flags: set[str] = set()
        self.rest: list[str] = []


def split(
    words: Sequence[str],
    *,
    options: Sequence[str] = (),
    flags: Mapping[str, str] | None = None,
    verb: bool = False,
    command: str = "",
) -> Words:
    """Parse ``--option value``, ``--option=value``, flags, and other words; ``--`` ends the options.

    ``options`` are names without dashes, ``flags`` maps every spelling to a name. With ``verb`` the first other word
    ends the options, too: it is a verb, and the rest are its arguments. ``command`` is the verb whose arguments these
    are, "" for the global options. Raises :class:`UsageError`.
    """
    parsed = Words()
    flags = flags or {}
    lead, hint = (f"{command}: ", see(command)) if command else ("", see())
    left = list(words)
    while left:
        word = left.pop(0)
        name, equals, value = word.removeprefix("--").partition("=")
        if word == "--":
            parsed.rest += left
            break
        if word in flags:
            parsed.flags.add(flags[word])
        elif word.startswith("--") and name in options:
            if not equals:
                if not left:
                    raise UsageError(f"{lead}--{name} needs a value", hint=hint)
                value = left.pop(0)
            parsed.options[name] = value
        elif word.startswith("-") and word != "-":
            raise UsageError(f"{lead}unknown option {word[:80]!r}", hint=hint)
        elif verb:
            parsed.rest = [word, *left]
            break
        else:
            parsed.rest.append(word)
    return parsed


def expect(words: Words, verb: str, *names: str, optional: int = 0) -> list[str]:
    """The positional words, one for each name, the last ``optional`` of which may be missing. Raises UsageError."""
    if missing := names[len(words.rest) : len(names) - optional]:
        raise UsageError(f"{verb}: {', '.join(missing)} is missing", hint=see(verb))
    if extra := words.rest[len(names) :]:
        raise UsageError(f"{verb}: unexpected argument {extra[0][:80]!r}", hint=see(verb))
    return words.rest


def see(verb: str = "") -> str:
    """The hint that names the help of a verb, or the general help."""
    return f"see `hawse {verb} --help`" if verb else "see `hawse --help`"
