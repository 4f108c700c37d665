"""`hawse run ID`: create a container, start it, wait for its end and delete it."""

from __future__ import annotations

import argparse
import os
from contextlib import suppress
from typing import TYPE_CHECKING

from hawse.cli.runc import create
from hawse.commands.console import caller_terminal, raw_mode
from hawse.commands.delete import delete
from hawse.commands.host_process import attend, write_pid_file
from hawse.commands.pidfd import FIRST, send
from hawse.commands.start import start
from hawse.errors import HawseError, from_wire
from hawse.notes import warning
from hawse.proxy.main import LOST

if TYPE_CHECKING:
    from hawse.cli.settings import Settings

HELP = "create and start a container, and delete it when it has ended"


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of this verb."""
    create.configure(parser)
    parser.add_argument("-d", "--detach", action="store_true", help="leave the container running and return")
    parser.add_argument("--keep", action="store_true", help="do not delete the container when it has ended")
    parser.add_argument("--no-subreaper", action="store_true", help="accepted for runc's sake")


def run(args: argparse.Namespace, settings: Settings) -> int:
    """Run the container. In the foreground the exit code is the process's."""
    created = create.make(args, settings, detach=args.detach)
    try:
        send(args.pidfd_socket, created.proxy.pid, FIRST)
        write_pid_file(args.pid_file, created.proxy.pid)
        foreground = created.terminal and not args.detach
        with caller_terminal(needed=foreground) as fd, raw_mode(fd, enabled=foreground):
            notify = (
                os.environ.get("NOTIFY_SOCKET", "") if args.detach else ""
            )  # in the foreground attend() forwards notifications
            settings.log.tell(warning(text) for text in start(created.store, notify=notify))
            if args.detach:
                created.detach()
                created.proxy.detach()
                return 0
            code = attend(created.proxy)
        if code == LOST and "failure" in (state := created.store.read()):
            raise from_wire(state["failure"])
    except BaseException:
        created.detach()
        created.proxy.detach()
        with suppress(HawseError):
            delete(created.store, force=True)
        raise
    created.detach()
    if not args.keep:
        settings.log.tell(warning(text) for text in delete(created.store, force=True))
    return code
