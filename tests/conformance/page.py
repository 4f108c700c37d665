"""docs/conformance.md, generated from the tables: ``python -m tests.conformance.page > docs/conformance.md``.

The page states what the suite proves: a case passes on a runtime unless a difference is known. A test fails if it does
not pass, or if it passes despite a known difference.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from hawse.oci.fields import APPLIED, FIELDS, Form
from tests.conformance.cases import GROUPS
from tests.conformance.differences import DIFFERENCES, Difference
from tests.conformance.proofs import PROOFS
from tests.conformance.suite import Case

PAGE = Path(__file__).parents[2] / "docs" / "conformance.md"
RUNTIMES = ("runc", "hawse")
SPECIFICATION = "https://github.com/opencontainers/runtime-spec/blob/v1.2.0"

_HEAD = """\
# Conformance

This page lists requirements of the OCI runtime specification, and whether runc 1.1.5 and hawse meet them. Each case
uses only the runtime's command line. `python -m tests.conformance.page` generates the page from the tables of the
suite; a test fails if a verdict is wrong. The suite can test any runtime with runc's command line. Before the first
run, `make engines image` installs the packages that it needs, runc among them, and builds the guest image:

    .venv/bin/python -m pytest tests/conformance                  # runc and hawse, about three minutes without KVM
    RUNTIME=runc .venv/bin/python -m pytest tests/conformance     # one runtime; a path with options is possible

"""


def verdict(case: Case, runtime: str, notes: list[Difference]) -> str:
    """A cell of the table. A new note is appended to ``notes``."""
    difference = DIFFERENCES.get(case.id, {}).get(runtime)
    if difference is None:
        return "passes"
    if difference not in notes:
        notes.append(difference)
    what = f"not {difference.hosts}" if difference.hosts else "differs"
    return f"{what} [{notes.index(difference) + 1}]"


def section(case: Case) -> str:
    """A link to the section of the specification."""
    return f"[{case.section}]({SPECIFICATION}/{case.section})" if "#" in case.section else case.section


def count(cases: Sequence[Case], runtime: str) -> str:
    """The number of cases that a runtime passes on every host, and on suitable hosts."""
    differences = [DIFFERENCES.get(case.id, {}).get(runtime) for case in cases]
    depending = sum(each is not None and bool(each.hosts) for each in differences)
    return f"{runtime} passes {differences.count(None)}" + (f", {depending} more on some hosts," if depending else "")


def page() -> str:
    """The whole page."""
    cases = [case for group in GROUPS for case in group.cases]
    notes: list[Difference] = []
    rows = [
        f"| {case.id} | {case.says} | {section(case)} | "
        + " | ".join(verdict(case, runtime, notes) for runtime in RUNTIMES)
        + " |"
        for case in cases
    ]
    lines = [
        f"Of {len(cases)} cases {' and '.join(count(cases, runtime) for runtime in RUNTIMES)}.",
        "",
        "| case | requirement | section | runc | hawse |",
    ]
    lines += ["|---|---|---|---|---|", *rows, ""]
    lines += [f"{number}. {note.why}." for number, note in enumerate(notes, 1)]
    return _HEAD + "\n".join(lines) + "\n\n" + _fields()


def _listed(form: Form) -> str:
    return ", ".join(f"`{field.path}`" for field in FIELDS if field.form is form)


def _fields() -> str:
    lines = [
        "## Fields",
        "",
        'The table shows how hawse handles each field. "Refused" is an error of `create` that names the field, if its',
        "value requests something; a warning names each field that is ignored with a warning. Values that request",
        "nothing depend on the field, since some that look empty are requests (a key of `linux.netDevices` names an",
        "interface):",
        "",
        "- In most fields they are " + Form.VALUE.value + ".",
        f"- In {_listed(Form.LIMIT)} they are {Form.LIMIT.value}.",
        f"- In {_listed(Form.OBJECT)} it is only {Form.OBJECT.value}: an empty object is refused.",
        "",
        "A value of the wrong type is refused for every field, also for one that is ignored.",
        "null in a list is the empty text or object, or zero, as under runc. A document may have 100 levels of objects",
        "and lists; runc accepts 10000.",
        "",
        "| field | where it is applied | reason, or tests |",
        "|---|---|---|",
    ]
    for field in FIELDS:
        proof = ", ".join(PROOFS[field.path]) if field.fate in APPLIED else ""
        lines.append(f"| `{field.path}` | {field.fate.value} | {': '.join(filter(None, (field.why, proof)))} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.stdout.write(page())
