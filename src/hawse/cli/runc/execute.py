"""`hawse exec ID COMMAND...`: start another process in a running container."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from hawse.commands.console import caller_terminal, raw_mode
from hawse.commands.descriptors import preserve
from hawse.commands.execute import execute
from hawse.commands.host_process import IoOptions, attend, write_pid_file
from hawse.commands.pidfd import FURTHER, send
from hawse.errors import CommandError, HawseError, UsageError
from hawse.json_text import Document
from hawse.oci.load import load_bundle, load_process
from hawse.oci.process.executed import Changes, change

if TYPE_CHECKING:
    from hawse.cli.settings import Settings

HELP = "execute a program in a running container"
#: runc's exit code for an exec that failed (exec.go), which differs from the usual exit codes of programs.
FAILED = 255


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of this verb."""
    parser.add_argument("--console-socket", metavar="SOCKET", help="UNIX socket that receives the terminal's master")
    parser.add_argument("--pid-file", metavar="FILE", help="file to write the process's pid to")
    parser.add_argument("--pidfd-socket", metavar="SOCKET", help="UNIX socket that receives a pidfd of the process")
    parser.add_argument("-p", "--process", metavar="FILE", help="the process as JSON instead of the options below")
    parser.add_argument("-d", "--detach", action="store_true", help="leave the process running and return")
    parser.add_argument("-t", "--tty", action="store_true", help="allocate a terminal")
    parser.add_argument("-u", "--user", metavar="UID[:GID]", help="user and group (default: the container's)")
    parser.add_argument(
        "-g", "--additional-gids", metavar="GID", type=int, action="append", default=[], help="a supplementary group"
    )
    parser.add_argument("-c", "--cap", metavar="CAP", action="append", default=[], help="an additional capability")
    parser.add_argument(
        "--no-new-privs", action="store_true", help="set no_new_privs: the process cannot gain privileges"
    )
    parser.add_argument("--cwd", metavar="DIR", help="working directory (default: the container's)")
    parser.add_argument(
        "-e",
        "--env",
        metavar="NAME=VALUE",
        action="append",
        default=[],
        help="an additional variable of the environment",
    )
    parser.add_argument("--preserve-fds", metavar="N", type=int, default=0, help="pass N file descriptors, from 3 on")
    parser.add_argument("--apparmor", metavar="PROFILE", help="accepted for runc's sake: the guest has no AppArmor")
    parser.add_argument("--process-label", metavar="LABEL", help="accepted for runc's sake: the guest has no SELinux")
    parser.add_argument("--cgroup", metavar="PATH", help="refused: the process runs in the container's cgroup")
    parser.add_argument(
        "--ignore-paused", action="store_true", help="refused: a paused container cannot start a process"
    )
    parser.add_argument("id", metavar="ID")
    parser.add_argument("command", nargs=argparse.REMAINDER)


def run(args: argparse.Namespace, settings: Settings) -> int:
    """Run the program. In the foreground the exit code is the program's."""
    try:
        return _run(args, settings)
    except CommandError:
        raise
    except HawseError as error:
        error.exit_code = FAILED
        raise


def _run(args: argparse.Namespace, settings: Settings) -> int:
    io_options = IoOptions(args.console_socket, args.detach, preserve(args.preserve_fds))
    _refuse(args)
    store = settings.store(args.id)
    process = _from_file(args.process) if args.process else _from_options(args, store.read()["bundle"])
    if args.tty:
        process["terminal"] = True
    foreground = bool(process.get("terminal")) and not args.detach
    with caller_terminal(needed=foreground) as fd, raw_mode(fd, enabled=foreground):
        proxy = execute(store, process, io_options)
        try:
            send(args.pidfd_socket, proxy.pid, FURTHER)
            write_pid_file(args.pid_file, proxy.pid)
        except BaseException:
            proxy.abort()
            raise
        if args.detach:
            proxy.detach()
            return 0
        return attend(proxy)


def _refuse(args: argparse.Namespace) -> None:
    if args.cgroup:
        raise UsageError(
            f"exec: --cgroup {args.cgroup[:200]}: the process runs in the container's cgroup", hint="leave --cgroup out"
        )
    if args.ignore_paused:
        raise UsageError(
            "exec: --ignore-paused: a paused container cannot start a process", hint="`hawse resume` it first"
        )


def _from_file(path: str) -> Document:
    return load_process(path)[0]


def _from_options(args: argparse.Namespace, bundle: str) -> Document:
    """The container's process with the changes that the options name."""
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
