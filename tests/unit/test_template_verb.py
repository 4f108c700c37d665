"""`hawse template`: lists, builds and removes templates, and refuses invalid arguments."""

from __future__ import annotations

import argparse
import json
import os
import re
from pathlib import Path

import pytest

from hawse.cli.own import template as verb
from hawse.cli.settings import Settings
from hawse.errors import ConfigError, ImageError, UsageError
from hawse.log import Log
from hawse.vm import ram_file, templates
from hawse.vm.arguments import VmShape

FIRST, SECOND = "aa" * 32, "ab" * 32
SHAPE = VmShape(
    qemu="/usr/bin/qemu", accel="tcg", memory_mib=512, cpus=2, kernel="/k", initrd="/i", kernel_append="", bridges=[],
    share="virtiofs",
)  # fmt: skip


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """Settings whose cache contains two templates, the second of them damaged."""
    for digest in (FIRST, SECOND):
        draft = templates.begin(str(tmp_path), digest, SHAPE)
        assert draft is not None
        ram = ram_file.make(4 * ram_file.MIB)
        os.pwrite(ram, b"x" * 3 * ram_file.MIB, 0)
        draft.fill(ram, b"state")
        os.close(ram)
        draft.commit()
        draft.close()
    os.truncate(tmp_path / "templates" / SECOND / "state", 1)
    return settings_of(tmp_path)


def settings_of(cache: Path) -> Settings:
    (cache / "config.toml").write_text(f'[image]\ncache = "{cache}"\n')
    return Settings(root="/run/none", log=Log(), config_path=f"{cache}/config.toml", debug=False)


def run(settings: Settings, *words: str) -> int:
    parser = argparse.ArgumentParser()
    verb.configure(parser)
    return verb.run(parser.parse_args(words), settings)


def left(settings: Settings) -> list[str]:
    return [name for name, _ in templates.list_all(settings.config.image.cache)]


def test_table_has_a_line_for_each_template(settings: Settings, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(settings, "list") == 0
    header, usable, damaged = capsys.readouterr().out.splitlines()
    assert header.split() == ["DIGEST", "MIB", "CREATED", "MACHINE"]
    line = r"a{12} +3  \d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ +tcg, 2 CPUs, 512 MiB, virtiofs, /usr/bin/qemu"
    assert re.fullmatch(line, usable)
    assert re.fullmatch(r"(ab){6} +unusable: the template (ab){6} is damaged: .*/state has 1 bytes, not 5", damaged)


def test_json_has_the_data_of_the_table(settings: Settings, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(settings, "list", "--format", "json") == 0
    usable, damaged = json.loads(capsys.readouterr().out)
    assert (usable["digest"], usable["used_bytes"], usable["shape"]["cpus"]) == (FIRST, 3 * ram_file.MIB, 2)
    assert (damaged["digest"], set(damaged)) == (SECOND, {"digest", "problem"})


@pytest.mark.parametrize(
    ("words", "stays"),
    [(["aa"], [SECOND]), ([FIRST], [SECOND]), (["ab"], [FIRST]), (["aa", "ab"], []), (["--all"], [])],
)
def test_templates_are_removed_by_the_first_characters_of_their_digests(
    settings: Settings, capsys: pytest.CaptureFixture[str], words: list[str], stays: list[str]
) -> None:
    assert run(settings, "remove", *words) == 0
    assert left(settings) == stays
    lines = capsys.readouterr().out.splitlines()
    assert lines == [f"removed the template {name[:12]}" for name in (FIRST, SECOND) if name not in stays]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["remove", "a"], "more than one template begins with 'a'"),
        (["remove", "aa", "b"], "no template begins with 'b'"),
        (["remove"], "template remove takes digests or --all"),
        (["remove", "aa", "--all"], "template remove takes digests or --all"),
        (["remove", "aa", "--bundle", "/b"], "template remove takes no bundle"),
        (["list", "aa"], "template list takes no digest"),
        (["list", "--all"], "template list takes no digest"),
        (["list", "--bundle", ""], "template list takes no bundle"),
        (["build", "aa"], "template build takes no digest"),
        (["build", "--all"], "template build takes no digest"),
    ],
)
def test_invalid_arguments_are_refused_and_nothing_is_removed(
    settings: Settings, words: list[str], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        run(settings, *words)
    assert left(settings) == [FIRST, SECOND]


def test_cache_without_templates_has_an_empty_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(settings_of(tmp_path), "list") == 0
    assert len(capsys.readouterr().out.splitlines()) == 1


@pytest.mark.parametrize(("fresh", "how"), [(True, "built in 2.5 s"), (False, "exists already")])
def test_result_of_a_build_is_printed(settings: Settings, fresh: bool, how: str) -> None:
    template = templates.find(settings.config.image.cache, FIRST)
    assert template is not None
    assert verb.described(template, fresh, 2.46) == f"template {FIRST[:12]}: 3 MiB, {how}"


def test_build_is_for_the_vm_of_the_bundle_or_for_one_without_devices(settings: Settings) -> None:
    with pytest.raises(ConfigError, match="/no/bundle"):
        run(settings, "build", "--bundle", "/no/bundle")
    with pytest.raises(ImageError):  # the cache has none
        run(settings, "build")
