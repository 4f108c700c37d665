"""`hawse create ID`."""

from __future__ import annotations

import argparse
import os
from typing import TYPE_CHECKING

from hawse.commands.create import Created, create
from hawse.commands.delete import delete
from hawse.commands.descriptors import activated, preserve
from hawse.commands.pidfd import FIRST, send
from hawse.commands.process import Handed, write_pid_file
from hawse.errors import UsageError
from hawse.oci.pods import CONTAINER, role_of

if TYPE_CHECKING:
    from hawse.cli.settings import Settings
    from hawse.oci.load import Bundle
    from hawse.plan.capacity import Room
    from hawse.plan.model import ContainerPlan, SandboxPlan

HELP = "create a container from a bundle"


def configure(parser: argparse.ArgumentParser) -> None:
    """The verb's own arguments; ``run`` has them too."""
    parser.add_argument("-b", "--bundle", metavar="DIR", default="", help="the bundle (default: here)")
    parser.add_argument("--console-socket", metavar="SOCKET", help="where the terminal's master is sent")
    parser.add_argument("--pid-file", metavar="FILE", help="where the process's pid is written")
    parser.add_argument("--pidfd-socket", metavar="SOCKET", help="where a descriptor of the process is sent")
    parser.add_argument("--no-pivot", action="store_true", help="accepted: the guest's root can always be pivoted")
    parser.add_argument("--no-new-keyring", action="store_true", help="accepted for runc's sake")
    parser.add_argument("--preserve-fds", metavar="N", type=int, default=0, help="hand on N descriptors, from 3 on")
    parser.add_argument("--timeline", metavar="FILE", help="write the start as a trace, for Perfetto too")
    parser.add_argument("id")


def run(args: argparse.Namespace, settings: Settings) -> int:
    """Create it; the pid file is the last thing written."""
    made = make(args, settings, detach=True)
    try:
        send(args.pidfd_socket, made.proxy.pid, FIRST)
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
    listening = activated(os.environ, os.getpid())
    handed = Handed(args.console_socket, detach, preserve(args.preserve_fds, listening=listening))
    store = settings.store(args.id)

    def load() -> Bundle:
        # Here, since reading specifications takes a library that is still to be loaded: the monitor starts meanwhile.
        import dataclasses

        from hawse.oci.document import with_process
        from hawse.oci.load import load_bundle

        bundle = load_bundle(args.bundle or ".")
        if listening:
            # What runc tells the process in place of its own environment's (utils_linux.go, run()).
            told = [f"LISTEN_FDS={listening}", "LISTEN_PID=1"]
            environment = [*(bundle.raw["process"].get("env") or ()), *told]
            bundle = dataclasses.replace(bundle, raw=with_process(bundle.raw, env=environment))
        return bundle

    def make_plan() -> SandboxPlan:
        import msgspec

        from hawse.oci.process.notify_socket import VARIABLE
        from hawse.planner.sandbox import plan_sandbox

        timeline = _timeline(args.timeline, settings.config.timeline.directory, store.name)
        plan, notes = plan_sandbox(
            load(),
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
            load(),
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

        made = join(store, sandbox, make_joining, handed)
    else:
        made = create(store, make_plan, handed)
    settings.log.tell(made.notes)
    return made


def _timeline(option: str | None, directory: str, name: str) -> str:
    """The absolute path of the start's trace, "" for none. Raises :class:`UsageError` where it cannot be made."""
    if option is None and not directory:
        return ""
    path = os.path.abspath(option if option is not None else f"{directory}/{name}.json")
    if not os.access(os.path.dirname(path), os.W_OK) or os.path.isdir(path):
        raise UsageError(f"the timeline cannot be written: {path}", hint="name a file in a directory that is there")
    return path
