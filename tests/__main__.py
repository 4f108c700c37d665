"""``python -m tests`` is `make test`: all tests, in two runs at the same time.

The lab is a machine of one processor, so that the others are beside its tests; what the lab's run says is marked.
Tests compare what processes and mounts there are before and after, so that each run has namespaces of its own, with a
first process that collects orphans, as a machine has. Arguments are pytest's; where they name tests there is one run.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from threading import Thread, Timer

_NAMESPACES = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "catatonit", "--"]
_OTHERS, _LAB = "--ignore=tests/lab", "tests/lab"
#: In seconds, twice what the longer of the two takes: what hangs is a failure that shows where.
_LIMIT = 3600.0
_CLOSING = re.compile(r"(?:=+ )?(\d+ [a-z]+.*) in [\d.]+s.*\n")


def main(arguments: Sequence[str]) -> int:
    """Run them; the exit code is 0 when all passed."""
    if any(not argument.startswith("-") for argument in arguments):
        return subprocess.call(_command(arguments))
    with ExitStack() as stack:
        runs = [
            stack.enter_context(_Run([_OTHERS, *arguments], "")),
            stack.enter_context(_Run([_LAB, "--verbose", "--durations=0", "--durations-min=10", *arguments], "lab: ")),
        ]
        codes = [run.wait() for run in runs]
    counts = sum((run.counts for run in runs), Counter[str]())
    failed = counts["failed"] + counts["error"] + counts["errors"]
    print(f"{counts['passed']} passed, {failed} failed, {counts['skipped']} skipped")
    return int(any(codes))


class _Run:
    """pytest with these arguments, as a context; what it says is shown as it comes, each line behind ``mark``.

    ``counts`` are its tests by what its closing line calls them.
    """

    def __init__(self, arguments: Sequence[str], mark: str) -> None:
        self._process = subprocess.Popen(
            _command(arguments), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
        )
        self._mark = mark
        self._reader = Thread(target=self._show)
        self._limit = Timer(_LIMIT, self._give_up)
        self.counts: Counter[str] = Counter()

    def __enter__(self) -> _Run:
        self._reader.start()
        self._limit.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._limit.cancel()
        self._process.kill()
        self.wait()

    def wait(self) -> int:
        """Its exit code, when all that it said is shown."""
        self._reader.join()
        return self._process.wait()

    def _give_up(self) -> None:
        sys.stdout.write(f"\n{self._mark}not done within {_LIMIT:g} s: the last test that is named above hangs\n")
        self._process.kill()

    def _show(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            sys.stdout.write(self._mark + line)
            sys.stdout.flush()
            if found := _CLOSING.fullmatch(line):
                self.counts = Counter({word: int(number) for number, word in re.findall(r"(\d+) ([a-z]+)", found[1])})


def _command(arguments: Sequence[str]) -> list[str]:
    return [*_NAMESPACES, sys.executable, "-m", "pytest", *arguments]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
