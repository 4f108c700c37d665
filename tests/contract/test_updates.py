"""Sandboxes that outlive an in-place update of hawse, with a fake QEMU without a VM."""

from __future__ import annotations

import ast
import fcntl
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hawse.host.own_programs import PACKAGES
from hawse.monitor.lifecycle import LOADED_LATE
from hawse.vm.image import store
from tests.support.command import Done
from tests.support.patience import wait_until
from tests.support.ready import CRI, JOINS, Sandboxes, annotated

FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Sandboxes]:
    with Sandboxes(str(tmp_path)) as sandboxes:
        yield sandboxes


def copy_installation(directory: Path) -> Path:
    """Another installation of the same hawse."""
    shutil.copytree(f"{PACKAGES}/hawse", directory / "hawse", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(store.recipe_directory(), directory / "hawse/guest", dirs_exist_ok=True)
    return directory


def run(installation: Path, host: Sandboxes, *words: str) -> Done:
    """A command of an installation, as a process."""
    program = f"import sys; sys.path.insert(0, {str(installation)!r}); from hawse.__main__ import main; exit(main())"
    arguments = ["--root", host.hawse.root, "--config", host.hawse.config, *words]
    with open(f"{host.directory}/said", "w+") as said:  # not a pipe, which the container's process would keep open
        done = subprocess.run([sys.executable, "-c", program, *arguments], stdout=said, stderr=said, check=False)
        said.seek(0)
        return Done(done.returncode, "", said.read())


def is_compiled(installation: Path, module: str) -> bool:
    """Whether a process has loaded a module of the installation."""
    source = installation / module.replace(".", "/")
    return bool(list((source.parent / "__pycache__").glob(f"{source.name}.*.pyc")))


def is_idle(pid: int) -> bool:
    """Whether a process uses no CPU time for a quarter of a second."""

    def used() -> list[str]:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13]

    before = used()
    time.sleep(0.25)
    return used() == before


def test_monitor_loads_nothing_of_a_removed_installation(host: Sandboxes, tmp_path: Path) -> None:
    """Neither for later calls nor at its end: a module that it loaded then could be of another version."""
    old = copy_installation(tmp_path / "old")

    def beginning(spec: dict[str, Any]) -> None:
        annotated(CRI)(spec)
        spec["linux"]["cgroupsPath"] = f"/updates-{os.getpid()}"  # not the cache of another test's pod

    host.program("wait", more=beginning)
    assert run(old, host, "create", "--bundle", host.bundle, "pod") == Done(0, "", "")
    monitor = host.hawse.store("pod").read()["monitorPid"]
    assert str(old) in Path(f"/proc/{monitor}/cmdline").read_text()
    # The monitor loads them after it has reported the container. This module is the last one, and commands do not load
    # it.
    assert LOADED_LATE[-1] == "hawse.vfio.bind.bind"
    wait_until(lambda: is_compiled(old, "hawse.vfio.bind.variants") and all(is_idle(monitor) for _ in range(4)))
    os.rename(old, tmp_path / "gone")
    os.mkdir(f"{host.hawse.root}.bindings", 0o700)  # records of functions of the host that a sandbox had bound

    def joining(spec: dict[str, Any]) -> None:
        annotated(JOINS)(spec)
        spec["linux"]["cgroupsPath"] = f"/updates-{os.getpid()}/c1"
        spec["hooks"] = {kind: [{"path": "/bin/true"}] for kind in ("createRuntime", "poststart", "poststop")}
        spec["mounts"].append({"destination": "/x", "type": "bind", "source": host.directory, "options": ["rbind"]})

    host.program("wait", more=joining)
    hawse = host.hawse
    done = [hawse("start", "pod")]
    for _ in range(2):
        done += [hawse("create", "--bundle", host.bundle, "c1"), hawse("start", "c1")]
        done += [hawse(*words, "c1") for words in (["pause"], ["resume"], ["update", "--pids-limit", "7"])]
        # The fake guest answers these calls with null, which is an error of the command.
        answers = [hawse("ps", "c1"), hawse("events", "--stats", "c1"), hawse("attach", "c1", "6")]
        assert [answer.errors.partition(" is unusable")[0] for answer in answers] == [
            "hawse: the guest's answer to listing",
            "hawse: the guest's answer to statistics",
            "hawse: emulated edu of group 6: the guest's answer to bind_vfio",
        ]
        done += [hawse("kill", "c1", "KILL"), hawse("delete", "--force", "c1")]
    log = Path(host.hawse.store("pod").path, "monitor.log").read_text()
    done.append(hawse("delete", "--force", "pod"))
    assert ([each for each in done if each != Done(0, "", "")], log) == ([], "")


def test_late_imports_of_the_monitor_are_loaded_early() -> None:
    """All imports within functions of the monitor's modules are loaded once the sandbox is created."""
    text = (
        "import sys, hawse.monitor.main, hawse.monitor.lifecycle as lifetime, hawse.vm.qmp; lifetime._load_all(); "
        "print(*(f'{name}={module.__file__}' for name, module in sys.modules.items() if name.startswith('hawse.')))"
    )
    answer = subprocess.run([sys.executable, "-I", "-c", text], capture_output=True, text=True, check=True)
    loaded = dict(entry.split("=") for entry in answer.stdout.split())
    missing = []
    for module, path in loaded.items():
        for function in [node for node in ast.walk(ast.parse(Path(path).read_text())) if isinstance(node, FUNCTIONS)]:
            for node in ast.walk(function):
                if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("hawse"):
                    whole = not loaded.get(node.module or "", "__init__.py").endswith("__init__.py")
                    names = [f"{node.module}.{alias.name}" for alias in node.names]
                    missing += [(module, name) for name in names if not whole and name not in loaded]
    assert missing == []


def test_image_of_a_running_sandbox_is_held(host: Sandboxes) -> None:
    """A build removes no image that a sandbox has (hawse.vm.image.lock)."""
    host.program("wait")
    assert host.hawse("create", "--bundle", host.bundle, "c1").code == 0
    fd = os.open(f"{host.cache}/images/d1.lock", os.O_RDONLY)
    try:
        with pytest.raises(BlockingIOError):
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        host.hawse("delete", "--force", "c1")
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    finally:
        os.close(fd)
