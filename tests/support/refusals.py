"""Commands of hawse that must fail with one sentence."""

from __future__ import annotations

import json

from tests.support.runtime import Result, Runtime


def fails(runtime: Runtime, *arguments: str, code: int = 1) -> str:
    """Run a command that must fail; returns its sentence, which must be the same on stderr and in the JSON log."""
    result = runtime(*arguments, log=True)
    assert result.code == code, result
    assert result.output == ""
    return sentence(runtime, result)


def sentence(runtime: Runtime, result: Result) -> str:
    """The sentence of a failed command, with the evidence below it."""
    first, _, evidence = result.errors.partition("\n")
    assert first.startswith("hawse: ")
    with open(runtime.log) as file:
        entries = [json.loads(line) for line in file]
    # The first command with a QEMU may log the warning that this QEMU runs no guest with KVM.
    [entry] = [entry for entry in entries if entry["level"] != "warning"]
    assert entry["level"] == "error"
    assert entry["msg"] == first.removeprefix("hawse: ")
    assert bool(entry.get("evidence")) == bool(evidence)
    assert "Traceback" not in result.errors
    return first.removeprefix("hawse: ") + (f"\n{evidence}" if evidence else "")
