"""Hooks of the specification: which run on the host or in the guest, invalid hooks, and how a hook is run."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from hawse.commands.hooks import hook_state, run_all
from hawse.errors import ConfigError
from hawse.oci.hooks import split
from hawse.oci.types import Hook

RECORD = {"ociVersion": "1.0.2", "id": "c1", "bundle": "/", "annotations": {}}


def test_hooks_are_divided_between_host_and_guest() -> None:
    hook = Hook(path="/bin/true", args=["true"])
    kinds = ("prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop")
    host, guest = split("config.json", {kind: [hook] for kind in kinds} | {"unknown": [hook], "prestart": None})
    assert list(host) == ["createRuntime", "createContainer", "poststart", "poststop"]
    assert guest == {"startContainer": [{"path": "/bin/true", "args": ["true"]}]}, "crun refuses null"


@pytest.mark.parametrize(
    ("hook", "words"),
    [
        (Hook(path="true"), "hooks.poststop[0].path: 'true' is not absolute"),
        (Hook(path=""), "hooks.poststop[0].path: '' is not absolute"),
        (Hook(path="/x", timeout=0), "hooks.poststop[0].timeout: 0 is not greater than 0"),
    ],
)
def test_invalid_hook_is_named(hook: Hook, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        split("config.json", {"poststop": [hook]})
    assert words in caught.value.message


@pytest.mark.parametrize(("pid", "keys"), [(7, {"pid", "status"}), (0, {"status"})])
def test_state_of_an_ended_container_has_no_pid(pid: int, keys: set[str]) -> None:
    assert set(hook_state(RECORD, "stopped", pid)) - set(RECORD) == keys


@pytest.mark.parametrize(
    ("hook", "seen"),
    [
        ({}, "sh inherited"),
        ({"env": []}, "sh "),
        ({"env": ["COLOUR=blue=sky"]}, "sh blue=sky"),
    ],
)
def test_hook_gets_its_arguments_and_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hook: dict[str, Any], seen: str
) -> None:
    monkeypatch.setenv("COLOUR", "inherited")
    out = tmp_path / "out"
    script = f'echo "$0 $COLOUR" > {out}; cat >> {out}'
    assert run_all("poststop", [{"path": "/bin/sh", "args": ["sh", "-c", script]} | hook], RECORD) == []
    first, rest = out.read_text().split("\n", 1)
    assert (first, json.loads(rest)) == (seen, RECORD)


def test_hook_that_does_not_read_or_leaves_a_process_is_not_an_error(tmp_path: Path) -> None:
    """Its own end counts, even if another process keeps its output open."""
    pid = tmp_path / "pid"
    script = f"exec 0<&-; sleep 1000 & echo $! > {pid}"
    large = RECORD | {"annotations": {"x": "y" * 200_000}}
    assert run_all("poststop", [{"path": "/bin/sh", "args": ["sh", "-c", script]}], large) == []
    os.kill(int(pid.read_text()), 9)


def test_every_failure_is_reported_and_the_other_hooks_run(tmp_path: Path) -> None:
    scripts = ("echo why >&2; exit 2", "kill -9 $$", "sleep 1000", f"echo > {tmp_path}/ran")
    hooks: list[dict[str, Any]] = [{"path": "/bin/sh", "args": ["sh", "-c", script]} for script in scripts]
    hooks[2]["timeout"] = 1
    assert run_all("poststop", [*hooks, {"path": "/none"}], RECORD) == [
        "error running poststop hook #0: /bin/sh: exit code 2, output: why",
        "error running poststop hook #1: /bin/sh: killed by signal 9",
        "error running poststop hook #2: /bin/sh: hook ran past specified timeout of 1 s",
        "error running poststop hook #4: /none: no such file or directory",
    ]
    assert (tmp_path / "ran").exists()
