"""Podman and Docker, each started once for the tests of this directory."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.docker import Docker
from tests.support.docker_cli import Engine
from tests.support.host import prove_unchanged, snapshot
from tests.support.podman import Podman
from tests.support.runtime import HAWSE, Runtime


@pytest.fixture(scope="package")
def hawse(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runtime]:
    """hawse with a private root, and group 5 emulated. At the end nothing of a sandbox may be left."""
    before = snapshot()
    runtime = Runtime(str(tmp_path_factory.mktemp("hawse")))
    runtime.configure('[emulated]\n5 = ["edu"]\n')
    yield runtime
    prove_unchanged(before)
    assert not os.path.isdir(runtime.root) or os.listdir(runtime.root) == []


@pytest.fixture(scope="package")
def podman(hawse: Runtime, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Podman]:
    """Podman, with the root of ``hawse``."""
    with Podman(str(tmp_path_factory.mktemp("podman")), hawse) as engine:
        yield engine


@pytest.fixture(scope="package")
def docker(hawse: Runtime, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Docker]:
    """Docker with "live-restore", so that containers outlive the daemon; with hawse under a second name, with
    arguments; and with `checkpoint`, an experimental command."""
    runtimes = {"arguments": {"path": HAWSE, "runtimeArgs": hawse.argv()[1:]}}
    settings: dict[str, Any] = {"runtimes": runtimes, "live-restore": True, "experimental": True}
    with Docker(str(tmp_path_factory.mktemp("docker")), hawse, **settings) as engine:
        yield engine


@pytest.fixture(scope="package", params=["podman", "docker"])
def engine(request: pytest.FixtureRequest) -> Engine:
    """Each of both engines."""
    engine: Engine = request.getfixturevalue(request.param)
    return engine


@pytest.fixture(scope="package")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory of the host with a page."""
    directory = tmp_path_factory.mktemp("files")
    (directory / "page").write_text("a page\n")
    return directory
