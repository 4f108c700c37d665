"""`hawse install ENGINE`: an engine is told of hawse."""

from __future__ import annotations

import argparse
import difflib
import os
import shutil
import sys
from typing import TYPE_CHECKING

from hawse.errors import HawseError, UsageError
from hawse.install.edits import ENGINES, Wanted
from hawse.install.files import read, write

if TYPE_CHECKING:
    from hawse.cli.settings import Settings

HELP = "have a container engine know hawse as one of its runtimes, or with --undo no longer"


def configure(parser: argparse.ArgumentParser) -> None:
    """The verb's own arguments."""
    parser.add_argument("engine", choices=sorted(ENGINES))
    parser.add_argument("-n", "--dry-run", action="store_true", help="print what would change, and change nothing")
    parser.add_argument("-u", "--undo", action="store_true", help="take it out again")
    parser.add_argument("--name", default="hawse", help="the runtime's name in the engine (default hawse)")
    parser.add_argument("--program", default="", help="the program that the engine runs (default: this one)")
    parser.add_argument("--file", default="", help="the engine's configuration, where it is not at its usual place")


def run(args: argparse.Namespace, _settings: Settings) -> int:
    """Change the engine's configuration; a second time changes nothing."""
    engine = ENGINES[args.engine]
    path = args.file or engine.path
    wanted = Wanted(_name(args.name), _program(args.program))
    before = read(path)
    try:
        after = (engine.remove if args.undo else engine.add)(before, wanted)
    except HawseError as error:
        error.message = f"{path}: {error.message}"
        raise
    if after == before:
        print(f"{path}: nothing to change")
    elif args.dry_run:
        lines = difflib.unified_diff(before.splitlines(True), after.splitlines(True), path, path)
        sys.stdout.writelines(line if line.endswith("\n") else f"{line}\n" for line in lines)
    else:
        write(path, after)
        print(f"{path}: {'written' if after else 'removed'}")
        if engine.advice:
            print(engine.advice)
    return 0


def _name(name: str) -> str:
    if not name or not all(c.isascii() and (c.isalnum() or c in "_-") for c in name):
        raise UsageError(f"--name {name[:80]!r}: letters, digits, - and _ alone", hint="such as hawse")
    return name


def _program(given: str) -> str:
    program = given or shutil.which(sys.argv[0]) or sys.argv[0]
    if not os.access(program, os.X_OK) or os.path.isdir(program):
        raise UsageError(f"--program {program[:200]}: not a program that can be run", hint="give the path of hawse")
    return os.path.abspath(program)
