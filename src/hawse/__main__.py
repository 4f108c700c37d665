"""hawse's entry point: the table of verbs, the global options, the one place where an error is printed."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from typing import NoReturn

from hawse.cli.log import Log
from hawse.cli.settings import Settings
from hawse.errors import HawseError, UsageError

VERSION = "0.1.0"
SPEC_VERSION = "1.2.0"

#: Verb → module below hawse.cli, imported only when the verb is used.
VERBS = {
    "create": "create",
    "start": "start",
    "state": "state",
    "kill": "kill",
    "delete": "delete",
    "run": "run",
    "exec": "execute",
    "list": "list",
    "spec": "spec",
    "features": "features",
    "image": "image",
}


class Parser(argparse.ArgumentParser):
    """argparse, with its complaints as UsageError, so that they reach the log file too."""

    def error(self, message: str) -> NoReturn:
        """Called by argparse."""
        raise UsageError(message, hint=f"see `{self.prog} --help`")


def main() -> int:
    """Run the command line; returns the exit status."""
    log = Log()
    settings: Settings | None = None
    try:
        options = _global_parser().parse_args()
        if options.version:
            # Engines parse these words (go-runc runc.go, parseVersion; `docker info`).
            print(f"hawse version {VERSION}\ncommit: {VERSION}\nspec: {SPEC_VERSION}")
            return 0
        log = Log(options.log, form=options.log_format, debug=options.debug)
        settings = Settings(root=options.root, log=log, config_path=options.config, debug=options.debug)
        if options.verb is None:
            raise UsageError("no command given", hint="see `hawse --help`")
        if options.verb not in VERBS:
            raise UsageError(f"unknown command {options.verb!r}", hint="see `hawse --help`")
        module = importlib.import_module(f"hawse.cli.{VERBS[options.verb]}")
        parser = Parser(prog=f"hawse {options.verb}", description=module.HELP, allow_abbrev=False)
        module.configure(parser)
        arguments = parser.parse_args(options.rest)
        status: int = module.run(arguments, settings)
        sys.stdout.flush()
        return status
    except HawseError as error:
        log.error(error.sentence(), error.evidence)
        return error.exit_code
    except BrokenPipeError:
        # Whoever read our output has gone; Python would complain again while it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 1
    except KeyboardInterrupt:
        return 130
    except Exception as error:
        if settings is not None and settings.debug:
            raise
        log.error(f"unexpected {type(error).__name__}: {error} [this is a bug in hawse; --debug shows where]")
        return 1


def _global_parser() -> Parser:
    parser = Parser(
        prog="hawse",
        description="OCI runtime: every sandbox is a virtual machine, VFIO devices stay VFIO devices.",
        epilog="commands: " + " ".join(VERBS),
        allow_abbrev=False,
    )
    parser.add_argument("--root", metavar="DIR", help="directory of the containers' state (default /run/hawse)")
    parser.add_argument("--log", metavar="FILE", help="append errors and warnings to FILE")
    parser.add_argument("--log-format", choices=("text", "json"), default="text", help="format of the log")
    parser.add_argument("--config", metavar="FILE", help="configuration (default /etc/hawse/config.toml)")
    parser.add_argument("--debug", action="store_true", help="more in the log, tracebacks for bugs")
    parser.add_argument("--systemd-cgroup", action="store_true", help="accepted: cgroupsPath is slice:prefix:name")
    parser.add_argument("--rootless", metavar="BOOL", help="accepted for runc's sake")
    parser.add_argument("-v", "--version", action="store_true", help="print the version")
    parser.add_argument("verb", nargs="?", metavar="COMMAND")
    parser.add_argument("rest", nargs=argparse.REMAINDER, metavar="...")
    return parser


if __name__ == "__main__":
    sys.exit(main())
