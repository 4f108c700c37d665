"""`hawse create ID`."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from hawse.container.create import Created, create
from hawse.container.delete import delete
from hawse.container.plan import plan_sandbox
from hawse.container.process import write_pid_file
from hawse.errors import UsageError
from hawse.oci.load import load_bundle

if TYPE_CHECKING:
    from hawse.cli.settings import Settings

HELP = "create a container from a bundle"


def configure(parser: argparse.ArgumentParser) -> None:
    """The verb's own arguments; ``run`` has them too."""
    parser.add_argument("-b", "--bundle", metavar="DIR", default="", help="the bundle (default: here)")
    parser.add_argument("--console-socket", metavar="SOCKET", help="where the terminal's master is sent")
    parser.add_argument("--pid-file", metavar="FILE", help="where the process's pid is written")
    parser.add_argument("--no-pivot", action="store_true", help="accepted: the guest's root can always be pivoted")
    parser.add_argument("--no-new-keyring", action="store_true", help="accepted for runc's sake")
    parser.add_argument("--preserve-fds", metavar="N", type=int, default=0, help="only 0: a VM cannot take descriptors")
    parser.add_argument("id")


def run(args: argparse.Namespace, settings: Settings) -> int:
    """Create it; the pid file is the last thing written."""
    made = make(args, settings, detach=True)
    try:
        write_pid_file(args.pid_file, made.proxy.pid)
    except BaseException:
        made.let_go()
        made.proxy.let_go()
        delete(made.store, force=True)
        raise
    made.let_go()
    made.proxy.let_go()
    return 0


def make(args: argparse.Namespace, settings: Settings, *, detach: bool) -> Created:
    """The part that ``create`` and ``run`` share."""
    if args.preserve_fds:
        raise UsageError(
            f"--preserve-fds {args.preserve_fds}: open descriptors cannot be handed into a virtual machine",
            hint="pass a bind mount or a device instead",
        )
    store = settings.store(args.id)
    bundle = load_bundle(args.bundle or ".")
    made = create(
        store,
        plan_sandbox(bundle, settings.config, name=store.name, log=settings.log),
        console_socket=args.console_socket,
        detach=detach,
    )
    for level, text in made.notes:
        if level == "warning":
            settings.log.warning(text)
        else:
            settings.log.debug(text)
    return made
