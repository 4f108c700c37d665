"""Stages of a container's life as fixtures. Each test proves at its end that the host is as it was."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from typing import Any

import pytest

from hawse.config import Vm
from hawse.vm.accel import choose
from hawse.vm.image import locate
from tests.support.caches import CACHE
from tests.support.host import prove_unchanged, snapshot
from tests.support.runtime import Runtime

EVIDENCE = os.path.join(os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))), "evidence")
outcome = pytest.StashKey[bool]()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Any:
    """Remember whether the test failed, for the fixtures' ends."""
    report = yield
    item.stash[outcome] = item.stash.get(outcome, False) or report.failed
    return report


@pytest.fixture(scope="session", autouse=True)
def acceleration() -> None:
    """The probe's answer, once for all: the first command on a machine announces the software fallback."""
    vm = Vm()
    choose("auto", qemu=vm.qemu, kernel=locate(cache=CACHE).kernel, directory=CACHE)


@pytest.fixture
def runtime(tmp_path: os.PathLike[str], request: pytest.FixtureRequest) -> Iterator[Runtime]:
    """hawse with a root of its own; afterwards its containers are deleted and nothing may be left of them."""
    before = snapshot()
    made = Runtime(str(tmp_path))
    yield made
    if request.node.stash.get(outcome, False) and os.path.isdir(made.root):
        save_evidence(made.root, request.node.name)
    for name in os.listdir(made.root) if os.path.isdir(made.root) else ():
        made("delete", "--force", name)
    # Orphaned proxies are collected by PID 1 in its own time.
    prove_unchanged(before)
    assert not os.path.isdir(made.root) or os.listdir(made.root) == []


def save_evidence(root: str, test: str) -> None:
    """Keep console, QMP log and state of every container of a test that failed."""
    for name in os.listdir(root):
        target = os.path.join(EVIDENCE, test.replace("/", "_"), name)
        os.makedirs(target, exist_ok=True)
        for file in os.listdir(f"{root}/{name}"):
            if file.endswith((".log", ".json", ".old")):
                shutil.copy(f"{root}/{name}/{file}", target)
