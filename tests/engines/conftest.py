"""Engines of this host with hawse as their runtime; each must leave the host unchanged."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from hawse.host import network_namespace
from tests.support.bundles import busybox
from tests.support.caches import CACHE
from tests.support.host import prove_unchanged, snapshot
from tests.support.manifests import yaml_library
from tests.support.podman import Podman
from tests.support.runtime import Runtime

DEVICES = '[emulated]\n5 = ["edu"]\n'
#: Numbers of the nodes on the host. No device needs to have them: hawse uses the path in the container.
GROUP_NODE, CONTAINER_NODE = (511, 5), (10, 196)


@pytest.fixture(scope="package", autouse=True)
def network() -> Iterator[None]:
    """A network namespace, whose interfaces and firewall rules belong only to the engines.

    Nothing can be downloaded in it, so the cached downloads are completed first.
    """
    busybox()
    yaml_library()
    host = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    network_namespace.leave()
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    yield
    network_namespace.enter(host)
    os.close(host)


@pytest.fixture(scope="package", autouse=True)
def templates(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A private directory of templates: tests compare them before and after, and other workers create some."""
    if "HAWSE_TEST_DIRECTORY" not in os.environ:
        yield
        return
    own, common = str(tmp_path_factory.mktemp("templates")), f"{CACHE}/templates"
    os.chmod(own, 0o700)
    os.makedirs(common, mode=0o700, exist_ok=True)
    subprocess.run(["mount", "--bind", own, common], check=True)
    yield
    subprocess.run(["umount", "--lazy", common], check=True)


@pytest.fixture(scope="module")
def hawse(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runtime]:
    """hawse with a private root, and group 5 emulated."""
    before = snapshot()
    runtime = Runtime(str(tmp_path_factory.mktemp("hawse")))
    runtime.configure(DEVICES)
    yield runtime
    prove_unchanged(before)
    assert not os.path.isdir(runtime.root) or os.listdir(runtime.root) == []


@pytest.fixture(scope="module")
def podman(hawse: Runtime, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Podman]:
    with Podman(str(tmp_path_factory.mktemp("podman")), hawse) as engine:
        yield engine


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with nodes of the host, `vfio` and `5`, since engines look at the nodes that they pass."""
    directory = tmp_path_factory.mktemp("nodes")
    for name, (major, minor) in {"vfio": CONTAINER_NODE, "5": GROUP_NODE}.items():
        os.mknod(directory / name, 0o020666, os.makedev(major, minor))
    return directory
