"""The commands of the documentation of each engine, unchanged."""

from __future__ import annotations

import re
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import docker
from tests.support.docker import Docker
from tests.support.patience import patience
from tests.support.podman import Podman
from tests.support.runtime import HAWSE, Runtime

pytestmark = [pytest.mark.vm, pytest.mark.engine]

DOCS = Path(__file__).parents[2] / "docs"
#: The file that commands of the pages copy out of a container.
COPIED = Path("/tmp/hawse-page-hostname")


def commands(page: str) -> str:
    """The commands of a page, in order."""
    blocks = re.findall(r"```sh\n(.*?)```", (DOCS / page).read_text(), re.DOTALL)
    assert blocks
    return "".join(blocks)


def run_page(page: str, directory: Path, environment: dict[str, str], nodes: Path, image: str) -> None:
    """Run a page's commands; each must succeed.

    Two things differ: the file that `hawse install` writes, and the paths of the host's nodes of emulated groups.
    """
    bin_ = directory / "bin"
    bin_.mkdir()
    (bin_ / "hawse").write_text(f'#!/bin/sh\nexec {HAWSE} --config {directory}/own "$@" --file {directory}/installed\n')
    (bin_ / "hawse").chmod(0o755)
    script = re.sub(r"--device /dev/vfio/(\w+)", rf"--device {nodes}/\1:/dev/vfio/\1", commands(page))
    path = f"{bin_}:{environment['PATH']}"
    done = subprocess.run(
        ["sh", "-exc", script], env=environment | {"PATH": path, "IMAGE": image}, stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False, timeout=patience(200),
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    assert HAWSE in (directory / "installed").read_text()


@pytest.fixture
def engine_of_docker(hawse: Runtime, tmp_path: Path) -> Iterator[Docker]:
    with Docker(str(tmp_path / "docker"), hawse) as engine:
        yield engine


def test_page_of_podman(podman: Podman, nodes: Path, tmp_path: Path) -> None:
    run_page("podman.md", tmp_path, podman.environment, nodes, "localhost/box:latest")
    COPIED.unlink()


def test_page_of_docker(engine_of_docker: Docker, nodes: Path, tmp_path: Path) -> None:
    run_page("docker.md", tmp_path, engine_of_docker.environment, nodes, docker.IMAGE)
    COPIED.unlink()


def test_page_of_crio(tmp_path: Path) -> None:
    """CRI-O is not installed. `hawse install` must write the configuration that the page shows."""
    run_page("crio.md", tmp_path, {"PATH": "/usr/bin:/bin"}, tmp_path, "")
    [shown] = re.findall(r"```toml\n(.*?)```", (DOCS / "crio.md").read_text(), re.DOTALL)
    written = (tmp_path / "installed").read_text().replace(HAWSE, "/usr/bin/hawse")
    assert tomllib.loads(written) == tomllib.loads(shown)
