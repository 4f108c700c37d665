"""One bundle, two runtimes: the probe reports the same under hawse as under runc on the host."""

from __future__ import annotations

import pytest

from tests.lab.host import Lab
from tests.lab.steps import (
    DIFFERENT,
    EDU,
    SLOW_MACHINE,
    SLOW_SECONDS,
    configure,
    group_of,
    leave_template,
    make_bundle,
    prove_unchanged,
    read_json,
    snapshot,
)
from tests.support.runtime import HAWSE

pytestmark = pytest.mark.lab

CONFIG = "/tmp/parity.toml"


def test_probe_reports_the_same_under_runc_and_under_hawse_without_kvm(lab: Lab, same_kernel: str) -> None:
    """test_shapes.py compares devices of every kind with KVM."""
    bundle = make_bundle(lab, "parity", EDU)
    configure(lab, f'[vm]\naccel = "tcg"\n{SLOW_MACHINE}{same_kernel}', CONFIG)
    leave_template(lab, bundle, CONFIG)
    under_runc = lab.run(["runc", "run", "--bundle", bundle, "parity-runc"])
    assert under_runc.code == 0, under_runc
    before = snapshot(lab)
    under_hawse = lab.run([HAWSE, "--config", CONFIG, "run", "--bundle", bundle, "parity-hawse"], timeout=SLOW_SECONDS)
    assert under_hawse.code == 0, under_hawse
    expected, seen = read_json(under_runc.output), read_json(under_hawse.output)
    assert seen["passed"] is True
    assert seen.keys() == expected.keys()
    assert {key: value for key, value in seen.items() if key not in DIFFERENT} == {
        key: value for key, value in expected.items() if key not in DIFFERENT
    }
    assert expected["group"] == group_of(lab, EDU)
    # The group is closed, the drivers are unchanged, no process runs and nothing is mounted.
    prove_unchanged(lab, before)
    again = lab.run(["runc", "run", "--bundle", bundle, "parity-again"])
    assert read_json(again.output)["passed"] is True
