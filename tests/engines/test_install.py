"""Engines read the configuration that `hawse install` writes."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

import pytest

from hawse.config import load_config
from tests.support.runtime import HAWSE

pytestmark = pytest.mark.engine


def run(*argv: str) -> str:
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done
    return done.stdout + done.stderr


def install(engine: str, file: Path, *options: str) -> str:
    """Run `hawse install`. ``file``: the configuration of the engine; the one of hawse is written next to it."""
    return run(HAWSE, "--config", f"{file}.hawse.toml", "install", engine, "--file", str(file), *options)


def test_docker(tmp_path: Path) -> None:
    """The daemon of the other tests is configured by the same command."""
    file = tmp_path / "daemon.json"
    assert "written" in install("docker", file)
    assert json.loads(file.read_text())["runtimes"]["hawse"]["path"] == HAWSE
    assert "nothing to change" in install("docker", file)
    assert load_config(f"{file}.hawse.toml").vm.confine == "required"
    assert "removed" in install("docker", file, "--undo")
    assert not file.exists()


def test_containerd(tmp_path: Path) -> None:
    file = tmp_path / "config.toml"
    file.write_text(run("containerd", "config", "default"))
    before = file.read_text()
    install("containerd", file)
    shown = run("containerd", "--config", str(file), "config", "dump")
    assert f'BinaryName = "{HAWSE}"' in shown
    assert "default_runtime_name" in shown
    install("containerd", file, "--undo")
    assert file.read_text() == before


@pytest.mark.parametrize("version", [2, 3, 4])
def test_containerd_reads_each_version_that_it_knows(tmp_path: Path, version: int) -> None:
    """The newest version that containerd of Debian 12 and 13 knows is 2. An older containerd accepts a newer version,
    but its plugins have other names."""
    newest = tomllib.loads(run("containerd", "config", "default"))["version"]
    if version > newest:
        pytest.skip(f"this containerd knows versions up to {newest}")
    file = tmp_path / "config.toml"
    file.write_text(f"version = {version}\n")
    install("containerd", file)
    shown = tomllib.loads(run("containerd", "--config", str(file), "config", "dump"))
    tables = [plugin.get("containerd", {}).get("runtimes", {}) for plugin in shown["plugins"].values()]
    assert [table["hawse"]["options"]["BinaryName"] for table in tables if "hawse" in table] == [HAWSE]


def test_podman(tmp_path: Path) -> None:
    """In a mount namespace in which the directory for such files belongs to the test."""
    directory = tmp_path / "containers.conf.d"
    directory.mkdir()
    install("podman", directory / "hawse.conf")
    script = f"mkdir -p /etc/containers/containers.conf.d && mount --bind {directory} /etc/containers/containers.conf.d"
    # Podman refuses a runroot of more than 50 characters.
    with tempfile.TemporaryDirectory(prefix="podman-", dir="/tmp") as short:
        storage = f"--root {short}/graph --runroot {short}/run --tmpdir {short}/tmp"
        shown = run("unshare", "--mount", "sh", "-c", f"{script} && podman {storage} --runtime hawse info")
    assert HAWSE in shown


def test_dry_run_shows_the_changes_and_makes_none(tmp_path: Path) -> None:
    file = tmp_path / "hawse.conf"
    shown = install("crio", file, "--dry-run")
    assert f'+runtime_path = "{HAWSE}"' in shown
    assert '+confine = "required"' in shown
    assert list(tmp_path.iterdir()) == []


def test_program_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    own = ["--config", str(tmp_path / "hawse.toml")]
    words = [HAWSE, *own, "install", "docker", "--file", str(tmp_path / "x"), "--program", f"{sys.executable}.not"]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "it cannot be executed" in done.stderr
