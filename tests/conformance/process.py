"""config.md, process: the user, arguments, environment, capabilities and limits of the program."""

from __future__ import annotations

import os
import re
import select

from tests.conformance.console import Console
from tests.conformance.subject import Bundle, Subject
from tests.conformance.suite import Answers, Case, Group, Spec, inside

PROCESS = "config.md#process"
POSIX = "config.md#posix-process"
LINUX = "config.md#linux-process"
USER = "config.md#posix-platform-user"
#: Numbers of capabilities, from linux/capability.h.
CHOWN, KILL, NET_RAW = 1 << 0, 1 << 5, 1 << 13
UNLIMITED = 2**64 - 1


def _user(spec: Spec, _bundle: Bundle) -> None:
    process = spec["process"]
    process["args"] += ["zero", "a b", "", "*"]
    process["env"] += ["EMPTY=", "SPACED=a  b", "QUOTED='\"$x"]
    process |= {
        "cwd": "/tmp",
        "user": {"uid": 1000, "gid": 1001, "additionalGids": [5, 7], "umask": 0o027},
        "oomScoreAdj": 321,
        "noNewPrivileges": True,
        "capabilities": {
            "bounding": ["CAP_KILL", "CAP_CHOWN", "CAP_NET_RAW"],
            "permitted": ["CAP_KILL", "CAP_CHOWN"],
            "effective": ["CAP_KILL"],
            "inheritable": ["CAP_KILL"],
            "ambient": ["CAP_KILL"],
        },
        "rlimits": [
            {"type": "RLIMIT_MEMLOCK", "soft": 12345, "hard": 23456},
            {"type": "RLIMIT_NOFILE", "soft": 100, "hard": 200},
        ],
    }


def _status(field: str) -> str:
    return f"grep ^{field}: /proc/self/status | busybox tr -d '\\t '"


def _limit(name: str) -> str:
    return f"grep '^{name}' /proc/self/limits | busybox tr -s ' '"


AS_A_USER = inside(
    "process of a user",
    _user,
    [
        Case("process-args", PROCESS, "args are passed unchanged, also an empty one", "<zero><a b><><*>",
             "printf '<%s>' \"$0\" \"$@\""),
        Case("process-env", PROCESS, "env is passed unchanged", "||a  b|'\"$x",
             'printf \'%s|\' "$HOME_IS_UNSET" "$EMPTY" "$SPACED"; printf %s "$QUOTED"'),
        Case("process-env-nothing-else", PROCESS, "variables of the runtime's environment are not passed",
             re.compile(r"^(?!.*^(SUDO|PYTEST|LANG|LC_|RUNTIME|VIRTUAL_ENV))", re.M | re.S), "env"),
        Case("process-cwd", PROCESS, "cwd is the working directory", "/tmp", "pwd"),
        Case("process-user", USER, "the process has this uid and gid", "1000 1001", "echo $(id -u) $(id -g)"),
        Case("process-additional-gids", USER, "the process has these additionalGids",
             re.compile(r"^Groups:.*\b5 7\b"), "grep ^Groups: /proc/self/status"),
        Case("process-umask", USER, "umask is set", "0027", "umask"),
        Case("capabilities-bounding", LINUX, "the bounding set is the bundle's",
             f"CapBnd:{CHOWN | KILL | NET_RAW:016x}", _status("CapBnd")),
        Case("capabilities-effective", LINUX, "the effective set of a user is the ambient set",
             f"CapEff:{KILL:016x}", _status("CapEff")),
        Case("capabilities-inheritable", LINUX, "the inheritable set is the bundle's",
             f"CapInh:{KILL:016x}", _status("CapInh")),
        Case("capabilities-ambient", LINUX, "the ambient set is the bundle's",
             f"CapAmb:{KILL:016x}", _status("CapAmb")),
        Case("no-new-privileges", LINUX, "noNewPrivileges is set", "NoNewPrivs:1", _status("NoNewPrivs")),
        Case("oom-score-adj", LINUX, "oomScoreAdj is set", "321", "cat /proc/self/oom_score_adj"),
        Case("rlimit-memlock", POSIX, "both limits of RLIMIT_MEMLOCK are set, in bytes",
             "Max locked memory 12345 23456 bytes ", _limit("Max locked memory")),
        Case("rlimit-nofile", POSIX, "both limits of RLIMIT_NOFILE are set", "Max open files 100 200 files ",
             _limit("Max open files")),
    ],
)  # fmt: skip


def _root(spec: Spec, _bundle: Bundle) -> None:
    del spec["process"]["user"]
    process = spec["process"] | {"cwd": "/made/by/whom", "noNewPrivileges": False}
    process["capabilities"] = {kind: ["CAP_KILL", "CAP_OF_LATER"] for kind in ("bounding", "effective", "permitted")}
    spec["process"] = process
    spec["unknownToAll"] = {"a": 1}
    spec["linux"]["unknownToAll"] = True


AS_ROOT = inside(
    "process of root",
    _root,
    [
        Case("process-user-default", USER, "the default user is root", "0 0", "echo $(id -u) $(id -g)"),
        Case("capabilities-unknown", LINUX, "an unknown capability is ignored",
             f"CapPrm:{KILL:016x}", _status("CapPrm")),
        Case("capabilities-root", LINUX, "root has only the capabilities of the bundle", f"CapEff:{KILL:016x}",
             _status("CapEff")),
        Case("no-new-privileges-unset", LINUX, "noNewPrivileges stays unset", "NoNewPrivs:0", _status("NoNewPrivs")),
        Case("process-cwd-made", PROCESS, "a missing cwd is created, as by every runtime", "/made/by/whom",
             "pwd"),
        Case("unknown-properties", "config.md#extensibility", "unknown properties are ignored", "yes", "echo yes"),
    ],
)  # fmt: skip


def _lifted(spec: Spec, _bundle: Bundle) -> None:
    spec["process"]["rlimits"] = [
        {"type": "RLIMIT_MEMLOCK", "soft": UNLIMITED, "hard": UNLIMITED},
        {"type": "RLIMIT_NOFILE", "soft": 1024, "hard": 1 << 20},
    ]
    spec["process"]["oomScoreAdj"] = -5


#: Settings that require CAP_SYS_RESOURCE on a host.
LIFTED = inside(
    "raised limits",
    _lifted,
    [
        Case("rlimit-memlock-unlimited", POSIX, "RLIMIT_MEMLOCK can be unlimited",
             "Max locked memory unlimited unlimited bytes ", _limit("Max locked memory")),
        Case("rlimit-raised", POSIX, "a hard limit can be above the runtime's", "Max open files 1024 1048576 files ",
             _limit("Max open files")),
        Case("oom-score-adj-negative", LINUX, "oomScoreAdj may be negative", "-5", "cat /proc/self/oom_score_adj"),
    ],
)  # fmt: skip


def _ask_terminal(subject: Subject) -> Answers:
    """A container with a terminal. Its master arrives through a socket, as for engines."""
    script = "tty; stty size; ls -l /dev/console | busybox cut -c1; test -t 0 -a -t 1 -a -t 2 && echo all; echo end"
    bundle = subject.bundle(["/bin/sh", "-c", script])
    bundle.spec["process"] |= {"terminal": True, "consoleSize": {"height": 31, "width": 101}}
    with Console(f"{bundle.path}/console.sock") as console:
        created = subject.create(bundle, "--console-socket", console.path)
        assert created.code == 0, created
        with console.receive() as master:
            started = subject("start", bundle.name)
            assert started.code == 0, started
            text = ""
            while "end" not in text and select.select([master], [], [], 60)[0]:
                text += os.read(master, 4096).decode()
    subject("delete", "--force", bundle.name)
    lines = [*text.split("\r\n"), "", "", "", "", ""]
    keys = ("terminal", "console-size", "terminal-console", "terminal-stdio")
    return dict(zip(keys, lines, strict=False))


TERMINAL = Group(
    "terminal",
    [
        Case("terminal", PROCESS, "the terminal is from the container's devpts",
             re.compile(r"^/dev/(pts/0|console)$")),
        Case("console-size", PROCESS, "the terminal has this consoleSize", "31 101"),
        Case("terminal-console", "config-linux.md#default-devices", "/dev/console exists with a terminal", "c"),
        Case("terminal-stdio", PROCESS, "stdin, stdout and stderr are the terminal", "all"),
    ],
    _ask_terminal,
)  # fmt: skip

GROUPS = [AS_A_USER, AS_ROOT, LIFTED, TERMINAL]
