"""The configuration file: defaults, ranges at their ends, choices, and sentences that name file and key."""

from __future__ import annotations

from pathlib import Path

import pytest

from hawse.config import Config, load_config
from hawse.errors import ConfigError


def load(directory: Path, text: str) -> Config:
    path = directory / "config.toml"
    path.write_text(text)
    return load_config(str(path))


def test_empty_file_is_the_defaults(tmp_path: Path) -> None:
    assert load(tmp_path, "") == Config()


def test_default_file_may_be_missing_and_a_named_one_may_not() -> None:
    assert isinstance(load_config(None), Config)
    with pytest.raises(ConfigError, match=r"^configuration /none/config.toml: no such file$"):
        load_config("/none/config.toml")


@pytest.mark.parametrize(
    ("section", "key", "good", "bad"),
    [
        ("vm", "memory_mib", [128, 4194304], [127, 4194305]),
        ("vm", "cpus", [1, 255], [0, 256]),
        ("vm", "boot_seconds", [0, 0.5, 3600], [-1, 3600.1]),
        ("vm", "device_seconds", [0, 3600], [-0.1, 3601]),
        ("devices", "pod_window_mib", [2, 4, 256, 16384], [0, 1, 3, 257, 32768]),
        ("vm", "share", ['"auto"', '"virtiofs"', '"9p"'], ['""', '"nfs"']),
        ("vm", "accel", ['"auto"', '"kvm"', '"tcg"'], ['"hvf"']),
        ("vm", "hugepages", ['""', '"2MB"', '"1GB"'], ['"4KB"']),
        ("devices", "plug", ['"hot"', '"cold"'], ['"warm"']),
        ("devices", "mode", ['"vfio"', '"guest-kernel"'], ['"host"']),
        ("devices", "backend", ['"auto"', '"group"', '"iommufd"'], ['"container"']),
    ],
)
def test_values(tmp_path: Path, section: str, key: str, good: list[object], bad: list[object]) -> None:
    for value in good:
        found = load(tmp_path, f"[{section}]\n{key} = {value}")
        assert getattr(getattr(found, section), key) == (value.strip('"') if isinstance(value, str) else value)
    for value in bad:
        with pytest.raises(ConfigError, match=rf"^configuration {tmp_path}/config\.toml: {section}\.{key} "):
            load(tmp_path, f"[{section}]\n{key} = {value}")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[vm", "Expected ']'"),
        ("[vm]\nmemory = 1", "unknown field `memory`"),
        ("[other]", "unknown field `other`"),
        ('[vm]\ncpus = "two"', "Expected `int`"),
    ],
)
def test_unusable_file_is_named(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, text)
    assert caught.value.message.startswith(f"configuration {tmp_path}/config.toml: ")
    assert words in caught.value.message


def test_file_that_is_no_text_or_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    for path in (tmp_path / "binary", tmp_path):
        with pytest.raises(ConfigError, match=f"^configuration {path}: "):
            load_config(str(path))
