"""One lab for all tests that need a host with real VFIO groups."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.lab.host import Lab
from tests.support import evidence
from tests.support.bundles import build_probe
from tests.support.images import pause_program


@pytest.fixture(scope="package")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """A booted lab; its console and what its sandboxes wrote are saved when a test of it fails."""
    # Compiled here: programs in the lab find them in the cache.
    build_probe(str(tmp_path_factory.mktemp("compiled")))
    pause_program()
    with Lab(str(tmp_path_factory.mktemp("lab"))) as booted, evidence.collected(booted.save_evidence):
        yield booted


@pytest.fixture(scope="package")
def probe(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The path of the probe, which the lab sees."""
    return build_probe(str(tmp_path_factory.mktemp("probe")))
