"""`hawse install ENGINE`: add hawse to an engine, and write a configuration of hawse that refuses unsafe starts."""

from __future__ import annotations

import argparse
import difflib
import os
import shutil
import sys
from typing import TYPE_CHECKING

from hawse.config import DEFAULT_PATH, ImageFiles, Vm
from hawse.errors import HawseError, HostError, UsageError
from hawse.install import settings as own
from hawse.install.edits import ENGINES, Engine, Wanted
from hawse.install.files import read, write
from hawse.vm import accel, image

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from hawse.cli.settings import Settings

HELP = (
    "have a container engine know hawse as one of its runtimes, or with --undo no longer. Where hawse has no "
    "configuration yet, one is written that refuses to start QEMU without a jail and, where KVM works, a guest without "
    "KVM"
)


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of this verb."""
    parser.add_argument("engine", choices=sorted(ENGINES))
    parser.add_argument("-n", "--dry-run", action="store_true", help="print what would change, and change nothing")
    parser.add_argument("-u", "--undo", action="store_true", help="take it out again")
    parser.add_argument("--name", default="hawse", help="the runtime's name in the engine (default hawse)")
    parser.add_argument("--program", default="", help="the program that the engine runs (default: this one)")
    parser.add_argument("--file", default="", help="the engine's configuration, where it is not at its usual place")


def run(
    args: argparse.Namespace,
    settings: Settings,
    *,
    engines: Mapping[str, Engine] = ENGINES,
    probe: Callable[[], accel.Accel] | None = None,
) -> int:
    """Change the engine's configuration, and have hawse's own; a second time changes nothing. ``probe`` tries KVM."""
    engine = engines[args.engine]
    path = args.file or engine.path
    own_path = os.path.abspath(settings.config_path or DEFAULT_PATH)
    elsewhere = own_path if own_path != DEFAULT_PATH else ""
    wanted = Wanted(_name(args.name), _program(args.program), elsewhere if engine.passes_config else "")
    before = read(path)
    try:
        after = (engine.remove if args.undo else engine.add)(before, wanted)
    except HawseError as error:
        error.message = f"{path}: {error.message}"
        raise
    if args.undo:
        _change(path, before, after, engine.advice, dry=args.dry_run)
        others = [name for name, other in engines.items() if other is not engine and _knows(other, wanted)]
        _forget(settings.config_path or DEFAULT_PATH, others, dry=args.dry_run)
    else:
        # First, so that no engine runs hawse without it.
        _configure(settings, probe or _probe, dry=args.dry_run)
        _change(path, before, after, engine.advice, dry=args.dry_run)
        if elsewhere and not engine.passes_config:
            settings.log.warning(
                f"{args.engine} runs hawse without --config: it reads {DEFAULT_PATH}, not {elsewhere} [move the file "
                "there]"
            )
    return 0


def _change(path: str, before: str, after: str, advice: str = "", *, dry: bool) -> None:
    """Write a file's new text, or show the difference."""
    if after == before:
        print(f"{path}: nothing to change")
    elif dry:
        lines = difflib.unified_diff(before.splitlines(True), after.splitlines(True), path, path)
        sys.stdout.writelines(line if line.endswith("\n") else f"{line}\n" for line in lines)
    else:
        write(path, after)
        print(f"{path}: {'written' if after else 'removed'}")
        if advice:
            print(advice)


def _configure(settings: Settings, probe: Callable[[], accel.Accel], *, dry: bool) -> None:
    """Write hawse's configuration if it does not exist; else print which settings it lacks.

    vm.accel = "kvm" is not advised where KVM does not work: no guest would start.
    """
    path = settings.config_path or DEFAULT_PATH
    if os.path.lexists(path):
        for note in own.notes(read(path), kvm=lambda: _works(probe)):
            print(f"{path}: {note}")
        return
    kvm = True
    try:
        found = probe()
    except HawseError as error:
        settings.log.warning(
            f'it could not be tried whether KVM works here, and vm.accel = "kvm" in {path} refuses to start guests '
            f"where it does not: {error.sentence()}"
        )
    else:
        kvm = found.name == "kvm"
        if not kvm:
            settings.log.warning(
                f"guests are not isolated on this host: KVM does not work ({found.reason}), and QEMU does not consider "
                f'its TCG a security boundary [where KVM works, set vm.accel = "kvm" in {path}]'
            )
    _change(path, "", own.text(kvm=kvm), dry=dry)


def _works(probe: Callable[[], accel.Accel]) -> bool:
    """Whether KVM works; where it cannot be tried, it may."""
    try:
        return probe().name == "kvm"
    except HawseError:
        return True


def _probe() -> accel.Accel:
    """Whether KVM works, with the default configuration. Raises :class:`HostError` where that cannot be tried."""
    kernel = ""  # without a device no guest is tried
    try:
        if os.path.exists("/dev/kvm"):
            kernel = image.locate(cache=ImageFiles().cache).kernel
        return accel.choose("auto", qemu=Vm().qemu, kernel=kernel, directory=ImageFiles().cache)
    except OSError as error:
        raise HostError(f"{error.filename}: {error.strerror}", hint="`hawse doctor` says what is missing") from None


def _forget(path: str, others: list[str], *, dry: bool) -> None:
    """Remove hawse's configuration where it is as it was written, and no other engine relies on it."""
    found = read(path)
    if not own.is_ours(found):
        return
    if not own.is_unchanged(found):
        print(f"{path}: kept, it is not as `hawse install` wrote it")
    elif others:
        print(f"{path}: kept for {', '.join(others)}")
    else:
        _change(path, found, "", dry=dry)


def _knows(engine: Engine, wanted: Wanted) -> bool:
    """Whether an engine's file, at its usual place, has the runtime; one that cannot be read may have it."""
    try:
        text = read(engine.path)
        return engine.remove(text, wanted) != text
    except HawseError:
        return True


def _name(name: str) -> str:
    if not name or not all(c.isascii() and (c.isalnum() or c in "_-") for c in name):
        raise UsageError(f"--name {name[:80]!r}: letters, digits, - and _ alone", hint="such as hawse")
    return name


def _program(given: str) -> str:
    program = given or shutil.which(sys.argv[0]) or sys.argv[0]
    if not os.access(program, os.X_OK) or os.path.isdir(program):
        raise UsageError(f"--program {program[:200]}: not a program that can be run", hint="give the path of hawse")
    return os.path.abspath(program)
