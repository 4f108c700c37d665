"""What `hawse install` makes of an engine's configuration, and that its undoing leaves what others wrote."""

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
from hawse.install.edits import ENGINES, Wanted, add_containerd, add_docker, remove_docker
from hawse.install.files import read, write

WANTED = Wanted("hawse", "/opt/hawse/bin/hawse")
CONTAINERD = """# The machine's own.
version = 2
oom_score = -999 # keep

[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "example/pause"
  [plugins."io.containerd.grpc.v1.cri".containerd]
    default_runtime_name = "runc"
"""
OTHERS = {
    "podman": ["", '# mine\n[engine]\nruntime = "crun"\n', '[engine.runtimes]\nother = ["/bin/other"]\n'],
    "docker": ["", '{\n    "debug": true\n}\n', '{\n    "runtimes": {\n        "other": {\n            "path": "x"\n'
               "        }\n    }\n}\n"],
    "containerd": ["", CONTAINERD, 'version = 3\n[plugins."io.containerd.cri.v1.images"]\nsnapshotter = "native"\n'],
    "crio": ["", '[crio.runtime.runtimes.runc]\nruntime_path = "/usr/sbin/runc"\n'],
}  # fmt: skip


@pytest.mark.parametrize(("name", "before"), [(name, text) for name, texts in OTHERS.items() for text in texts])
def test_an_engine_is_told_once_and_the_undoing_leaves_what_others_wrote(name: str, before: str) -> None:
    engine = ENGINES[name]
    after = engine.add(before, WANTED)
    assert WANTED.program in after
    assert engine.add(after, WANTED) == after
    assert engine.add(after, Wanted("hawse", "/elsewhere")).count("/elsewhere") == 1
    left = engine.remove(after, WANTED)
    assert engine.remove(left, WANTED) == left
    if name == "crio" and before:
        assert WANTED.program not in left
    else:
        assert left == before


def test_docker_passes_the_configuration_and_other_options_of_an_entry_stay() -> None:
    given = replace(WANTED, config="/srv/hawse.toml")
    first = add_docker("", WANTED)
    second = add_docker(first, given)
    assert json.loads(second)["runtimes"]["hawse"]["runtimeArgs"] == ["--config", "/srv/hawse.toml"]
    assert add_docker(second, given) == second
    assert add_docker(second, WANTED) == second, "an administrator may have written the options"
    assert remove_docker(second, WANTED) == ""


def test_comments_and_order_of_containerds_file_stay() -> None:
    after = add_containerd(CONTAINERD, WANTED)
    assert after.startswith(CONTAINERD.rstrip())
    cri = tomllib.loads(after)["plugins"]["io.containerd.grpc.v1.cri"]
    assert cri["sandbox_image"] == "example/pause"
    assert cri["containerd"]["runtimes"]["hawse"]["options"] == {"BinaryName": WANTED.program}


def test_a_configuration_of_version_3_has_another_table() -> None:
    made = tomllib.loads(add_containerd("version = 3\n", WANTED))
    assert "hawse" in made["plugins"]["io.containerd.cri.v1.runtime"]["containerd"]["runtimes"]


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("docker", "{", "not JSON"),
        ("docker", "[]", "daemon.json is no object"),
        ("docker", '{"runtimes": []}', '"runtimes" is no object'),
        ("podman", "[engine", "not TOML"),
        ("podman", "engine = 1", "engine is no table"),
        ("containerd", "oom_score = 1", "version 1 is not known"),
        ("containerd", "version = 9", "version 9 is not known"),
    ],
)
def test_what_the_engine_could_not_read_is_refused(name: str, text: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        ENGINES[name].add(text, WANTED)


values = st.recursive(st.none() | st.booleans() | st.integers() | st.text(), lambda inner: st.lists(inner, max_size=3))


@given(st.dictionaries(st.text().filter(lambda key: key != "runtimes"), values, max_size=4))
def test_any_daemon_json_is_as_it_was_after_the_undoing(document: dict[str, Any]) -> None:
    text = json.dumps(document)
    assert json.loads(remove_docker(add_docker(text, WANTED), WANTED) or "{}") == document


def test_a_file_is_written_whole_with_its_mode_and_by_way_of_its_link(tmp_path: Path) -> None:
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
