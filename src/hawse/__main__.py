"""hawse's entry point: the table of verbs, the global options, and the code that prints errors."""

from __future__ import annotations

import importlib
import os
import sys

from hawse.cli.hot_options import split
from hawse.cli.settings import Settings
from hawse.errors import HawseError, UsageError
from hawse.linux import stdio
from hawse.log import Log
from hawse.version import SPEC_VERSION, VERSION

TYPE_CHECKING = False  # typing's import would cost a hot verb a tenth of its time
if TYPE_CHECKING:
    from collections.abc import Sequence

#: Verb → module below hawse.cli, imported only when the verb is used.
VERBS = {
    "create": "runc.create",
    "start": "runc.start",
    "state": "runc.state",
    "kill": "runc.kill",
    "delete": "runc.delete",
    "run": "runc.run",
    "exec": "runc.execute",
    "ps": "runc.ps",
    "events": "runc.events",
    "update": "runc.update",
    "pause": "runc.pause",
    "resume": "runc.resume",
    "list": "runc.list",
    "spec": "runc.spec",
    "features": "runc.features",
    "devices": "own.devices",
    "doctor": "own.doctor",
    "attach": "own.attach",
    "detach": "own.detach",
    "image": "own.image",
    "template": "own.template",
    "timeline": "own.timeline",
    "bind": "own.bind",
    "unbind": "own.unbind",
    "install": "own.install",
}

#: Verbs that engines call very often. They load neither argparse nor third-party libraries.
HOT = {"state", "start", "kill", "delete", "update"}
#: The reason why two verbs of runc are missing. Podman calls `checkpoint --help`, and accepts the error.
_IMPOSSIBLE = "a virtual machine with devices cannot be saved"
_OPTIONS = {
    "root": "directory of the containers' state (default /run/hawse)",
    "log": "append errors and warnings to this file",
    "log-format": "format of the log: text or json",
    "config": "configuration file (default /etc/hawse/config.toml)",
    "rootless": "accepted for compatibility with runc, and ignored",
}
_FLAGS = {
    "debug": "log debug messages, and print tracebacks of bugs",
    "systemd-cgroup": "systemd creates the cgroup; cgroupsPath has the form slice:prefix:name",
    "version": "print the version (-v)",
    "help": "print this help (-h)",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status. The default of ``arguments`` is this process's."""
    stdio.complete()
    log = Log()
    debug = False
    try:
        spellings = {f"--{name}": name for name in _FLAGS} | {"-v": "version", "-h": "help"}
        argv = sys.argv[1:] if arguments is None else arguments
        words = split(argv, options=tuple(_OPTIONS), flags=spellings, verb=True)
        if "help" in words.flags:
            print(_help())
            return 0
        if "version" in words.flags:
            # Engines parse this output (go-runc runc.go, parseVersion; `docker info`).
            print(f"hawse version {VERSION}\ncommit: {VERSION}\nspec: {SPEC_VERSION}")
            return 0
        options = words.options
        form = options.get("log-format", "text")
        if form not in ("text", "json"):
            raise UsageError(f"--log-format {form[:80]!r} is neither text nor json", hint="see `hawse --help`")
        debug = "debug" in words.flags
        log = Log(options.get("log"), form=form, debug=debug)
        settings = Settings(
            root=options.get("root"),
            log=log,
            config_path=options.get("config"),
            debug=debug,
            systemd_cgroup="systemd-cgroup" in words.flags,
        )
        if not words.rest:
            raise UsageError("no command given", hint="see `hawse --help`")
        status = _run(words.rest[0], words.rest[1:], settings)
        sys.stdout.flush()
        return status
    except HawseError as error:
        log.tell(error.notes)
        log.error(error.sentence(), error.evidence)
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    except Exception as error:
        if isinstance(error, BrokenPipeError) and stdio.has_no_reader(1):
            # Without this, Python would print another error when it flushes stdout at exit.
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            return 1
        if debug:
            raise
        if isinstance(error, PermissionError) and os.geteuid() != 0:
            # Only root can read the state of containers (mode 0700): other users get this error from every verb that
            # reads it.
            log.error(f"{error.filename or 'a system call'}: {error.strerror} [run as root]")
            return 1
        log.error(f"unexpected {type(error).__name__}: {error} [this is a bug in hawse; --debug shows where]")
        return 1


def _run(verb: str, words: list[str], settings: Settings) -> int:
    if verb not in VERBS:
        why = f": {_IMPOSSIBLE}" if verb in ("checkpoint", "restore") else ""
        raise UsageError(f"unknown command {verb!r}{why}", hint="see `hawse --help`")
    module = importlib.import_module(f"hawse.cli.{VERBS[verb]}")
    status: int
    if verb in HOT:
        if {"-h", "--help"} & set(words):
            print(f"usage: hawse {verb} {module.USAGE}\n\n{module.HELP}")
            return 0
        status = module.main(words, settings)
    else:
        from hawse.cli.parser import Parser

        parser = Parser(prog=f"hawse {verb}", description=module.HELP, allow_abbrev=False)
        module.configure(parser)
        status = module.run(parser.parse_args(words), settings)
    return status


def _help() -> str:
    """The help text with all options and commands."""
    lines = ["usage: hawse [OPTIONS] COMMAND ...", ""]
    lines += ["OCI runtime: every sandbox is a virtual machine, VFIO devices stay VFIO devices.", "", "options:"]
    lines += [f"  --{name} {name.upper()}".ljust(28) + text for name, text in _OPTIONS.items()]
    lines += [f"  --{name}".ljust(28) + text for name, text in _FLAGS.items()]
    return "\n".join(
        [*lines, "", f"commands: {' '.join(VERBS)}", "          `hawse COMMAND --help` describes a command"]
    )


if __name__ == "__main__":
    sys.exit(main())
