"""Entry point of the agent: PID 1 of a guest or, with ``--link-fd N``, a process that serves a link for a test."""

from __future__ import annotations

import gc
import os
import sys
import time

from hawse.agent.machine import boot
from hawse.agent.system import syscalls, trace
from hawse.link.agreed import PROBE, PROBED

#: A probe reports several times, since a message of the kernel may interrupt a line on the serial port. The host ends
#: the VM after the first report that it reads.
_REPORTS = 5


def main() -> None:
    """Serve the link. In a guest, power off the VM when the link ends, for any reason, or when a probe has run."""
    if os.getpid() != 1:
        _serve_for_test(sys.argv[1:])
        return
    try:
        if PROBE in sys.argv[1:]:
            for _ in range(_REPORTS):
                print(PROBED, flush=True)
                time.sleep(0.02)
        else:
            _serve_guest()
    except BaseException as error:
        # The host can now read only the console. The user's error contains the console's last lines.
        print(f"hawse agent: {type(error).__name__}: {error}", flush=True)
    os.sync()
    syscalls.power_off()


def _serve_guest() -> None:
    trace.add("kernel booted, Python started", 0, time.monotonic_ns())
    with trace.span("file systems mounted"):
        boot.prepare_root()
    boot.stop_autoprobe()
    boot.raise_limits()
    # Load the link's modules while Python imports the rest of the agent, which takes about as long.
    with trace.span("agent loaded"):
        from hawse.agent.system.modules import Modules

        modules = Modules()
        link_modules = modules.begin(boot.LINK_MODULES)
        from hawse.agent.calls.guest import Guest
        from hawse.agent.machine.network import raise_loopback
        from hawse.agent.server import Server
        from hawse.agent.system.reaper import Reaper
        from hawse.agent.system.uevents import Uevents
        from hawse.link.blocking import Port

    raise_loopback()
    uevents = Uevents()
    uevents.start()
    with trace.span("link opened"):
        link_modules.wait()
        port = Port(boot.open_link())
    reaper = Reaper()
    reaper.start()
    modules.begin(boot.SHARE_MODULES["virtiofs"])
    modules.begin(boot.VFIO_MODULES)
    gc.enable()
    Server(port, Guest(port, reaper=reaper, uevents=uevents, load=modules.load)).serve()


def _serve_for_test(arguments: list[str]) -> None:
    """Serve without booting; everything else is the same code.

    ``--link-fd N --run DIRECTORY [--crun PROGRAM] [--root DIRECTORY]``; the root contains /sys, /proc and /dev.
    """
    from hawse.agent.calls.guest import Guest
    from hawse.agent.server import Server
    from hawse.agent.system.reaper import Reaper
    from hawse.agent.system.uevents import Uevents
    from hawse.link.blocking import Port

    options = dict(zip(arguments[::2], arguments[1::2], strict=True))
    syscalls.become_subreaper()
    reaper = Reaper()
    reaper.start()
    run, link = options["--run"], int(options["--link-fd"])
    os.set_inheritable(link, False)
    port = Port(link)
    guest = Guest(
        port,
        reaper=reaper,
        uevents=Uevents(),
        load=lambda _names: None,
        run=run,
        crun=options.get("--crun", "/usr/bin/crun"),
        crun_root=f"{run}/crun",
        root=options.get("--root", ""),
    )
    Server(port, guest).serve()


if __name__ == "__main__":
    main()
