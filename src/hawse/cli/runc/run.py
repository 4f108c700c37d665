"""`hawse run ID`: create, start, wait, delete."""

from __future__ import annotations

import argparse
import os
from contextlib import suppress
from typing import TYPE_CHECKING

from hawse.cli.runc import create
from hawse.commands.console import raw_mode
from hawse.commands.delete import delete
from hawse.commands.pidfd import FIRST, send
from hawse.commands.process import attend, write_pid_file
from hawse.commands.start import start
from hawse.errors import HawseError, from_wire
from hawse.proxy.main import LOST

if TYPE_CHECKING:
    from hawse.cli.settings import Settings

HELP = "create and start a container, and delete it when it has ended"


def configure(parser: argparse.ArgumentParser) -> None:
    """The verb's own arguments."""
    create.configure(parser)
    parser.add_argument("-d", "--detach", action="store_true", help="leave the container running and return")
    parser.add_argument("--keep", action="store_true", help="do not delete it when it has ended")
    parser.add_argument("--no-subreaper", action="store_true", help="accepted for runc's sake")


def run(args: argparse.Namespace, settings: Settings) -> int:
    """Run it; the exit code is the process's own."""
    made = create.make(args, settings, detach=args.detach)
    try:
        send(args.pidfd_socket, made.proxy.pid, FIRST)
        write_pid_file(args.pid_file, made.proxy.pid)
        with raw_mode(0, wanted=made.terminal and not args.detach):
            notify = os.environ.get("NOTIFY_SOCKET", "") if args.detach else ""  # else it is passed on meanwhile
            settings.log.tell(("warning", text) for text in start(made.store, notify=notify))
            if args.detach:
                made.let_go()
                made.proxy.let_go()
                return 0
            code = attend(made.proxy)
        if code == LOST and "failure" in (state := made.store.read()):
            raise from_wire(state["failure"])
    except BaseException:
        made.let_go()
        made.proxy.let_go()
        with suppress(HawseError):
            delete(made.store, force=True)
        raise
    made.let_go()
    if not args.keep:
        settings.log.tell(("warning", text) for text in delete(made.store, force=True))
    return code
