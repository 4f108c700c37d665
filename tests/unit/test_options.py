"""Parsing of the global options and of the arguments of hot verbs, without argparse."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hawse.cli.hot_options import expect, split
from hawse.errors import UsageError

FLAGS = {"--force": "force", "-f": "force"}


@pytest.mark.parametrize(
    ("words", "options", "flags", "rest"),
    [
        (["c1"], {}, set(), ["c1"]),
        (["-f", "c1"], {}, {"force"}, ["c1"]),
        (["c1", "--force"], {}, {"force"}, ["c1"]),
        (["--root", "/r", "c1"], {"root": "/r"}, set(), ["c1"]),
        (["--root=/r=s", "c1"], {"root": "/r=s"}, set(), ["c1"]),
        (["--", "-f"], {}, set(), ["-f"]),
        (["-"], {}, set(), ["-"]),
        (["--root", "--force"], {"root": "--force"}, set(), []),
    ],
)
def test_command_line_is_parsed(words: list[str], options: dict[str, str], flags: set[str], rest: list[str]) -> None:
    parsed = split(words, options=["root"], flags=FLAGS)
    assert (parsed.options, parsed.flags, parsed.rest) == (options, flags, rest)


def test_verb_ends_the_global_options() -> None:
    options = split(["--root", "/r", "run", "--root", "x"], options=["root"], verb=True)
    assert (options.options, options.rest) == ({"root": "/r"}, ["run", "--root", "x"])


@pytest.mark.parametrize(
    ("command", "lead", "hint"), [("", "", "hawse --help"), ("kill", "kill: ", "hawse kill --help")]
)
@pytest.mark.parametrize(
    ("words", "message"), [(["--rot"], "unknown option '--rot'"), (["--root"], "--root needs a value")]
)
def test_wrong_option_is_named(words: list[str], message: str, command: str, lead: str, hint: str) -> None:
    with pytest.raises(UsageError) as caught:
        split(words, options=["root"], flags=FLAGS, command=command)
    assert (caught.value.message, caught.value.hint) == (lead + message, f"see `{hint}`")


@pytest.mark.parametrize(
    ("words", "message"), [([], "kill: ID is missing"), (["a", "b", "c", "d"], "kill: unexpected argument 'c'")]
)
def test_wrong_number_of_arguments_is_refused(words: list[str], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        expect(split(words), "kill", "ID", "SIGNAL", optional=1)
    assert (caught.value.message, caught.value.hint) == (message, "see `hawse kill --help`")


@given(st.lists(st.text(max_size=8), max_size=6))
def test_unparsed_rest_contains_only_given_words(words: list[str]) -> None:
    try:
        options = split(words, options=["root"], flags=FLAGS, verb=True)
    except UsageError:
        return
    assert all(word in words for word in options.rest)
