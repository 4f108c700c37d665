"""The agent's entry: PID 1 of a guest, or, with ``--link-fd N``, a process that serves a link for a test."""

from __future__ import annotations

import os
import sys
import threading

from hawse.agent import boot, syscalls
from hawse.agent.reaper import Reaper
from hawse.agent.server import Server
from hawse.agent.uevents import Uevents
from hawse.link.blocking import Port


def main() -> None:
    """Serve; in a guest, end the machine with the link, whatever the cause."""
    if os.getpid() != 1:
        _serve_for_test(sys.argv[1:])
        return
    try:
        _serve_guest()
    except BaseException as error:
        # The console is all that the host can still read; its tail is in the error that the user gets.
        print(f"hawse agent: {type(error).__name__}: {error}", flush=True)
    os.sync()
    syscalls.power_off()


def _serve_guest() -> None:
    boot.prepare_root()
    boot.stop_autoprobe()
    uevents = Uevents()
    uevents.start()
    port = Port(boot.open_link())
    later = boot.load_modules(boot.LATER_MODULES)
    reaper = Reaper()
    loaded = threading.Event()

    def load() -> None:
        reaper.wait(later)
        loaded.set()

    def ready() -> None:
        loaded.wait()

    reaper.start()
    threading.Thread(target=load, daemon=True).start()
    Server(port, reaper=reaper, uevents=uevents, ready=ready).serve()


def _serve_for_test(arguments: list[str]) -> None:
    """``--link-fd N --run DIRECTORY [--crun PROGRAM]``: no boot, everything else is the same code."""
    options = dict(zip(arguments[::2], arguments[1::2], strict=True))
    syscalls.become_subreaper()
    reaper = Reaper()
    reaper.start()
    run = options["--run"]
    Server(
        Port(int(options["--link-fd"])),
        reaper=reaper,
        uevents=Uevents(),
        ready=lambda: None,
        run=run,
        crun=options.get("--crun", "/usr/bin/crun"),
        crun_root=f"{run}/crun",
    ).serve()


if __name__ == "__main__":
    main()
