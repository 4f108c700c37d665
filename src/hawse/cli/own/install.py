"""`hawse install ENGINE`: add hawse to an engine's runtimes, and write hawse's configuration if none exists."""

from __future__ import annotations

import argparse
import difflib
import os
import shutil
import sys
from typing import TYPE_CHECKING

from hawse.config import DEFAULT_PATH, ImageFiles, Vm
from hawse.errors import HawseError, HostError, UsageError
from hawse.install import default_config as own
from hawse.install.config_files import read, write
from hawse.install.edits import ENGINES, Engine, Registration
from hawse.vm import acceleration
from hawse.vm.image import store

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from hawse.cli.settings import Settings

HELP = (
    "add hawse to the runtimes of a container engine, or remove it with --undo. If hawse has no configuration yet, "
    "write one that refuses to start QEMU without a jail and, if KVM works here, guests without KVM"
)


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of this verb."""
    parser.add_argument("engine", choices=sorted(ENGINES))
    parser.add_argument("-n", "--dry-run", action="store_true", help="print the changes, but do not make them")
    parser.add_argument("-u", "--undo", action="store_true", help="remove hawse from the engine again")
    parser.add_argument("--name", default="hawse", help="the runtime's name in the engine (default: hawse)")
    parser.add_argument("--program", default="", help="the program that the engine runs (default: this one)")
    parser.add_argument("--file", default="", help="the engine's configuration, if it is not at its usual path")


def run(
    args: argparse.Namespace,
    settings: Settings,
    *,
    engines: Mapping[str, Engine] = ENGINES,
    probe: Callable[[], acceleration.Accel] | None = None,
) -> int:
    """Change the engine's configuration and write hawse's, if it is missing. Running it again changes nothing.

    ``probe`` tries whether KVM works.
    """
    engine = engines[args.engine]
    path = args.file or engine.path
    own_path = os.path.abspath(settings.config_path or DEFAULT_PATH)
    elsewhere = own_path if own_path != DEFAULT_PATH else ""
    registration = Registration(_name(args.name), _program(args.program), elsewhere if engine.passes_config else "")
    before = read(path)
    try:
        after = (engine.remove if args.undo else engine.add)(before, registration)
    except HawseError as error:
        raise error.with_context(path) from None
    if args.undo:
        _change(path, before, after, engine.advice, dry=args.dry_run)
        others = [name for name, other in engines.items() if other is not engine and _knows(other, registration)]
        _forget(settings.config_path or DEFAULT_PATH, others, dry=args.dry_run)
    else:
        # Before the engine's file: no engine may run hawse without a configuration.
        _configure(settings, probe or _probe, dry=args.dry_run)
        _change(path, before, after, engine.advice, dry=args.dry_run)
        if elsewhere and not engine.passes_config:
            settings.log.warning(
                f"{args.engine} runs hawse without --config: it reads {DEFAULT_PATH}, not {elsewhere} [move the file "
                "there]"
            )
    return 0


def _change(path: str, before: str, after: str, advice: str = "", *, dry: bool) -> None:
    """Write a file's new text, or with ``dry`` print the difference."""
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


def _configure(settings: Settings, probe: Callable[[], acceleration.Accel], *, dry: bool) -> None:
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
        accelerator = probe()
    except HawseError as error:
        settings.log.warning(
            f'vm.accel = "kvm" in {path} refuses to start guests without KVM, and whether KVM works here could not be '
            f"tried: {error.sentence()}"
        )
    else:
        kvm = accelerator.name == "kvm"
        if not kvm:
            settings.log.warning(
                f"guests are not isolated on this host: KVM does not work ({accelerator.reason}), and QEMU does not "
                f'consider its TCG a security boundary [where KVM works, set vm.accel = "kvm" in {path}]'
            )
    _change(path, "", own.text(kvm=kvm), dry=dry)


def _works(probe: Callable[[], acceleration.Accel]) -> bool:
    """Whether KVM works; true if that cannot be tried."""
    try:
        return probe().name == "kvm"
    except HawseError:
        return True


def _probe() -> acceleration.Accel:
    """Try KVM with the default configuration. Raises :class:`HostError` if that is not possible."""
    kernel = initrd = ""  # without /dev/kvm no guest is booted
    try:
        if os.path.exists("/dev/kvm"):
            image = store.locate(cache=ImageFiles().cache)
            kernel, initrd = image.kernel, image.initrd
        return acceleration.choose("auto", qemu=Vm().qemu, kernel=kernel, initrd=initrd, directory=ImageFiles().cache)
    except OSError as error:
        raise HostError(f"{error.filename}: {error.strerror}", hint="`hawse doctor` reports what is missing") from None


def _forget(path: str, others: list[str], *, dry: bool) -> None:
    """Remove hawse's configuration if it is unchanged since it was written, and no other engine uses hawse."""
    text = read(path)
    if not own.is_ours(text):
        return
    if not own.is_unchanged(text):
        print(f"{path}: kept, because it was changed after `hawse install` wrote it")
    elif others:
        print(f"{path}: kept for {', '.join(others)}")
    else:
        _change(path, text, "", dry=dry)


def _knows(engine: Engine, registration: Registration) -> bool:
    """Whether an engine's file at its usual path contains the runtime; true if the file cannot be read."""
    try:
        text = read(engine.path)
        return engine.remove(text, registration) != text
    except HawseError:
        return True


def _name(name: str) -> str:
    if not name or not all(c.isascii() and (c.isalnum() or c in "_-") for c in name):
        raise UsageError(
            f"--name {name[:80]!r}: only letters, digits, - and _ are allowed", hint="use hawse, for example"
        )
    return name


def _program(path: str) -> str:
    program = path or shutil.which(sys.argv[0]) or sys.argv[0]
    if not os.access(program, os.X_OK) or os.path.isdir(program):
        raise UsageError(f"--program {program[:200]}: it cannot be executed", hint="give the path of hawse")
    return os.path.abspath(program)
