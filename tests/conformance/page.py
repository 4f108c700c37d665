"""docs/conformance.md, from the tables: ``python -m tests.conformance.page`` prints it.

The page claims what the suite proves: a case passes on a runtime unless a difference is known, and a test fails where
that is not so, either way.
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

What the OCI runtime specification asks for, as cases that are asked of a runtime by its command line alone, and what
runc 1.1.5 and hawse do. The page is made from the suite's tables by `python -m tests.conformance.page`; a test fails
where a verdict is another than it says. Any runtime with runc's command line can be asked:

    .venv/bin/python -m pytest tests/conformance                  # runc and hawse, about three minutes without KVM
    RUNTIME=runc .venv/bin/python -m pytest tests/conformance     # one of them; an absolute path, with options, is fine

"""


def verdict(case: Case, runtime: str, notes: list[Difference]) -> str:
    """A cell of the table; ``notes`` are those before it, and get what is new."""
    difference = DIFFERENCES.get(case.id, {}).get(runtime)
    if difference is None:
        return "passes"
    if difference not in notes:
        notes.append(difference)
    what = f"not {difference.where}" if difference.where else "differs"
    return f"{what} [{notes.index(difference) + 1}]"


def section(case: Case) -> str:
    """Where the specification says it."""
    return f"[{case.section}]({SPECIFICATION}/{case.section})" if "#" in case.section else case.section


def count(cases: Sequence[Case], runtime: str) -> str:
    """How many a runtime passes everywhere, and how many where the host lets it."""
    differences = [DIFFERENCES.get(case.id, {}).get(runtime) for case in cases]
    depending = sum(each is not None and bool(each.where) for each in differences)
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
        "| case | what is asked | section | runc | hawse |",
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
        'What hawse does with each field. "Refused" is an error of `create` that names the field, where its value asks',
        "for something; what is ignored with a warning is named by it. Which values ask for nothing depends on the",
        "field, since some that look empty are requests (an interface in `linux.netDevices` is named by its key):",
        "",
        "- In most fields they are " + Form.VALUE.value + ".",
        f"- In {_listed(Form.LIMIT)} they are {Form.LIMIT.value}.",
        f"- In {_listed(Form.OBJECT)} it is {Form.OBJECT.value} alone: an empty object is refused.",
        "",
        "A value of another type than the specification's is refused for every field, also for one that is ignored.",
        "null in a list is the empty text or object, or zero, as under runc. A document may have 100 levels of objects",
        "and lists; runc accepts 10000.",
        "",
        "| field | where it is applied | why, or what proves it |",
        "|---|---|---|",
    ]
    for field in FIELDS:
        proof = ", ".join(PROOFS[field.path]) if field.fate in APPLIED else ""
        lines.append(f"| `{field.path}` | {field.fate.value} | {': '.join(filter(None, (field.why, proof)))} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.stdout.write(page())
