"""Forms of a specification that runc accepts: nulls, relative paths, device rules without ``allow``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from hawse.errors import ConfigError
from hawse.oci.default_spec import example
from hawse.oci.lenient import completed
from hawse.oci.load import load_bundle
from hawse.oci.types import Spec

NULLS = [
    "hostname", "domainname", "mounts", "hooks", "annotations", "process.env", "process.rlimits", "process.user",
    "process.capabilities", "process.terminal", "process.user.additionalGids", "process.apparmorProfile",
    "process.oomScoreAdj", "root.readonly", "linux.devices", "linux.sysctl", "linux.seccomp", "linux.resources",
    "linux.resources.devices", "linux.resources.memory", "linux.resources.cpu", "linux.resources.unified",
    "linux.resources.hugepageLimits", "linux.cgroupsPath", "linux.uidMappings", "linux.maskedPaths",
    "linux.readonlyPaths", "linux.rootfsPropagation",
]  # fmt: skip


def load(directory: Path, spec: dict[str, Any]) -> Any:
    (directory / "rootfs").mkdir(exist_ok=True)
    (directory / "config.json").write_text(json.dumps(spec))
    return load_bundle(str(directory))


@pytest.mark.parametrize("path", NULLS)
def test_null_equals_a_missing_field(tmp_path: Path, path: str) -> None:
    spec: dict[str, Any] = example()
    *parents, last = path.split(".")
    holder = spec
    for key in parents:
        holder = holder.setdefault(key, {})
    holder[last] = None
    with_null = load(tmp_path, spec)
    del holder[last]
    without = load(tmp_path, spec)
    assert (with_null.spec, with_null.raw, with_null.warnings) == (without.spec, without.raw, ())


@pytest.mark.parametrize("key", ["oci_version", "process", "root", "process.args", "process.cwd", "root.path"])
def test_null_for_a_required_field_is_refused(tmp_path: Path, key: str) -> None:
    spec: dict[str, Any] = example()
    *parents, last = key.replace("oci_version", "ociVersion").split(".")
    holder = spec
    for parent in parents:
        holder = holder[parent]
    holder[last] = None
    with pytest.raises(ConfigError, match=last):
        load(tmp_path, spec)


def test_null_in_a_map_of_strings_is_the_empty_string() -> None:
    document: dict[str, Any] = {
        "annotations": {"a": None, "b": "c"},
        "linux": {"sysctl": {"net.x": None}, "resources": {"unified": {"pids.max": None}}},
    }
    assert completed(document, Spec)[0] == {
        "annotations": {"a": "", "b": "c"},
        "linux": {"sysctl": {"net.x": ""}, "resources": {"unified": {"pids.max": ""}}},
    }


def test_null_in_a_map_of_objects_is_the_empty_object() -> None:
    """An interface of linux.netDevices is named by its key."""
    document: dict[str, Any] = {
        "linux": {"netDevices": {"eth1": None}, "timeOffsets": {"a": None}, "resources": {"rdma": {"mlx5_0": None}}}
    }
    assert completed(document, Spec)[0] == {
        "linux": {"netDevices": {"eth1": {}}, "timeOffsets": {"a": {}}, "resources": {"rdma": {"mlx5_0": {}}}}
    }


@pytest.mark.parametrize("document", [{"linux": None}, {"linux": 1}, {"linux": {"resources": []}}, {"mounts": [1]}])
def test_other_errors_are_left_to_the_check_of_types(document: dict[str, Any]) -> None:
    completed(document, Spec)


def test_relative_paths_are_below_the_root_with_a_warning(tmp_path: Path) -> None:
    spec: dict[str, Any] = example()
    spec["mounts"].append({"destination": "run/secrets", "type": "tmpfs", "source": "tmpfs"})
    spec["linux"]["devices"] = [{"path": "dev/null2", "type": "c", "major": 1, "minor": 3}]
    bundle = load(tmp_path, spec)
    assert bundle.spec.mounts[-1].destination == bundle.raw["mounts"][-1]["destination"] == "/run/secrets"
    assert bundle.spec.linux.devices[0].path == bundle.raw["linux"]["devices"][0]["path"] == "/dev/null2"
    number = len(spec["mounts"]) - 1
    assert bundle.warnings == (
        f"mounts[{number}].destination: 'run/secrets' is not absolute: it is read as a path below /",
        "linux.devices[0].path: 'dev/null2' is not absolute: it is read as a path below /",
    )


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"mounts": [{"destination": "", "type": "tmpfs"}]}, r"mounts\[0\]\.destination: empty"),
        ({"linux": {"devices": [{"path": "", "type": "c"}]}}, r"linux\.devices\[0\]\.path: empty"),
    ],
)
def test_empty_path_is_refused(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        load(tmp_path, example() | changes)


def test_rule_without_allow_denies(tmp_path: Path) -> None:
    spec: dict[str, Any] = example()
    spec["linux"]["resources"]["devices"] = [{"access": "rwm"}, {"allow": None, "type": "c"}, {"allow": True}]
    bundle = load(tmp_path, spec)
    assert [rule.allow for rule in bundle.spec.linux.resources.devices] == [False, False, True]
    assert [rule["allow"] for rule in bundle.raw["linux"]["resources"]["devices"]] == [False, False, True]
