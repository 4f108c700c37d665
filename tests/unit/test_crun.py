"""crun's errors about a program that cannot run, translated to the texts and exit codes that engines expect."""

from __future__ import annotations

import pytest

from hawse.agent.container.crun import explain
from hawse.errors import CommandError, VmError


@pytest.mark.parametrize(
    ("message", "code", "words"),
    [
        ("executable file `nothing` not found in $PATH: No such file or directory", 127, "executable file not found"),
        ("exec /bin/nothing: No such file or directory", 127, "no such file or directory"),
        ("open executable: Permission denied", 126, "permission denied"),
        ("exec /etc: Operation not permitted", 126, "permission denied"),
        # crun 1.21, of Debian 13.
        ("the path `/etc` is not a regular file: Operation not permitted", 126, "permission denied"),
    ],
)
def test_program_that_cannot_run_has_the_text_and_code_of_runc(message: str, code: int, words: str) -> None:
    error = explain(message, verb="create", command="/bin/it")
    assert isinstance(error, CommandError)
    assert error.exit_code == code
    assert words in str(error)


def test_other_errors_of_crun_are_reported_unchanged() -> None:
    error = explain("mount `tmpfs` to `/x`: Operation not permitted", verb="create", command="/bin/it")
    assert isinstance(error, VmError)
    assert str(error) == "crun create in the guest: mount `tmpfs` to `/x`: Operation not permitted"
