"""``python -m tests`` is `make test`: all tests, in three runs at the same time.

The lab's tests wait for machines inside of a machine, each of which keeps about one processor busy; so they are in two
labs, and the others are beside them. Tests compare what processes and mounts there are before and after, so that each
run has namespaces of its own, with a first process that collects orphans, as a machine has. Arguments are pytest's;
where they name tests there is one run.
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
_OTHERS = ["--ignore=tests/lab"]
#: What takes about half of the time of all of the lab's.
_SLOW = [f"tests/lab/test_{name}.py" for name in ("attach", "binding", "device_files", "dpdk", "engines")]
_LABS = [_SLOW, ["tests/lab", *(f"--ignore={path}" for path in _SLOW)]]
_CLOSING = re.compile(r"(?:=+ )?(\d+ [a-z]+.*) in [\d.]+s.*\n")


def main(arguments: Sequence[str]) -> int:
    """Run them; the exit code is 0 when all passed."""
    if any(not argument.startswith("-") for argument in arguments):
        return subprocess.call(_command(arguments))
    with ExitStack() as stack:
        outputs = [stack.enter_context(tempfile.TemporaryFile("w+")) for _ in _LABS]
        labs = []
        for lab, output in zip(_LABS, outputs, strict=True):
            labs.append(subprocess.Popen(_command([*lab, *arguments]), stdout=output, stderr=output))
            stack.callback(labs[-1].wait)
            stack.callback(labs[-1].kill)
        print("== all but the lab's tests, which are beside them and shown afterwards")
        others = subprocess.Popen(_command([*_OTHERS, *arguments]), stdout=subprocess.PIPE, text=True)
        assert others.stdout is not None
        counts = _show(others.stdout)
        codes = [others.wait()]
        for number, (process, output) in enumerate(zip(labs, outputs, strict=True), 1):
            codes.append(process.wait())
            print(f"== the lab's tests, part {number}")
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
