"""runtime.md: the operations and their errors, and the state, hooks and end of a container."""

from __future__ import annotations

import json
import os
import re
import time

from tests.conformance.subject import Bundle, Subject
from tests.conformance.suite import Answers, Case, Group
from tests.support.patience import patience
from tests.support.runtime import Result

LIFE = "runtime.md#operations"
STATE = "runtime.md#state"
#: No document defines the exit codes of the command line. These are the codes of runc.
CODES = "runc's man pages"
HOOKS = "config.md#posix-platform-hooks"
KINDS = ("prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop")
FAILED = re.compile(r"\A[1-9]\d* .*\w", re.S)
#: The time limit, passed to :func:`patience`.
_SECONDS = 15


def _brief(result: Result) -> str:
    return f"{result.code} {result.errors}".strip()


def _await(subject: Subject, bundle: Bundle, status: str) -> str:
    """Wait for a status; returns the last one when the time is over."""
    deadline = time.monotonic() + patience(_SECONDS)
    while (current := str(subject.state(bundle)["status"])) != status and time.monotonic() < deadline:
        time.sleep(0.02)
    return current


def _ask_life(subject: Subject) -> Answers:
    bundle = subject.bundle(["/bin/sh", "-c", "trap 'exit 3' TERM; echo up > /data/up; while :; do sleep 0.1; done"])
    bundle.spec["annotations"] = {"org.example.key": "a value", "org.example.empty": ""}
    name, answers = bundle.name, {}
    answers["unknown-id"] = "\n".join(_brief(subject(verb, "nobody")) for verb in ("state", "start", "kill", "delete"))
    created = subject.create(bundle)
    assert created.code == 0, created
    state = subject.state(bundle)
    answers["state-created"] = f"{state['status']} {os.path.exists(f'{bundle.rootfs}/data/up')}"
    answers["state-fields"] = f"{state['id'] == name} {state['bundle'] == bundle.path} {state['pid'] > 0}"
    answers["state-version"] = str(state["ociVersion"])
    answers["state-annotations"] = json.dumps(state.get("annotations"), sort_keys=True)
    with open(f"{bundle.path}/pid") as file:
        answers["pid-file"] = str(file.read() == str(state["pid"]) and os.path.exists(f"/proc/{state['pid']}"))
    answers["create-twice"] = _brief(subject("create", "--bundle", bundle.path, name))
    spec = dict(bundle.spec, process=bundle.spec["process"] | {"args": ["/bin/false"]})
    with open(f"{bundle.path}/config.json", "w") as file:
        json.dump(spec, file)
    answers["start"] = _brief(subject("start", name))
    answers["state-running"] = _await(subject, bundle, "running")
    answers["start-twice"] = _brief(subject("start", name))
    answers["delete-running"] = _brief(subject("delete", name))
    for code, words in {
        "0": ["/bin/true"], "7": ["/bin/sh", "-c", "exit 7"], "127": ["/no/such/program"], "126": ["/data"],
        "137": ["/bin/sh", "-c", "kill -9 $$"],
    }.items():  # fmt: skip
        answers[f"exec-code-{code}"] = str(subject("exec", name, *words).code)
    answers["exec-user"] = subject(
        "exec", "--user", "5:6", name, "/bin/sh", "-c", "echo $(id -u) $(id -g)"
    ).output.strip()
    answers["kill-nonsense"] = _brief(subject("kill", name, "NONSENSE"))
    answers["kill"] = _brief(subject("kill", name, "TERM"))
    answers["state-stopped"] = _await(subject, bundle, "stopped")
    answers["config-changed"] = str(os.path.exists(f"{bundle.rootfs}/data/up"))
    answers["kill-stopped"] = _brief(subject("kill", name, "TERM"))
    answers["start-stopped"] = _brief(subject("start", name))
    answers["exec-stopped"] = _brief(subject("exec", name, "/bin/true"))
    answers["delete"] = _brief(subject("delete", name))
    answers["deleted"] = _brief(subject("state", name))
    return answers


LIFECYCLE = Group(
    "lifecycle",
    [
        Case("unknown-id", LIFE, "state, start, kill and delete of an unknown id are errors",
             re.compile(r"\A([1-9]\d* [^\n]*does not exist[^\n]*\n?){4}\Z")),
        Case("state-created", LIFE, "after create the state is created, and the program has not run", "created False"),
        Case("state-fields", STATE, "the state contains id, bundle and pid", "True True True"),
        Case("state-version", STATE, "the state contains the bundle's ociVersion", "1.0.2-dev"),
        Case("state-annotations", STATE, "the state contains the annotations",
             '{"org.example.empty": "", "org.example.key": "a value"}'),
        Case("pid-file", STATE, "the pid file contains the pid of the state, which exists on the host", "True"),
        Case("create-twice", LIFE, "create with an id in use is an error", FAILED),
        Case("start", LIFE, "start runs the program", "0"),
        Case("state-running", STATE, "after start the state is running", "running"),
        Case("config-changed", LIFE, "a change of config.json after create has no effect", "True"),
        Case("start-twice", LIFE, "start of a running container is an error", FAILED),
        Case("delete-running", LIFE, "delete of a running container is an error", FAILED),
        Case("exec-code-0", CODES, "exec exits with the program's code: 0", "0"),
        Case("exec-code-7", CODES, "exec exits with the program's code: 7", "7"),
        Case("exec-code-137", CODES, "exec of a program that a signal ends: 128 plus the signal", "137"),
        Case("exec-code-127", CODES, "exec of a missing program: 127, or 255 as runc",
             re.compile("^(127|255)$")),
        Case("exec-code-126", CODES, "exec of a program that cannot be executed: 126, or 255 as runc",
             re.compile("^(126|255)$")),
        Case("exec-user", CODES, "exec --user sets uid and gid", "5 6"),
        Case("kill-nonsense", LIFE, "kill with an unknown signal is an error", FAILED),
        Case("kill", LIFE, "kill sends a signal", "0"),
        Case("state-stopped", STATE, "after the end of the process the state is stopped", "stopped"),
        Case("kill-stopped", LIFE, "kill of a stopped container is an error", FAILED),
        Case("start-stopped", LIFE, "start of a stopped container is an error", FAILED),
        Case("exec-stopped", LIFE, "exec in a stopped container is an error", FAILED),
        Case("delete", LIFE, "delete removes a stopped container", "0"),
        Case("deleted", LIFE, "after delete the container does not exist", re.compile("^1 .*does not exist")),
    ],
    _ask_life,
)  # fmt: skip


def _ask_codes(subject: Subject) -> Answers:
    answers = {}
    for case, argv in {
        "run-code-7": ["/bin/sh", "-c", "exit 7"],
        "run-not-found": ["/no/such/program"],
        "run-not-executable": ["/data"],
    }.items():
        done = subject.run(subject.bundle(argv))
        answers[case] = str(done.code) if case.startswith("run-code") else _brief(done)
    bundle = subject.bundle(["/bin/sh", "-c", "echo up > /data/up; sleep 1000"])
    with subject.begin(bundle) as running:
        deadline = time.monotonic() + patience(_SECONDS)
        up = f"{bundle.rootfs}/data/up"
        while not os.path.exists(up) and running.poll() is None and time.monotonic() < deadline:
            time.sleep(0.02)
        subject("kill", bundle.name, "KILL")
        answers["run-code-signal"] = str(running.wait(timeout=patience(_SECONDS)))
    return answers


ENDS = Group(
    "exit codes",
    [
        Case("run-code-7", CODES, "run exits with the program's code", "7"),
        Case("run-code-signal", CODES, "run of a program that a signal ends: 128 plus the signal", "137"),
        Case("run-not-found", CODES, "run reports a missing program: 127, or 1 as runc",
             re.compile(r"^(1|127) .*(no such file or directory|not found)", re.S)),
        Case("run-not-executable", CODES, "run reports a program that cannot be executed: 126, or 1 as runc",
             re.compile(r"^(1|126) .*(permission denied|is a directory)", re.S)),
    ],
    _ask_codes,
)  # fmt: skip


def _hook(bundle: Bundle, kind: str, number: int) -> dict[str, object]:
    """A hook that writes its name and the status on its stdin. Hooks of the container see the container's files."""
    data = "/data" if kind == "startContainer" else f"{bundle.rootfs}/data"
    script = f's=$(cat); echo {kind}{number} >> {data}/order; echo "$s" > {data}/state-{kind}; echo $V > {data}/env'
    return {"path": "/bin/sh", "args": ["sh", "-c", script], "env": ["PATH=/bin:/usr/bin", "V=own"], "timeout": 30}


def _ask_hooks(subject: Subject) -> Answers:
    bundle = subject.bundle(["/bin/sh", "-c", "echo program >> /data/order"])
    data = bundle.make("rootfs/data", mode=0o777)
    bundle.spec["hooks"] = {kind: [_hook(bundle, kind, number) for number in (1, 2)] for kind in reversed(KINDS)}

    def order() -> str:
        if not os.path.exists(f"{data}/order"):
            return ""
        with open(f"{data}/order") as file:
            return " ".join(file.read().split())

    created = subject.create(bundle)
    assert created.code == 0, created
    answers = {"hooks-create": order()}
    assert subject("start", bundle.name).code == 0
    _await(subject, bundle, "stopped")
    # poststart may run before or after the program.
    ran = order().removeprefix(answers["hooks-create"]).split()
    answers["hooks-start"] = " ".join(name for name in ran if name != "program")
    answers["hooks-start-program"] = str(ran.index("startContainer2") < ran.index("program"))
    assert subject("delete", bundle.name).code == 0
    answers["hooks-delete"] = order().split(" ", len(ran) + len(answers["hooks-create"].split()))[-1]
    for kind in KINDS:
        with open(f"{data}/state-{kind}") as file:
            state = json.load(file)
        assert state["id"] == bundle.name
        answers[f"hook-state-{kind}"] = str(state["status"])
    with open(f"{data}/env") as file:
        answers["hook-env"] = file.read().strip()
    return answers


_STATUS = {
    "prestart": "(creating|created)", "createRuntime": "(creating|created)", "createContainer": "(creating|created)",
    "startContainer": "created", "poststart": "running", "poststop": "stopped",
}  # fmt: skip

HOOKED = Group(
    "hooks",
    [
        Case("hooks-create", HOOKS, "create runs prestart, createRuntime and createContainer, in order",
             "prestart1 prestart2 createRuntime1 createRuntime2 createContainer1 createContainer2"),
        Case("hooks-start", HOOKS, "start runs startContainer and poststart, in order",
             "startContainer1 startContainer2 poststart1 poststart2"),
        Case("hooks-start-program", HOOKS, "startContainer runs before the program", "True"),
        Case("hooks-delete", HOOKS, "delete runs poststop, in order", "poststop1 poststop2"),
        Case("hook-env", HOOKS, "a hook gets its env", "own"),
        *(
            Case(f"hook-state-{kind}", HOOKS, f"{kind} gets the state with its status", re.compile(f"^{status}$"))
            for kind, status in _STATUS.items()
        ),
    ],
    _ask_hooks,
)  # fmt: skip

GROUPS = [LIFECYCLE, ENDS, HOOKED]
