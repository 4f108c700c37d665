"""``python -m tests.mutants N [SEED] [--only PREFIX]`` is `make mutants`: how many mutations the fast tests notice.

N random mutations of src/hawse are made one at a time, each in a copy of the tree, and the unit and contract tests run
on each. A mutation is noticed when a test fails, or when the tests take far longer than without it. The survivors are
listed: each is either a missing test or a change without effect.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from queue import Queue

from tests.mutants.source import Mutation, mutations

_TOP = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
_PACKAGE = "src/hawse"
_FAST = ("tests/unit", "tests/contract")


def main(arguments: Sequence[str]) -> int:
    """Try the mutations; the exit code is 1 when the share that was noticed is below ``--least``."""
    options = _options(arguments)
    everything = [m for m in _all() if m.path.startswith(options.only)]
    chosen = random.Random(options.seed).sample(everything, min(options.count, len(everything)))
    print(f"{len(chosen)} of {len(everything)} mutations, seed {options.seed}", flush=True)
    with tempfile.TemporaryDirectory() as directory:
        copies: Queue[Copy] = Queue()
        for number in range(options.jobs):
            copies.put(Copy(f"{directory}/{number}"))
        limit = copies.queue[0].seconds_unchanged() * 4 + 60

        def notice(mutation: Mutation) -> bool:
            copy = copies.get()
            try:
                noticed = copy.notices(mutation, limit)
            finally:
                copies.put(copy)
            print(f"{'noticed ' if noticed else 'SURVIVED'} {mutation}", flush=True)
            return noticed

        with ThreadPoolExecutor(options.jobs) as pool:
            answers = list(pool.map(notice, chosen))
    share = sum(answers) / max(len(answers), 1)
    survivors = sorted(str(m) for m, noticed in zip(chosen, answers, strict=True) if not noticed)
    print("\n".join(["", "Survivors:", *survivors]) if survivors else "\nNo survivors.")
    print(f"{sum(answers)} of {len(answers)} mutations noticed ({share:.0%})")
    return int(share < options.least)


@dataclass(frozen=True)
class Copy:
    """A copy of the tree, in which one mutation at a time is made."""

    directory: str

    def __post_init__(self) -> None:
        listed = subprocess.run(
            ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
            cwd=_TOP, capture_output=True, text=True, check=True,
        ).stdout  # fmt: skip
        for name in filter(None, listed.split("\0")):
            if os.path.exists(f"{_TOP}/{name}"):
                os.makedirs(os.path.dirname(f"{self.directory}/{name}"), exist_ok=True)
                shutil.copy(f"{_TOP}/{name}", f"{self.directory}/{name}", follow_symlinks=False)

    def seconds_unchanged(self) -> float:
        """How long the tests take without a mutation. Raises SystemExit when one fails: a count would mean nothing."""
        began = time.monotonic()
        done = self._tests(list(_FAST), None)
        if done.returncode != 0:
            raise SystemExit(f"the tests fail without a mutation:\n{done.stdout[-4000:]}")
        return time.monotonic() - began

    def notices(self, mutation: Mutation, limit: float) -> bool:
        """Whether a test fails; ``limit`` is in seconds."""
        path = f"{self.directory}/{mutation.path}"
        with open(path, "rb") as file:
            source = file.read()
        try:
            with open(path, "wb") as file:
                file.write(mutation.apply(source))
            return self._fails(mutation, limit)
        finally:
            with open(path, "wb") as file:
                file.write(source)

    def _fails(self, mutation: Mutation, limit: float) -> bool:
        likely, others = self._likely_first(mutation)
        for files in (likely, others):
            try:
                if files and self._tests(files, limit).returncode != 0:
                    return True
            except subprocess.TimeoutExpired:
                return True
        return False

    def _likely_first(self, mutation: Mutation) -> tuple[list[str], list[str]]:
        """Test files that name the mutated module, then the rest: most mutations are noticed by the former."""
        dotted = mutation.path.removeprefix("src/").removesuffix(".py").replace("/", ".")
        package, _, name = dotted.rpartition(".")
        likely: list[str] = []
        others: list[str] = []
        for folder in _FAST:
            for file in sorted(os.listdir(f"{self.directory}/{folder}")):
                if file.startswith("test_") and file.endswith(".py"):
                    with open(f"{self.directory}/{folder}/{file}") as text:
                        content = text.read()
                    named = dotted in content or (f"from {package} import" in content and name in content)
                    (likely if named else others).append(f"{folder}/{file}")
        return likely, others

    def _tests(self, files: list[str], limit: float | None) -> subprocess.CompletedProcess[str]:
        command = [
            "unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "catatonit", "--",
            sys.executable, "-B", "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *files,
        ]  # fmt: skip
        environment = os.environ | {"PYTHONPATH": f"{self.directory}/src", "PYTHONDONTWRITEBYTECODE": "1"}
        return subprocess.run(
            command, cwd=self.directory, env=environment, stdin=subprocess.DEVNULL,
            capture_output=True, text=True, errors="replace", check=False, timeout=limit,
        )  # fmt: skip


def _all() -> list[Mutation]:
    collected = []
    for directory, _, names in sorted(os.walk(f"{_TOP}/{_PACKAGE}")):
        for name in sorted(names):
            if name.endswith(".py"):
                path = os.path.join(directory, name)
                with open(path, "rb") as file:
                    collected += mutations(os.path.relpath(path, _TOP), file.read())
    return collected


def _options(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.mutants", description=__doc__.partition("\n")[0])
    parser.add_argument("count", type=int, metavar="N")
    parser.add_argument("seed", type=int, nargs="?", default=random.SystemRandom().randrange(10**6), metavar="SEED")
    parser.add_argument("--only", default="", metavar="PREFIX", help="only files whose path begins like this")
    parser.add_argument("--least", type=float, default=0.0, help="fail below this share, between 0 and 1")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
