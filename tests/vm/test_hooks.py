"""Hooks run in the specified order with the state on stdin. A failure undoes the container, or is a warning."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.support.bundles import make_bundle, write
from tests.support.host import prove_unchanged, snapshot
from tests.support.patience import wait_until
from tests.support.pod_bundles import FOREVER
from tests.support.runtime import Runtime

pytestmark = pytest.mark.vm

#: Writes its kind, its directory and namespace, and the state to a log.
_NOTE = '#!/bin/sh\necho "$1 $(pwd) $(readlink /proc/self/ns/mnt) $WHO $(cat)" >> {log}\n{then}\n'


@pytest.fixture
def bundle(tmp_path: Path) -> str:
    """A bundle with a running program and a hook of each kind, which writes to the file ``log``."""
    path = str(tmp_path / "bundle")
    spec = make_bundle(path, ["/bin/sh", "-c", "cat /data/started > /data/user; while :; do sleep 3600; done"])
    kinds = ("prestart", "createRuntime", "createContainer", "poststart", "poststop")
    spec["hooks"] = {kind: [hook(tmp_path, kind)] for kind in kinds}
    spec["hooks"]["startContainer"] = [
        {
            "path": "/bin/sh",
            "args": ["sh", "-c", "cat > /data/started; echo >> /data/started; echo $WHO >> /data/started"],
            "env": ["WHO=me"],
        }
    ]
    spec["annotations"] = {"io.example/a": "b"}
    write(path, spec)
    return path


def hook(directory: Path, kind: str, then: str = "", **more: Any) -> dict[str, Any]:
    program = directory / f"hook-{kind}{len(then)}"
    program.write_text(_NOTE.format(log=directory / "log", then=then))
    program.chmod(0o755)
    return {"path": str(program), "args": ["hook", kind], "env": ["WHO=me", "PATH=/usr/bin:/bin"]} | more


def noted(directory: Path) -> list[tuple[str, str, str, str, dict[str, Any]]]:
    """Kind, directory, mount namespace, a variable and the state of each hook that has run."""
    path = directory / "log"
    lines = path.read_text().splitlines() if path.exists() else []
    parts = [line.split(" ", 4) for line in lines]
    return [(kind, where, namespace, who, json.loads(state)) for kind, where, namespace, who, state in parts]


def create(runtime: Runtime, bundle: str) -> tuple[int, str]:
    """Run `create c1` as an engine does, with the stdio of the container; returns exit code and errors."""
    null = subprocess.DEVNULL
    with open(f"{bundle}/errors", "w") as errors:
        argv = ["create", "--bundle", bundle, "--pid-file", f"{bundle}/pid", "c1"]
        code = runtime.start(*argv, stdin=null, stdout=null, stderr=errors).wait()
    with open(f"{bundle}/errors") as file:
        return code, file.read()


def test_each_hook_runs_once_in_order(runtime: Runtime, bundle: str, tmp_path: Path) -> None:
    assert create(runtime, bundle) == (0, "")
    with open(f"{bundle}/pid") as file:
        pid = int(file.read())
    own = os.readlink("/proc/self/ns/mnt")
    before = noted(tmp_path)
    assert [entry[0] for entry in before] == ["prestart", "createRuntime", "createContainer"]
    for _, where, _, who, state in before:
        assert (where, who) == (bundle, "me")
        assert state == {
            "ociVersion": "1.0.2-dev", "id": "c1", "status": "creating", "pid": pid, "bundle": bundle,
            "annotations": {"io.example/a": "b"},
        }  # fmt: skip
    assert [entry[2] == own for entry in before] == [True, True, False], "the third is in the sandbox's mount namespace"
    assert not os.path.exists(f"{bundle}/rootfs/data/started")

    started = runtime("start", "c1")
    assert (started.code, started.errors) == (0, "")
    kind, _, _, _, state = noted(tmp_path)[-1]
    assert (kind, state["status"], state["pid"], len(noted(tmp_path))) == ("poststart", "running", pid, 4)
    wait_until(lambda: os.path.exists(f"{bundle}/rootfs/data/user"))
    wait_until(lambda: Path(f"{bundle}/rootfs/data/user").read_text() != "")
    inside, who = Path(f"{bundle}/rootfs/data/user").read_text().strip().rsplit("\n", 1)
    assert (json.loads(inside)["id"], json.loads(inside)["annotations"], who) == ("c1", {"io.example/a": "b"}, "me")

    assert "hooks" not in runtime.state("c1"), "not part of the state that hooks get"
    assert runtime("delete", "--force", "c1").code == 0
    kind, _, _, _, state = noted(tmp_path)[-1]
    assert (kind, state["status"], "pid" in state, len(noted(tmp_path))) == ("poststop", "stopped", False, 5)


@pytest.mark.parametrize("kind", ["prestart", "createRuntime", "createContainer"])
def test_failed_hook_undoes_the_container(runtime: Runtime, bundle: str, tmp_path: Path, kind: str) -> None:
    before = snapshot()
    with open(f"{bundle}/config.json") as file:
        spec = json.load(file)
    spec["hooks"][kind].append(hook(tmp_path, kind, "echo no such network >&2; exit 3"))
    write(bundle, spec)
    code, errors = create(runtime, bundle)
    assert code == 1
    path = spec["hooks"][kind][1]["path"]
    assert errors == f"hawse: error running {kind} hook #1: {path}: exit code 3, output: no such network\n"
    assert noted(tmp_path)[-1][0] == "poststop", "the effects of other hooks are undone"
    assert os.listdir(runtime.root) == []
    prove_unchanged(before)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"timeout": 1}, "hook ran past specified timeout of 1 s"),
        ({"path": "/none"}, "/none: no such file or directory"),
    ],
)
def test_hook_that_hangs_or_is_missing_fails(
    runtime: Runtime, bundle: str, tmp_path: Path, changes: dict[str, Any], words: str
) -> None:
    with open(f"{bundle}/config.json") as file:
        spec = json.load(file)
    spec["hooks"] = {"createRuntime": [hook(tmp_path, "createRuntime", "sleep 1000") | changes]}
    write(bundle, spec)
    code, errors = create(runtime, bundle)
    assert (code, words in errors) == (1, True), errors
    assert not os.path.exists(f"{runtime.root}/c1")


def test_failed_poststop_hook_is_a_warning(runtime: Runtime, bundle: str, tmp_path: Path) -> None:
    with open(f"{bundle}/config.json") as file:
        spec = json.load(file)
    spec["hooks"] = {"poststop": [hook(tmp_path, "poststop", "exit 4"), hook(tmp_path, "poststop")]}
    write(bundle, spec)
    assert create(runtime, bundle) == (0, "")
    assert runtime("start", "c1").code == 0
    result = runtime("delete", "--force", "c1")
    path = spec["hooks"]["poststop"][0]["path"]
    assert (result.code, result.errors) == (
        0,
        f"hawse: warning: error running poststop hook #0: {path}: exit code 4\n",
    )
    assert [entry[0] for entry in noted(tmp_path)].count("poststop") == 2, "the other hooks run nevertheless"


def test_failure_after_the_start_stops_the_container_as_under_runc(
    runtime: Runtime, bundle: str, tmp_path: Path
) -> None:
    """`run` deletes the container, in both runtimes. After `start` it is stopped."""
    with open(f"{bundle}/config.json") as file:
        spec = json.load(file)
    spec["hooks"] = {"poststart": [hook(tmp_path, "poststart", "exit 4"), hook(tmp_path, "poststart")]}
    spec["process"]["args"] = FOREVER
    write(bundle, spec)
    root = f"{tmp_path}/runc"
    for words in (runtime.argv("run", "--bundle", bundle, "c1"), ["runc", "--root", root, "run", "-b", bundle, "c1"]):
        with open(f"{bundle}/said", "w+") as output:
            assert subprocess.run(words, check=False, stdin=subprocess.DEVNULL, stdout=output, stderr=output).returncode
            output.seek(0)
            assert "hook #0: " in output.read(), words
    assert os.listdir(root) == os.listdir(runtime.root) == []
    assert [entry[0] for entry in noted(tmp_path)] == ["poststart", "poststart"], "the others do not run"

    assert create(runtime, bundle) == (0, "")
    result = runtime("start", "c1")
    path = spec["hooks"]["poststart"][0]["path"]
    assert (result.code, result.errors) == (1, f"hawse: error running poststart hook #0: {path}: exit code 4\n")
    wait_until(lambda: runtime.state("c1")["status"] == "stopped")
    assert runtime("delete", "c1").code == 0


def test_failed_hook_in_the_container_stops_it(runtime: Runtime, bundle: str) -> None:
    with open(f"{bundle}/config.json") as file:
        spec = json.load(file)
    spec["hooks"] = {"startContainer": [{"path": "/bin/sh", "args": ["sh", "-c", "exit 3"]}]}
    write(bundle, spec)
    result = runtime("run", "--bundle", bundle, "c1")
    assert result.code == 1
    assert not os.path.exists(f"{bundle}/rootfs/data/user")
    assert "error executing hook `/bin/sh` (exit code: 3)" in result.errors, "crun's error, on its stderr"


def test_hooks_do_not_run_if_the_vm_does_not_start(runtime: Runtime, bundle: str, tmp_path: Path) -> None:
    runtime.configure('[vm]\nboot_seconds = 8\nkernel_append = "rdinit=/usr/bin/busybox -- sleep 1000"\n')
    code, errors = create(runtime, bundle)
    assert code == 1
    assert "hook" not in errors
    assert noted(tmp_path) == []


def test_containers_of_a_pod_have_their_own_hooks(runtime: Runtime, bundle: str, tmp_path: Path) -> None:
    with open(f"{bundle}/config.json") as file:
        spec = json.load(file)
    shutil.copytree(bundle, f"{bundle}-pod", symlinks=True)
    kind, sandbox = "io.kubernetes.cri.container-type", "io.kubernetes.cri.sandbox-id"
    write(f"{bundle}-pod", spec | {"hooks": {}, "annotations": {kind: "sandbox"}})
    runtime.run_detached(f"{bundle}-pod", "pod")
    spec["annotations"] = {kind: "container", sandbox: "pod"}
    write(bundle, spec)
    assert create(runtime, bundle) == (0, "")
    with open(f"{bundle}/pid") as file:
        pid = int(file.read())
    assert [(entry[0], entry[4]["id"], entry[4]["pid"]) for entry in noted(tmp_path)] == [
        (kind, "c1", pid) for kind in ("prestart", "createRuntime", "createContainer")
    ]
    assert runtime("start", "c1").code == 0
    assert runtime("delete", "--force", "c1").code == 0
    assert [entry[0] for entry in noted(tmp_path)[3:]] == ["poststart", "poststop"]

    spec["hooks"]["prestart"] = [hook(tmp_path, "prestart", "exit 5")]
    write(bundle, spec)
    code, errors = create(runtime, bundle)
    assert (code, "prestart hook #0" in errors) == (1, True)
    assert noted(tmp_path)[-1][0] == "poststop"
    assert os.listdir(runtime.root) == ["pod"]
