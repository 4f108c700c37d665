"""The output of `features`, `spec` and `list`, for engines and people."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from hawse.cli.runc.features import FEATURES
from hawse.oci.hooks import KINDS
from hawse.oci.load import load_bundle
from hawse.planner.devices.device_options import KNOWN
from hawse.state.store import Store

HAWSE = os.path.join(os.path.dirname(sys.executable), "hawse")


def hawse(*arguments: str, directory: Path) -> tuple[int, str, str]:
    done = subprocess.run([HAWSE, *arguments], capture_output=True, text=True, cwd=directory, check=False)
    return done.returncode, done.stdout, done.stderr


def test_features_are_pure_json(tmp_path: Path) -> None:
    """CRI-O reads stdout and stderr together (pkg/config/config.go)."""
    code, output, errors = hawse("features", directory=tmp_path)
    assert (code, json.loads(output), errors) == (0, FEATURES, "")


def test_features_are_those_of_the_code() -> None:
    assert FEATURES["hooks"] == list(KINDS)
    [prefix] = FEATURES["potentiallyUnsafeConfigAnnotations"]
    assert all(name.startswith(prefix) for name in KNOWN)


def test_new_specification_can_be_loaded_and_is_never_overwritten(tmp_path: Path) -> None:
    assert hawse("spec", directory=tmp_path) == (0, "", "")
    (tmp_path / "rootfs").mkdir()
    assert load_bundle(str(tmp_path)).process.args == ["sh"]
    code, _, errors = hawse("spec", "--bundle", str(tmp_path), directory=tmp_path)
    assert (code, errors) == (1, f"hawse: File {tmp_path}/config.json exists. Remove it first\n")
    code, _, errors = hawse("spec", "--rootless", directory=tmp_path)
    assert (code, errors) == (1, "hawse: spec --rootless: hawse runs as root [leave --rootless out]\n")


def test_lists_in_runcs_forms(tmp_path: Path) -> None:
    root = ["--root", str(tmp_path / "root")]
    assert hawse(*root, "list", directory=tmp_path)[1].split() == ["ID", "PID", "STATUS", "BUNDLE", "CREATED", "OWNER"]
    assert hawse(*root, "list", "--format=json", directory=tmp_path)[1] == "null\n", "as runc prints an empty list"
    store = Store(str(tmp_path / "root"), "c1")
    store.make()
    state = {"ociVersion": "1.0.2", "id": "c1", "pid": 7, "status": "running", "bundle": "/b", "rootfs": "/b/rootfs"}
    store.write(state | {"created": "2024-01-01T00:00:00Z", "owner": "root", "hooks": {}, "pidStart": 1})
    (tmp_path / "root" / "unrelated").write_text("")
    assert hawse(*root, "list", "-q", directory=tmp_path)[1] == "c1\n"
    [entry] = json.loads(hawse(*root, "list", "-f", "json", directory=tmp_path)[1])
    assert entry == state | {"pid": 0, "status": "stopped", "created": "2024-01-01T00:00:00Z", "owner": "root"}
    assert hawse(*root, "list", directory=tmp_path)[1].splitlines()[1].split() == [
        "c1", "0", "stopped", "/b", "2024-01-01T00:00:00Z", "root",
    ]  # fmt: skip
    assert hawse(*root, "list", "-f", "yaml", directory=tmp_path)[0] == 1
