"""One lab for all tests that need a host with real VFIO groups."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.lab.host import Lab
from tests.support.runtime import HAWSE
from tests.vm.conftest import EVIDENCE


@pytest.fixture(scope="package")
def lab(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Iterator[Lab]:
    """A booted lab; its console is kept when a test of it failed.

    It sees this machine's templates, of which most of its tests need the usual one: a cold boot in it takes minutes.
    """
    subprocess.run([HAWSE, "template", "build"], check=True)
    with Lab(str(tmp_path_factory.mktemp("lab"))) as booted, console_kept(booted, request.session):
        yield booted


@contextmanager
def console_kept(lab: Lab, session: pytest.Session) -> Iterator[None]:
    """Keep a lab's console for evidence when tests fail meanwhile."""
    failed = session.testsfailed
    yield
    if session.testsfailed > failed:
        os.makedirs(EVIDENCE, exist_ok=True)
        shutil.copy(lab.console, f"{EVIDENCE}/{os.path.basename(os.path.dirname(lab.console))}-console.log")
