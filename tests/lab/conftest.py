"""One lab for all tests that need a host with real VFIO groups."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator

import pytest

from tests.lab.host import Lab
from tests.support.bundles import build_probe
from tests.vm.conftest import EVIDENCE


@pytest.fixture(scope="package")
def lab(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Iterator[Lab]:
    """A booted lab; its console is kept when a test of it failed."""
    failed = request.session.testsfailed
    with Lab(str(tmp_path_factory.mktemp("lab"))) as booted:
        yield booted
        if request.session.testsfailed > failed:
            os.makedirs(EVIDENCE, exist_ok=True)
            shutil.copy(booted.console, f"{EVIDENCE}/{'-'.join(booted.console.split('/')[-3:])}")


@pytest.fixture(scope="package")
def probe(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The probe as a program, which the lab sees: its own compiler takes ten times as long."""
    return build_probe(str(tmp_path_factory.mktemp("probe")))
