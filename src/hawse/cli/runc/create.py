"""`hawse create ID`: create a container from a bundle."""

from __future__ import annotations

import argparse
import os
from typing import TYPE_CHECKING

from hawse.commands.create import Created, create
from hawse.commands.delete import delete
from hawse.commands.descriptors import activated, preserve
from hawse.commands.host_process import IoOptions, write_pid_file
from hawse.commands.pidfd import FIRST, send
from hawse.errors import UsageError
from hawse.oci.pods import CONTAINER, role_of

if TYPE_CHECKING:
    from hawse.cli.settings import Settings
    from hawse.oci.load import Bundle
    from hawse.plan.capacity import Room
    from hawse.plan.model import ContainerPlan, SandboxPlan

HELP = "create a container from a bundle"


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of this verb; ``run`` accepts them, too."""
    parser.add_argument("-b", "--bundle", metavar="DIR", default="", help="the bundle (default: the current directory)")
    parser.add_argument("--console-socket", metavar="SOCKET", help="UNIX socket that receives the terminal's master")
    parser.add_argument("--pid-file", metavar="FILE", help="file to write the process's pid to")
    parser.add_argument("--pidfd-socket", metavar="SOCKET", help="UNIX socket that receives a pidfd of the process")
    parser.add_argument(
        "--no-pivot", action="store_true", help="accepted for runc's sake: pivot_root always works in the guest"
    )
    parser.add_argument("--no-new-keyring", action="store_true", help="accepted for runc's sake")
    parser.add_argument("--preserve-fds", metavar="N", type=int, default=0, help="pass N file descriptors, from 3 on")
    parser.add_argument("--timeline", metavar="FILE", help="write a trace of the start, which Perfetto can read")
    parser.add_argument("id", metavar="ID")


def run(args: argparse.Namespace, settings: Settings) -> int:
    """Create the container. The pid file is written last."""
    created = make(args, settings, detach=True)
    try:
        send(args.pidfd_socket, created.proxy.pid, FIRST)
        write_pid_file(args.pid_file, created.proxy.pid)
    except BaseException:
        created.detach()
        created.proxy.detach()
        delete(created.store, force=True)
        raise
    created.detach()
    created.proxy.detach()
    return 0


def make(args: argparse.Namespace, settings: Settings, *, detach: bool) -> Created:
    """Create the container for ``create`` or ``run``. ``detach``: the command does not wait for the process."""
    listening = activated(os.environ, os.getpid())
    io_options = IoOptions(args.console_socket, detach, preserve(args.preserve_fds, listening=listening))
    store = settings.store(args.id)

    def make_plan() -> SandboxPlan:
        import msgspec

        from hawse.oci.process.notify_socket import VARIABLE
        from hawse.planner.sandbox import plan_sandbox

        timeline = _timeline(args.timeline, settings.config.timeline.directory, store.name)
        plan, notes = plan_sandbox(
            _load(args.bundle or ".", listening),
            settings.config,
            name=store.name,
            timeline=timeline,
            systemd=settings.systemd_cgroup,
            notify=os.environ.get(VARIABLE, ""),
        )
        settings.log.tell(notes)
        return msgspec.structs.replace(plan, log_file=settings.log.file)

    def make_joining(room: Room) -> ContainerPlan:
        from hawse.oci.process.notify_socket import VARIABLE
        from hawse.planner.sandbox import plan_container

        plan, notes = plan_container(
            _load(args.bundle or ".", listening),
            settings.config,
            room,
            name=store.name,
            systemd=settings.systemd_cgroup,
            notify=os.environ.get(VARIABLE, ""),
        )
        settings.log.tell(notes)
        return plan

    role, sandbox = role_of(args.bundle or ".")
    if role == CONTAINER:
        from hawse.commands.join import join

        created = join(store, sandbox, make_joining, io_options)
    else:
        created = create(store, make_plan, io_options)
    settings.log.tell(created.notes)
    return created


def _load(path: str, listening: int) -> Bundle:
    """The bundle, whose process gets this number of listening sockets. Raises :class:`ConfigError`."""
    # Imported here: the monitor starts while this process loads the library that reads specifications.
    import dataclasses

    from hawse.oci.document import process_of, with_process
    from hawse.oci.load import load_bundle

    bundle = load_bundle(path)
    if not listening:
        return bundle
    # As runc does: the process gets these variables, not those of runc's environment (utils_linux.go, run()).
    environment = [*(process_of(bundle.raw).get("env") or ()), f"LISTEN_FDS={listening}", "LISTEN_PID=1"]
    return dataclasses.replace(bundle, raw=with_process(bundle.raw, env=environment))


def _timeline(option: str | None, directory: str, name: str) -> str:
    """The absolute path of the trace, "" for none. Raises :class:`UsageError` if the file cannot be created."""
    if option is None and not directory:
        return ""
    path = os.path.abspath(option if option is not None else f"{directory}/{name}.json")
    if not os.access(os.path.dirname(path), os.W_OK) or os.path.isdir(path):
        raise UsageError(f"the timeline cannot be written: {path}", hint="name a file in a directory that exists")
    return path
