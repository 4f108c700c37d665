"""``python -m tests`` is `make test`: all tests, spread over workers.

Arguments are pytest's. Where they name tests, one worker runs these. Each worker has private PID and mount
namespaces and temporary files (tests/worker). tests/conftest.py decides which tests go to a worker together.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence

from tests.support.patience import patience

_WORKER = os.path.join(os.path.dirname(os.path.abspath(__file__)), "worker")
#: One for the lab, which keeps one CPU busy from its beginning to its end, and two for the rest: the tests with VMs of
#: this host wait for something a good part of their time.
_WORKERS = 3
#: In seconds, for the whole run. Each test has a separate limit; only hanging clean-up exceeds this one.
_LIMIT = patience(900)


def main(arguments: Sequence[str]) -> int:
    """Run them; the exit code is pytest's."""
    os.environ["HAWSE_TEST_PYTHON"] = sys.executable
    if any(os.path.exists(argument.partition("::")[0]) for argument in arguments):
        return subprocess.call([_WORKER, "-m", "pytest", "--durations=10", *arguments])
    spread = ["--dist=loadscope", "--no-loadscope-reorder", f"--tx={_WORKERS}*popen//python={_WORKER}"]
    # A short path: Podman refuses directories of more than 50 characters, some of them only when a container exits.
    directory = tempfile.mkdtemp(prefix="t", dir="/tmp")
    os.environ["HAWSE_TEST_DIRECTORY"] = directory
    # pytest empties the directory that it is given.
    command = [sys.executable, "-m", "pytest", "--durations=10", f"--basetemp={directory}/t", *spread, *arguments]
    try:
        code = subprocess.call(command, timeout=_LIMIT)
    except subprocess.TimeoutExpired:
        print(f"\nthe run was not done within {_LIMIT:.0f} s and was ended: a fixture hangs in its clean-up")
        code = 1
    if code == 0:
        shutil.rmtree(directory, ignore_errors=True)
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
