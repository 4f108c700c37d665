"""The tests that tables of the documentation name as proofs exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]
DOCS = TESTS.parent / "docs"


#: The files with the tests of each engine's column. Tests of `hawse install` for all engines are in other files.
COLUMNS = {
    "Podman": "docker_cli/test_podman.py docker_cli/test_podman_and_docker.py",
    "Docker": "docker_cli/test_docker.py docker_cli/test_podman_and_docker.py",
    "CRI-O, replayed": "test_crio.py",
    "containerd, by ctr": "test_ctr.py",
    "containerd, by CRI": "test_cri.py test_kubernetes.py",
}
CONFIGURATION = "the engine's configuration"


def rows(page: str) -> list[list[str]]:
    """The cells of a page's tables."""
    lines = (DOCS / page).read_text().splitlines()
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("| ")]


def cells(page: str) -> list[str]:
    """The words in backticks in the tables of a page, except the first cells of the rows."""
    return sorted({word for row in rows(page) for cell in row[1:] for word in re.findall(r"`([^`]+)`", cell)})


HEAD, *OPERATIONS = rows("engines.md")


def test_columns_are_the_engines() -> None:
    assert ["operation", *COLUMNS] == HEAD
    assert len({row[0] for row in OPERATIONS}) == len(OPERATIONS)


@pytest.mark.parametrize(
    ("operation", "engine", "cell"),
    [(row[0], engine, cell) for row in OPERATIONS for engine, cell in zip(COLUMNS, row[1:], strict=True)],
)
def test_cell_of_an_engine_names_its_tests_or_a_reason(operation: str, engine: str, cell: str) -> None:
    names = re.findall(r"`(test_\w+)`", cell)
    files = COLUMNS[engine].split() + (["test_install.py", "test_pages.py"] if operation == CONFIGURATION else [])
    text = "".join((TESTS / "engines" / name).read_text() for name in files)
    for name in names:
        assert re.search(rf"^def {name}\(", text, re.M), name
    assert names or re.fullmatch(r"[a-z][^`]+", cell), "a cell without a test says why there is none"


@pytest.mark.parametrize("path", [path for path in cells("devices.md") if re.match(r"(unit|vm|lab|contract)/", path)])
def test_file_of_a_proof_exists(path: str) -> None:
    assert list(TESTS.glob(path))


@pytest.mark.parametrize(
    ("path", "words"),
    re.findall(r"`((?:unit|vm|lab)/test_\w+\.py)` `(\w+)`", (DOCS / "devices.md").read_text()),
)
def test_test_of_a_proof_exists(path: str, words: str) -> None:
    assert re.search(rf"^def test_\w*{words}", (TESTS / path).read_text(), re.M)


@pytest.mark.parametrize("page", sorted(DOCS.glob("*.md")), ids=lambda page: page.name)
def test_links_between_pages_have_a_target(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text()):
        assert (page.parent / target).exists(), target


def test_programs_that_pages_name_can_be_run() -> None:
    """A module without a program succeeds and prints nothing: its output, redirected, empties a page."""
    top = TESTS.parent
    texts = [path.read_text() for path in (*top.glob("*.md"), *DOCS.glob("*.md"), *TESTS.rglob("*.py"))]
    modules = {module.rstrip(".") for text in texts for module in re.findall(r"python -m (tests[\w.]*)", text)}
    assert "tests.errors.page" in modules
    for module in modules:
        path = top / module.replace(".", "/")
        program = path.with_suffix(".py") if path.with_suffix(".py").exists() else path / "__main__.py"
        assert "__main__" in program.name or 'if __name__ == "__main__"' in program.read_text(), module
