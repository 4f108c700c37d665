"""argparse for the verbs that are not hot; its errors are raised as UsageError."""

from __future__ import annotations

import argparse
from typing import NoReturn

from hawse.errors import UsageError


class Parser(argparse.ArgumentParser):
    """An ArgumentParser that raises UsageError, so that its errors are also written to the log file."""

    def error(self, message: str) -> NoReturn:
        """Raise argparse's error with the verb in front, as ``hawse.cli.hot_options`` does."""
        raise UsageError(f"{self.prog.removeprefix('hawse ')}: {message}", hint=f"see `{self.prog} --help`")
