"""One lab for all tests that need a host with real VFIO groups."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.lab.host import Lab
from tests.support import evidence
from tests.support.bundles import build_probe


@pytest.fixture(scope="package")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """A booted lab; its console and what its sandboxes wrote are saved when a test of it fails."""
    with Lab(str(tmp_path_factory.mktemp("lab"))) as booted, evidence.collected(booted.save_evidence):
        yield booted


@pytest.fixture(scope="package")
def probe(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The probe as a program, which the lab sees: its own compiler takes ten times as long."""
    return build_probe(str(tmp_path_factory.mktemp("probe")))
