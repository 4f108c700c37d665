"""`hawse exec ID COMMAND...`: one more process in a running container."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from hawse.container.console import raw_mode
from hawse.container.execute import execute
from hawse.container.process import attend, write_pid_file
from hawse.errors import CommandError, HawseError, UsageError
from hawse.oci.load import load_bundle, load_process

if TYPE_CHECKING:
    from hawse.cli.settings import Settings

HELP = "execute a program in a running container"
#: runc's exit code for an exec that could not be made (exec.go), so that it is none of the program's usual ones.
FAILED = 255


def configure(parser: argparse.ArgumentParser) -> None:
    """The verb's own arguments."""
    parser.add_argument("--console-socket", metavar="SOCKET", help="where the terminal's master is sent")
    parser.add_argument("--pid-file", metavar="FILE", help="where the process's pid is written")
    parser.add_argument("-p", "--process", metavar="FILE", help="the process as JSON instead of the options below")
    parser.add_argument("-d", "--detach", action="store_true", help="leave the process running and return")
    parser.add_argument("-t", "--tty", action="store_true", help="with a terminal")
    parser.add_argument("-u", "--user", metavar="UID[:GID]", help="who runs it (default: as the container)")
    parser.add_argument("--cwd", metavar="DIR", help="where it runs (default: as the container)")
    parser.add_argument("-e", "--env", metavar="NAME=VALUE", action="append", default=[], help="one more variable")
    parser.add_argument("--preserve-fds", metavar="N", type=int, default=0, help="only 0: a VM cannot take descriptors")
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
    if args.preserve_fds:
        raise UsageError(
            f"--preserve-fds {args.preserve_fds}: open descriptors cannot be handed into a virtual machine"
        )
    store = settings.store(args.id)
    process = load_process(args.process)[0] if args.process else _from_options(args, store.read()["bundle"])
    if args.tty:
        process["terminal"] = True
    with raw_mode(0, wanted=bool(process.get("terminal")) and not args.detach):
        proxy = execute(store, process, console_socket=args.console_socket, detach=args.detach)
        write_pid_file(args.pid_file, proxy.pid)
        if args.detach:
            proxy.let_go()
            return 0
        return attend(proxy)


def _from_options(args: argparse.Namespace, bundle: str) -> dict[str, Any]:
    """The container's own process with what the options change, as runc makes it (exec.go, getProcess)."""
    command = args.command[1:] if args.command[:1] == ["--"] else args.command
    if not command:
        raise UsageError("exec: no command given", hint="hawse exec ID COMMAND [ARGUMENT...], or --process FILE")
    process: dict[str, Any] = dict(load_bundle(bundle).raw["process"])
    process |= {"args": command, "terminal": args.tty}
    process.pop("consoleSize", None)
    if args.cwd:
        process["cwd"] = args.cwd
    process["env"] = [*process.get("env", ()), *(variable for variable in args.env)]
    if args.user:
        uid, _, gid = args.user.partition(":")
        if not (uid.isdigit() and (gid.isdigit() or not gid)):
            raise UsageError(f"exec: --user {args.user!r} is not UID or UID:GID")
        process["user"] = dict(process.get("user", {})) | {"uid": int(uid)} | ({"gid": int(gid)} if gid else {})
    return process
