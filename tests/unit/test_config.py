"""The configuration file: defaults, limits of ranges, choices, and errors that name file and key."""

from __future__ import annotations

from pathlib import Path

import pytest

from hawse.config import Config, load_config
from hawse.errors import ConfigError
from tests.support.command import Command


def load(directory: Path, text: str) -> Config:
    path = directory / "config.toml"
    path.write_text(text)
    return load_config(str(path))


def test_empty_file_is_the_defaults(tmp_path: Path) -> None:
    assert load(tmp_path, "") == Config()


def test_default_file_may_be_missing_but_not_a_named_one() -> None:
    assert isinstance(load_config(None), Config)
    with pytest.raises(ConfigError, match=r"^configuration /none/config.toml: no such file$"):
        load_config("/none/config.toml")


@pytest.mark.parametrize(
    ("section", "key", "good", "bad"),
    [
        ("vm", "memory_mib", [128, 4194304], [127, 4194305]),
        ("vm", "cpus", [0, 1, 255], [-1, 256]),
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
        config = load(tmp_path, f"[{section}]\n{key} = {value}")
        assert getattr(getattr(config, section), key) == (value.strip('"') if isinstance(value, str) else value)
    for value in bad:
        with pytest.raises(ConfigError, match=rf"^configuration {tmp_path}/config\.toml: {section}\.{key} "):
            load(tmp_path, f"[{section}]\n{key} = {value}")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[vm", "Expected ']'"),
        ("[vm]\nmemory = 1", "vm.memory is unknown"),
        ("[other]", "other is unknown"),
        ('[vm]\ncpus = "two"', "vm.cpus must be a whole number, not a text"),
        ("[vm]\ncpus = 1.5", "vm.cpus must be a whole number, not a number with a fraction"),
        ("[vm]\ncpus = 2026-01-01", "vm.cpus must be a whole number, not a date"),
        ("[vm]\nconfine = 1", "vm.confine must be a text, not a number"),
        ("[vm]\nconfine = true", "vm.confine must be a text, not true or false"),
        ("[vm.confine]", "vm.confine must be a text, not a table"),
        ('[vm]\nboot_seconds = "x"', "vm.boot_seconds must be a number, not a text"),
        ("[template]\nenabled = 1", "template.enabled must be true or false, not a number"),
        ('[devices]\nallow = "x"', "devices.allow must be a list, not a text"),
        ('[devices]\nallow = ["*", 1]', "devices.allow: entry 2 must be a text, not a number"),
        ('[emulated]\n5 = ["edu"]\n6 = "edu"', "emulated.6 must be a list, not a text"),
        ("[emulated]\n5 = [1]", "emulated.5: entry 1 must be a text, not a number"),
        ("emulated = []", "emulated must be a table, not a list"),
        ("vm = 1", "vm must be a table, not a number"),
        ('[vm]\nload_modules = "nf_conntrack"', "vm.load_modules must be a list, not a text"),
        ('[share]\nforward_sockets = "/run/a"', "share.forward_sockets must be a list, not a text"),
        ('[share]\nforward_sockets = ["/run/*", "a"]', "share.forward_sockets: 'a' is not an absolute path"),
        ('[vm]\nload_modules = ["a", "../b"]', "vm.load_modules: '../b' is not a name of a kernel module"),
        (
            '[image]\nextra_modules = ["net/sctp/*"]',
            "image.extra_modules: 'net/sctp/*' is not a name of a kernel module",
        ),
        ('[image]\nextra_modules = [""]', "image.extra_modules: '' is not a name of a kernel module"),
        ('[vm]\naccel = "hvf"', "vm.accel is 'hvf', not one of: auto, kvm, tcg"),
        ('[vm]\nhugepages = "4KB"', "vm.hugepages is '4KB', not one of: \"\", 2MB, 1GB"),
    ],
)
def test_unusable_file_is_named(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, text)
    assert caught.value.message.startswith(f"configuration {tmp_path}/config.toml: ")
    assert words in caught.value.message


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("[vm]\nconfined = 1", "known: qemu, virtiofsd, share, accel, memory_mib, cpus, "),
        ("[template]\nage = 1", "known: enabled, max_age_hours"),
        ("[other]", "known: vm, image, template, timeline, devices, share, emulated"),
    ],
)
def test_known_keys_are_listed(tmp_path: Path, text: str, hint: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, text)
    assert caught.value.hint.startswith(hint)


def test_invalid_emulated_group_is_named_with_the_file(tmp_path: Path) -> None:
    hawse = Command(str(tmp_path))
    hawse.configure('[emulated]\n6 = ["rtl8139"]\n')
    done = hawse("devices")
    assert done.code == 1
    assert done.errors.startswith(f"hawse: configuration {hawse.config}: emulated.6: unknown model 'rtl8139' [known: ")


def test_file_that_is_not_text_or_unreadable_is_named(tmp_path: Path) -> None:
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    for path in (tmp_path / "binary", tmp_path):
        with pytest.raises(ConfigError, match=f"^configuration {path}: "):
            load_config(str(path))
