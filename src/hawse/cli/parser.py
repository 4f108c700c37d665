"""argparse for the verbs that are not hot, with its complaints as ours."""

from __future__ import annotations

import argparse
from typing import NoReturn

from hawse.errors import UsageError


class Parser(argparse.ArgumentParser):
    """Its complaints are UsageErrors, so that they reach the log file too."""

    def error(self, message: str) -> NoReturn:
        """Called by argparse."""
        raise UsageError(message, hint=f"see `{self.prog} --help`")
