"""What crun says of a program that cannot run, in the words and codes that engines look for."""

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
def test_a_program_that_cannot_run(message: str, code: int, words: str) -> None:
    error = explain(message, verb="create", command="/bin/it")
    assert isinstance(error, CommandError)
    assert error.exit_code == code
    assert words in str(error)


def test_what_is_not_about_the_program_is_told_as_it_is() -> None:
    error = explain("mount `tmpfs` to `/x`: Operation not permitted", verb="create", command="/bin/it")
    assert isinstance(error, VmError)
    assert str(error) == "crun create in the guest: mount `tmpfs` to `/x`: Operation not permitted"
