"""DMA to all memory that a program maps: many pages, at any address, and never lost without an error.

The host's limit of mappings applies only to real groups, not to QEMU's emulated devices.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest

from tests.lab.host import Lab
from tests.lab.steps import ANOTHER_EDU, EDU, MACHINE, configure, group_of, hawse, make_shell_bundle, read_json
from tests.support.runtime import Result
from tests.support.soak import rounds

pytestmark = pytest.mark.lab

LIMIT = "/sys/module/vfio_iommu_type1/parameters/dma_entry_limit"
DEFAULT = 65535
#: MiB to map: more pages than the default limit permits; with HAWSE_SOAK, all pages of a large mapping.
MIB = rounds(300, soak=1024)
SETTINGS = f"[vm]\n{MACHINE}memory_mib = 2048\n[devices]\nkeep_addresses = false\n"


@pytest.fixture(scope="module")
def container(lab: Lab, probe: str) -> Iterator[str]:
    """The name of a container with the edu, on a host whose limit is the kernel's default."""
    bundle = make_shell_bundle(lab, "dma", EDU, probe=probe, annotations={})
    configure(lab, SETTINGS)
    assert lab.run(["sh", "-c", f"echo {DEFAULT} >{LIMIT}"]).code == 0
    started = hawse(lab, "run", "--detach", "--bundle", bundle, "dma")
    assert started.code == 0, started
    yield "dma"
    assert hawse(lab, "delete", "--force", "dma").code == 0
    configure(lab)


def probe_with(lab: Lab, name: str, *environment: str) -> Result:
    words = [word for variable in environment for word in ("--env", variable)]
    return hawse(lab, "exec", *words, name, "/bin/sh", "-c", f"probe /dev/vfio/{group_of(lab, EDU)}", timeout=600)


def test_limit_of_mappings_is_raised_before_qemu_opens_a_group(lab: Lab, container: str) -> None:
    """The attach shows that the monitor can raise the limit after it has dropped most of its capabilities."""
    assert int(lab.run(["cat", LIMIT]).output) >= 2048 * 256
    assert lab.run(["sh", "-c", f"echo {DEFAULT} >{LIMIT}"]).code == 0
    assert hawse(lab, "attach", container, ANOTHER_EDU).code == 0
    assert int(lab.run(["cat", LIMIT]).output) >= 2048 * 256
    assert hawse(lab, "detach", container, ANOTHER_EDU).code == 0


def test_transfers_arrive_when_many_pages_are_mapped(lab: Lab, container: str) -> None:
    probed = probe_with(lab, container, f"PROBE_MIB={MIB}")
    answer = read_json(probed.output)
    assert (answer["more_mapped"], answer["dma_matched"], answer["passed"]) == (True, True, True), probed


def test_memory_can_be_mapped_at_its_own_address(lab: Lab, container: str) -> None:
    """Programs without root privileges, such as SPDK, use virtual addresses as IOVAs: 47 bits."""
    probed = probe_with(lab, container, "PROBE_MIB=4", "PROBE_IDENTITY=1")
    answer = read_json(probed.output)
    assert (answer["more_mapped"], answer["dma_matched"], answer["passed"]) == (True, True, True), probed


def test_mapping_that_the_host_refuses_ends_the_vm_with_the_reason(lab: Lab, probe: str) -> None:
    """The limit is low and cannot be raised, as for an engine in a container: QEMU then gets ENOSPC."""
    bundle = make_shell_bundle(lab, "lost", probe=probe, annotations={})
    configure(lab, SETTINGS)
    assert lab.run(["sh", "-c", f"echo 1000 >{LIMIT} && mount --bind -o ro {LIMIT} {LIMIT}"]).code == 0
    try:
        started = hawse(lab, "--log", "/tmp/lost.log", "run", "--detach", "--bundle", bundle, "lost")
        assert started.code == 0, started
        attached = hawse(lab, "attach", "lost", ANOTHER_EDU)
        assert attached.code == 0, attached
        assert "will lose DMA: dma_entry_limit of the module vfio_iommu_type1 cannot be raised" in attached.errors
        command = f"PROBE_MIB=64 probe /dev/vfio/{group_of(lab, ANOTHER_EDU)}"
        hawse(lab, "exec", "lost", "/bin/sh", "-c", command, timeout=600)
        reason = "the host could not map the guest's memory for a device.*too many mappings"
        assert re.search(reason, read_json(hawse(lab, "state", "lost").output)["failure"])
        log = lab.run(["cat", "/tmp/lost.log"]).output
        assert re.search("level=warning .*QEMU: vfio_.*dma_map.* = -28", log)
        assert re.search(f"level=error .*{reason}", log)
    finally:
        lab.run(["umount", LIMIT])
        lab.run(["sh", "-c", f"echo {DEFAULT} >{LIMIT}"])
        assert hawse(lab, "delete", "--force", "lost").code == 0
        configure(lab)
