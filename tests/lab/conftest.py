"""One lab for all tests that need a host with real VFIO groups."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from hawse.vm.image.build import build
from tests.lab.host import Lab
from tests.support import device_kernel as kernel
from tests.support import evidence
from tests.support.bundles import build_probe
from tests.support.caches import CACHE
from tests.support.images import pause_program
from tests.support.outcome import FAILED
from tests.support.runtime import HAWSE


@pytest.fixture(scope="package")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """A booted lab. When a test fails, its console and the logs of its sandboxes are saved."""
    # Compiled on this host: programs in the lab find them in the cache.
    build_probe(str(tmp_path_factory.mktemp("compiled")))
    pause_program()
    with Lab(str(tmp_path_factory.mktemp("lab"))) as booted, evidence.collected(booted.save_evidence):
        yield booted


@pytest.fixture(scope="package")
def probe(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The path of the probe, the same in the lab."""
    return build_probe(str(tmp_path_factory.mktemp("probe")))


@pytest.fixture(autouse=True)
def containers_of_a_failed_test(lab: Lab, request: pytest.FixtureRequest) -> Iterator[None]:
    """Delete the containers of a failed test, since other tests need their devices."""
    before = lab.run(["ls", "/run/hawse"]).output.split()
    yield
    if request.node.stash.get(FAILED, False):
        for name in lab.run(["ls", "/run/hawse"]).output.split():
            if name not in before:
                lab.run([HAWSE, "delete", "--force", name])


@pytest.fixture(scope="package")
def same_kernel(lab: Lab) -> str:
    """Configuration of a guest image with the lab's kernel.

    Later kernels report other properties of the same device: from Linux 6.5 on, VFIO_IRQ_INFO_NORESIZE is not set for
    MSI-X (drivers/vfio/pci/vfio_pci_core.c). A comparison of runc and hawse needs one kernel on both sides.
    """
    built = kernel.build()
    build(cache=CACHE, progress=print, kernel=built.image, modules=built.modules)
    lab.see_new_files()
    return f'[image]\nkernel = "{built.image}"\nmodules = "{built.modules}"\n'
