"""The demo is the main job: Debian's dpdk-testpmd, as uid 1000 without a capability, forwards packets through VFIO."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest

from tests.support.host import prove_unchanged, snapshot
from tests.support.runtime import HAWSE

pytestmark = pytest.mark.vm

TOP = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))


def test_packets_arrive() -> None:
    before = snapshot()
    done = subprocess.run(
        [sys.executable, "demo/run", HAWSE, sys.executable], cwd=TOP, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    match = re.search(r"== (\d+) packets arrived", done.stdout)
    assert match
    assert int(match[1]) > 0
    assert "as 1000:1000" in done.stdout
    assert re.search(r"CapEff:\s+0{16}\n", done.stdout)
    prove_unchanged(before)
