"""One lab for all tests that need a host with real VFIO groups."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.lab.host import Lab
from tests.support.bundles import build_probe
from tests.vm.conftest import EVIDENCE


@pytest.fixture(scope="package")
def lab(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Iterator[Lab]:
    """A booted lab; its console is kept when a test of it failed."""
    with Lab(str(tmp_path_factory.mktemp("lab"))) as booted, console_kept(booted, request.session):
        yield booted


@pytest.fixture(scope="package")
def probe(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The probe as a program, which the lab sees: its own compiler takes ten times as long."""
    return build_probe(str(tmp_path_factory.mktemp("probe")))


@contextmanager
def console_kept(lab: Lab, session: pytest.Session) -> Iterator[None]:
    """Keep a lab's console for evidence when tests fail meanwhile."""
    failed = session.testsfailed
    yield
    if session.testsfailed > failed:
        os.makedirs(EVIDENCE, exist_ok=True)
        shutil.copy(lab.console, f"{EVIDENCE}/{'-'.join(lab.console.split('/')[-3:])}")  # two runs have one each
