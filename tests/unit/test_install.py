"""Changes of an engine's configuration by `hawse install`; the undo keeps what others have written."""

from __future__ import annotations

import json
import os
import tomllib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hawse.errors import ConfigError
from hawse.install.config_files import read, write
from hawse.install.edits import ENGINES, Registration, add_containerd, add_docker, remove_docker

WANTED = Registration("hawse", "/opt/hawse/bin/hawse")
CONTAINERD = """# The machine's own.
version = 2
oom_score = -999 # keep

[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "example/pause"
  [plugins."io.containerd.grpc.v1.cri".containerd]
    default_runtime_name = "runc"
"""
DEFAULT_OF_2_3 = """version = 4
root = '/var/lib/containerd'
imports = ['/etc/containerd/conf.d/*.toml']

[plugins]
  [plugins.'io.containerd.cri.v1.images']
    snapshotter = 'overlayfs'

  [plugins.'io.containerd.cri.v1.runtime']
    enable_selinux = false

    [plugins.'io.containerd.cri.v1.runtime'.containerd]
      default_runtime_name = 'runc'

      [plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes]
        [plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc]
          runtime_type = 'io.containerd.runc.v2'

          [plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc.options]
            BinaryName = ''

  [plugins.'io.containerd.server.v1.grpc']
    address = '/run/containerd/containerd.sock'
"""
OTHERS = {
    "podman": ["", '# mine\n[engine]\nruntime = "crun"\n', '[engine.runtimes]\nother = ["/bin/other"]\n'],
    "docker": ["", '{\n    "debug": true\n}\n', '{\n    "runtimes": {\n        "other": {\n            "path": "x"\n'
               "        }\n    }\n}\n"],
    "containerd": ["", CONTAINERD, 'version = 3\n[plugins."io.containerd.cri.v1.images"]\nsnapshotter = "native"\n'],
    "crio": ["", '[crio.runtime.runtimes.runc]\nruntime_path = "/usr/sbin/runc"\n'],
}  # fmt: skip


@pytest.mark.parametrize(("name", "before"), [(name, text) for name, texts in OTHERS.items() for text in texts])
def test_install_is_idempotent_and_undo_keeps_the_rest_of_the_file(name: str, before: str) -> None:
    engine = ENGINES[name]
    after = engine.add(before, WANTED)
    assert WANTED.program in after
    assert engine.add(after, WANTED) == after
    assert engine.add(after, Registration("hawse", "/elsewhere")).count("/elsewhere") == 1
    left = engine.remove(after, WANTED)
    assert engine.remove(left, WANTED) == left
    if name == "crio" and before:
        assert WANTED.program not in left
    else:
        assert left == before


def test_docker_entry_gets_the_configuration_and_keeps_its_other_options() -> None:
    options = replace(WANTED, config="/srv/hawse.toml")
    first = add_docker("", WANTED)
    second = add_docker(first, options)
    assert json.loads(second)["runtimes"]["hawse"]["runtimeArgs"] == ["--config", "/srv/hawse.toml"]
    assert add_docker(second, options) == second
    assert add_docker(second, WANTED) == second, "an administrator may have written the options"
    assert remove_docker(second, WANTED) == ""


def test_comments_and_order_of_containerds_file_are_kept() -> None:
    after = add_containerd(CONTAINERD, WANTED)
    assert after.startswith(CONTAINERD.rstrip())
    cri = tomllib.loads(after)["plugins"]["io.containerd.grpc.v1.cri"]
    assert cri["sandbox_image"] == "example/pause"
    assert cri["containerd"]["runtimes"]["hawse"]["options"] == {"BinaryName": WANTED.program}


@pytest.mark.parametrize(
    ("version", "plugin"),
    [(2, "io.containerd.grpc.v1.cri"), (3, "io.containerd.cri.v1.runtime"), (4, "io.containerd.cri.v1.runtime")],
)
def test_containerd_handler_is_in_the_table_of_the_files_version(version: int, plugin: str) -> None:
    """containerd 1.x has version 2, 2.0 has 3, 2.3 has 4. The version and others' settings stay."""
    before = f'version = {version}\n\n[plugins."{plugin}".containerd.runtimes.runc]\nruntime_type = "x"\n'
    after = add_containerd(before, WANTED)
    table = tomllib.loads(after)
    assert table["version"] == version
    assert list(table["plugins"]) == [plugin]
    runtimes = table["plugins"][plugin]["containerd"]["runtimes"]
    assert runtimes["runc"] == {"runtime_type": "x"}
    assert runtimes["hawse"] == {
        "runtime_type": "io.containerd.runc.v2", "privileged_without_host_devices": True,
        "pod_annotations": ["hawse.*"], "container_annotations": ["hawse.*"],
        "options": {"BinaryName": WANTED.program},
    }  # fmt: skip
    assert ENGINES["containerd"].remove(after, WANTED) == before


def test_default_configuration_of_containerd_2_3_is_accepted() -> None:
    """As of containerd 2.3: the server's settings are those of plugins, and a directory of files is imported."""
    after = add_containerd(DEFAULT_OF_2_3, WANTED)
    parsed = tomllib.loads(after)
    table = parsed["plugins"]["io.containerd.cri.v1.runtime"]["containerd"]
    assert (table["default_runtime_name"], set(table["runtimes"])) == ("runc", {"runc", "hawse"})
    assert parsed["plugins"]["io.containerd.server.v1.grpc"] == {"address": "/run/containerd/containerd.sock"}
    assert ENGINES["containerd"].remove(after, WANTED) == DEFAULT_OF_2_3


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("docker", "{", "not JSON"),
        ("docker", "[]", "the content is not a JSON object"),
        ("docker", '{"runtimes": []}', '"runtimes" is not an object'),
        ("podman", "[engine", "not TOML"),
        ("podman", "engine = 1", "engine is not a table"),
        ("containerd", "oom_score = 1", "its version is 1, or missing"),
        ("containerd", "version = 1", "its version is 1, or missing"),
        ("containerd", "version = 9", "version 9 of the configuration is unknown: this hawse supports 2, 3, 4"),
        ("containerd", 'version = "2"', "version is not a positive number"),
        ("containerd", "version = [2]", "version is not a positive number"),
        ("containerd", "version = true", "version is not a positive number"),
        ("containerd", "version = 0", "version is not a positive number"),
    ],
)
def test_file_that_the_engine_cannot_read_is_refused(name: str, text: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        ENGINES[name].add(text, WANTED)


values = st.recursive(st.none() | st.booleans() | st.integers() | st.text(), lambda inner: st.lists(inner, max_size=3))


@given(st.dictionaries(st.text().filter(lambda key: key != "runtimes"), values, max_size=4))
def test_undo_restores_any_daemon_json(document: dict[str, Any]) -> None:
    text = json.dumps(document)
    assert json.loads(remove_docker(add_docker(text, WANTED), WANTED) or "{}") == document


def test_file_is_replaced_atomically_and_keeps_its_mode_and_link(tmp_path: Path) -> None:
    target = tmp_path / "real"
    target.write_text("before")
    target.chmod(0o600)
    link = tmp_path / "link"
    link.symlink_to(target)
    write(str(link), "after")
    assert (read(str(link)), link.is_symlink(), os.stat(target).st_mode & 0o777) == ("after", True, 0o600)
    write(str(tmp_path / "made" / "new"), "x")
    write(str(tmp_path / "made" / "new"), "")
    assert (read(str(tmp_path / "made" / "new")), os.listdir(tmp_path / "made")) == ("", [])
