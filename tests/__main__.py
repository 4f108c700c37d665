"""``python -m tests`` is `make test`: all tests, in two runs at the same time.

The lab is a machine of one processor, so that the others are beside its tests. Tests compare what processes and mounts
there are before and after, so that each run has namespaces of its own, with a first process that collects orphans, as a
machine has. Arguments are pytest's; where they name tests there is one run.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import ExitStack

_NAMESPACES = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "catatonit", "--"]
_OTHERS, _LAB = "--ignore=tests/lab", "tests/lab"
_CLOSING = re.compile(r"(?:=+ )?(\d+ [a-z]+.*) in [\d.]+s.*\n")


def main(arguments: Sequence[str]) -> int:
    """Run them; the exit code is 0 when all passed."""
    if any(not argument.startswith("-") for argument in arguments):
        return subprocess.call(_command(arguments))
    with ExitStack() as stack:
        output = stack.enter_context(tempfile.TemporaryFile("w+"))
        lab = subprocess.Popen(_command([_LAB, *arguments]), stdout=output, stderr=output)
        stack.callback(lab.wait)
        stack.callback(lab.kill)
        print("== all but the lab's tests, which are beside them and shown afterwards")
        others = subprocess.Popen(_command([_OTHERS, *arguments]), stdout=subprocess.PIPE, text=True)
        assert others.stdout is not None
        counts = _show(others.stdout)
        codes = [others.wait(), lab.wait()]
        print("== the lab's tests")
        output.seek(0)
        counts += _show(output)
    failed = counts["failed"] + counts["error"] + counts["errors"]
    print(f"{counts['passed']} passed, {failed} failed, {counts['skipped']} skipped")
    return int(any(codes))


def _command(arguments: Sequence[str]) -> list[str]:
    return [*_NAMESPACES, sys.executable, "-m", "pytest", *arguments]


def _show(lines: Iterable[str]) -> Counter[str]:
    """Print what a run says, and count its tests by what its closing line calls them."""
    counts: Counter[str] = Counter()
    for line in lines:
        print(line, end="", flush=True)
        if found := _CLOSING.fullmatch(line):
            counts = Counter({word: int(number) for number, word in re.findall(r"(\d+) ([a-z]+)", found[1])})
    return counts


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
