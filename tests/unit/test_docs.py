"""What the tables of the documentation name as proofs is there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]
DOCS = TESTS.parent / "docs"


def functions(directory: Path) -> set[str]:
    """The names of the tests below a directory."""
    return {
        name for path in directory.rglob("test_*.py") for name in re.findall(r"^def (test_\w+)", path.read_text(), re.M)
    }


def cells(page: str) -> list[str]:
    """What is in backticks in the cells of a page's tables, but for the first of a row."""
    rows = [line for line in (DOCS / page).read_text().splitlines() if line.startswith("| ")]
    return sorted({word for row in rows for word in re.findall(r"`([^`]+)`", row.split("|", 2)[2])})


@pytest.mark.parametrize("name", [name for name in cells("engines.md") if name.startswith("test_")])
def test_a_cell_of_the_engines_is_a_test(name: str) -> None:
    assert name in functions(TESTS / "engines")


@pytest.mark.parametrize("path", [path for path in cells("devices.md") if re.match(r"(unit|vm|lab|contract)/", path)])
def test_a_proof_of_a_devices_capability_is_a_file(path: str) -> None:
    assert list(TESTS.glob(path))


@pytest.mark.parametrize(
    ("path", "words"),
    re.findall(r"`((?:unit|vm|lab)/test_\w+\.py)` `(\w+)`", (DOCS / "devices.md").read_text()),
)
def test_a_proof_of_a_devices_capability_is_a_test(path: str, words: str) -> None:
    assert re.search(rf"^def test_\w*{words}", (TESTS / path).read_text(), re.M)


@pytest.mark.parametrize("page", sorted(DOCS.glob("*.md")), ids=lambda page: page.name)
def test_links_between_pages_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text()):
        assert (page.parent / target).exists(), target
