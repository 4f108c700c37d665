"""Run the command line in the test's process; returns exit status and outputs."""

from __future__ import annotations

import io
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass

from hawse.__main__ import main
from hawse.state.store import Store


@dataclass(frozen=True)
class Done:
    """The result of a command."""

    code: int
    output: str
    errors: str


class Command:
    """`hawse` with a state directory and a configuration below ``directory``; calling the object runs one command."""

    def __init__(self, directory: str) -> None:
        self.root = f"{directory}/state"
        self.config = f"{directory}/config.toml"
        self.configure("")

    def configure(self, text: str) -> None:
        """Write the configuration file."""
        with open(self.config, "w") as file:
            file.write(text)

    def store(self, name: str) -> Store:
        """The state directory of a container."""
        return Store(self.root, name)

    def __call__(self, *words: str, options: tuple[str, ...] = ()) -> Done:
        """Run a command; ``options`` are global options."""
        output, errors = io.StringIO(), io.StringIO()
        with redirect_stdout(output), redirect_stderr(errors):
            code = main(["--root", self.root, "--config", self.config, *options, *words])
        return Done(code, output.getvalue(), errors.getvalue())
