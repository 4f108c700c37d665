"""`hawse exec ID COMMAND...`: one more process in a running container."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from hawse.commands.console import raw_mode
from hawse.commands.descriptors import preserve
from hawse.commands.execute import execute
from hawse.commands.pidfd import FURTHER, send
from hawse.commands.process import Handed, attend, write_pid_file
from hawse.errors import CommandError, HawseError, UsageError
from hawse.oci.load import load_bundle, load_process
from hawse.oci.process.executed import Changes, change

if TYPE_CHECKING:
    from hawse.cli.settings import Settings

HELP = "execute a program in a running container"
#: runc's exit code for an exec that could not be made (exec.go), so that it is none of the program's usual ones.
FAILED = 255


def configure(parser: argparse.ArgumentParser) -> None:
    """The verb's own arguments."""
    parser.add_argument("--console-socket", metavar="SOCKET", help="where the terminal's master is sent")
    parser.add_argument("--pid-file", metavar="FILE", help="where the process's pid is written")
    parser.add_argument("--pidfd-socket", metavar="SOCKET", help="where a descriptor of the process is sent")
    parser.add_argument("-p", "--process", metavar="FILE", help="the process as JSON instead of the options below")
    parser.add_argument("-d", "--detach", action="store_true", help="leave the process running and return")
    parser.add_argument("-t", "--tty", action="store_true", help="with a terminal")
    parser.add_argument("-u", "--user", metavar="UID[:GID]", help="who runs it (default: as the container)")
    parser.add_argument("-g", "--additional-gids", metavar="GID", type=int, action="append", default=[], help="a group")
    parser.add_argument("-c", "--cap", metavar="CAP", action="append", default=[], help="one more capability")
    parser.add_argument("--no-new-privs", action="store_true", help="it cannot gain privileges")
    parser.add_argument("--cwd", metavar="DIR", help="where it runs (default: as the container)")
    parser.add_argument("-e", "--env", metavar="NAME=VALUE", action="append", default=[], help="one more variable")
    parser.add_argument("--preserve-fds", metavar="N", type=int, default=0, help="hand on N descriptors, from 3 on")
    parser.add_argument("--apparmor", metavar="PROFILE", help="accepted for runc's sake: the guest has no such policy")
    parser.add_argument("--process-label", metavar="LABEL", help="accepted for runc's sake, as --apparmor")
    parser.add_argument("--cgroup", metavar="PATH", help="refused: it runs in the container's cgroup")
    parser.add_argument("--ignore-paused", action="store_true", help="refused: a paused container takes no process")
    parser.add_argument("id")
    parser.add_argument("command", nargs=argparse.REMAINDER)


def run(args: argparse.Namespace, settings: Settings) -> int:
    """Run it; in the foreground the exit code is the program's own."""
    try:
        return _run(args, settings)
    except CommandError:
        raise
    except HawseError as error:
        error.exit_code = FAILED
        raise


def _run(args: argparse.Namespace, settings: Settings) -> int:
    handed = Handed(args.console_socket, args.detach, preserve(args.preserve_fds))
    _refuse(args)
    store = settings.store(args.id)
    process = _from_file(args.process) if args.process else _from_options(args, store.read()["bundle"])
    if args.tty:
        process["terminal"] = True
    with raw_mode(0, wanted=bool(process.get("terminal")) and not args.detach):
        proxy = execute(store, process, handed)
        try:
            send(args.pidfd_socket, proxy.pid, FURTHER)
            write_pid_file(args.pid_file, proxy.pid)
        except BaseException:
            proxy.abort()
            raise
        if args.detach:
            proxy.let_go()
            return 0
        return attend(proxy)


def _refuse(args: argparse.Namespace) -> None:
    if args.cgroup:
        raise UsageError(f"exec: --cgroup {args.cgroup[:200]}: a process runs in the container's own cgroup")
    if args.ignore_paused:
        raise UsageError("exec: --ignore-paused: a paused container takes no process", hint="`hawse resume` it first")


def _from_file(path: str) -> dict[str, Any]:
    return load_process(path)[0]


def _from_options(args: argparse.Namespace, bundle: str) -> dict[str, Any]:
    """The container's own process with what the options change."""
    command = args.command[1:] if args.command[:1] == ["--"] else args.command
    if not command:
        raise UsageError("exec: no command given", hint="hawse exec ID COMMAND [ARGUMENT...], or --process FILE")
    changes = Changes(
        args=tuple(command),
        terminal=args.tty,
        cwd=args.cwd or "",
        env=tuple(args.env),
        user=args.user or "",
        groups=tuple(args.additional_gids),
        capabilities=tuple(args.cap),
        no_new_privileges=args.no_new_privs,
    )
    return change(load_bundle(bundle).raw["process"], changes)
