"""`hawse install` leaves a configuration of hawse's that refuses unsafe starts, and an undo removes it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from hawse.cli.own import install
from hawse.cli.settings import Settings
from hawse.config import DEFAULT_PATH, load_config
from hawse.errors import ImageError
from hawse.install import default_config as settings
from hawse.install.edits import ENGINES
from hawse.log import Log
from hawse.vm.acceleration import Accel
from tests.support.ready import make_program

WORKS, FAILS = Accel("kvm", "a guest ran"), Accel("tcg", "/dev/kvm: No such file or directory")


class Host:
    """A host with two engines below a directory; ``kvm`` is the result of a probe."""

    def __init__(self, directory: Path) -> None:
        self.own = directory / "etc" / "config.toml"
        self.kvm: Accel | ImageError = WORKS
        self.config: str | None = str(self.own)  # --config
        self.engines = {
            name: replace(ENGINES[name], path=str(directory / name), advice="") for name in ("docker", "podman")
        }
        self._program = make_program(f"{directory}/hawse", "exit 0")

    def __call__(self, engine: str, *, undo: bool = False, dry_run: bool = False) -> None:
        """Run the verb."""

        def probe() -> Accel:
            if isinstance(self.kvm, ImageError):
                raise self.kvm
            return self.kvm

        args = SimpleNamespace(engine=engine, undo=undo, dry_run=dry_run, name="hawse", program=self._program, file="")
        settings = Settings(root=None, log=Log(), config_path=self.config, debug=False)
        assert install.run(args, settings, engines=self.engines, probe=probe) == 0  # type: ignore[arg-type]

    def engine(self, name: str) -> Path:
        """The engine's file."""
        return Path(self.engines[name].path)


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path)


@pytest.mark.parametrize("kvm", [False, True])
def test_written_text_is_a_valid_configuration(tmp_path: Path, kvm: bool) -> None:
    path = tmp_path / "config.toml"
    path.write_text(settings.text(kvm=kvm))
    vm = load_config(str(path)).vm
    assert (vm.confine, vm.accel) == ("required", "kvm" if kvm else "auto")
    assert settings.is_unchanged(path.read_text())
    assert settings.notes(path.read_text(), kvm=lambda: True) == []


@pytest.mark.parametrize(
    ("kvm", "accel", "warning"),
    [
        (WORKS, "kvm", ""),
        (
            FAILS,
            "auto",
            "hawse: warning: guests are not isolated on this host: KVM does not work (/dev/kvm: No such file",
        ),
        (
            ImageError("no image", hint="build it"),
            "kvm",
            'hawse: warning: vm.accel = "kvm" in ',
        ),
    ],
)
def test_missing_configuration_is_written(
    host: Host, capsys: pytest.CaptureFixture[str], kvm: Accel | ImageError, accel: str, warning: str
) -> None:
    host.kvm = kvm
    host("docker")
    vm = load_config(str(host.own)).vm
    assert (vm.confine, vm.accel) == ("required", accel)
    output = capsys.readouterr()
    assert output.out.splitlines() == [f"{host.own}: written", f"{host.engine('docker')}: written"]
    assert output.err.startswith(warning)
    assert bool(output.err) == bool(warning)
    host("docker")
    assert capsys.readouterr() == (f"{host.engine('docker')}: nothing to change\n", "")


@pytest.mark.parametrize(
    ("text", "lacking"),
    [
        ("", ["confine", "accel"]),
        ("# mine\n[vm]\ncpus = 1\n", ["confine", "accel"]),
        ('[vm]\nconfine = "off"\n', ["accel"]),
        ('[vm]\naccel = "tcg"\n', ["confine"]),
    ],
)
def test_existing_configuration_is_kept_and_missing_settings_are_reported(
    host: Host, capsys: pytest.CaptureFixture[str], text: str, lacking: list[str]
) -> None:
    host.own.parent.mkdir()
    host.own.write_text(text)
    host("docker")
    assert host.own.read_text() == text
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition(" is not set; set it to ")[0] for line in lines[:-1]] == [
        f"{host.own}: vm.{key}" for key in lacking
    ]


def test_kvm_is_not_advised_if_it_does_not_work(host: Host, capsys: pytest.CaptureFixture[str]) -> None:
    host.own.parent.mkdir()
    host.own.write_text("")
    host.kvm = FAILS
    host("docker")
    first, *others = capsys.readouterr().out.splitlines()
    assert first.startswith(f"{host.own}: vm.confine is not set")
    assert others == [f"{host.engine('docker')}: written"]
    host.own.write_text('[vm]\nconfine = "required"\n')
    host.kvm = ImageError("no image")
    host("docker")
    assert capsys.readouterr().out.startswith(f"{host.own}: vm.accel is not set"), "it may work"


def test_docker_passes_the_named_configuration(host: Host, capsys: pytest.CaptureFixture[str]) -> None:
    host("docker")
    entry = json.loads(host.engine("docker").read_text())["runtimes"]["hawse"]
    assert entry["runtimeArgs"] == ["--config", str(host.own)]
    assert capsys.readouterr().err == ""


def test_engine_without_options_cannot_use_the_named_configuration(
    host: Host, capsys: pytest.CaptureFixture[str]
) -> None:
    host("podman")
    assert capsys.readouterr().err == (
        f"hawse: warning: podman runs hawse without --config: it reads {DEFAULT_PATH}, not {host.own} [move the file "
        "there]\n"
    )
    host("podman", undo=True)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("option", [None, DEFAULT_PATH, "/etc/../etc/hawse/config.toml"])
@pytest.mark.parametrize("engine", ["docker", "podman"])
def test_default_configuration_needs_no_option(
    host: Host, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, engine: str, option: str | None
) -> None:
    monkeypatch.setattr(install, "_configure", lambda *_, **__: None)
    host.config = option
    host(engine)
    assert "--config" not in host.engine(engine).read_text()
    assert capsys.readouterr().err == ""


def test_unreadable_configuration_is_reported(host: Host, capsys: pytest.CaptureFixture[str]) -> None:
    host.own.parent.mkdir()
    host.own.write_text("[vm")
    host("docker")
    assert capsys.readouterr().out.startswith(f"{host.own}: hawse cannot read it, it is not TOML: ")


def test_dry_run_prints_both_files_and_writes_none(host: Host, capsys: pytest.CaptureFixture[str]) -> None:
    host("podman", dry_run=True)
    shown = capsys.readouterr().out
    assert '+accel = "kvm" ' in shown
    assert "+[engine.runtimes]" in shown
    assert not host.own.exists() and not host.engine("podman").exists()


def keep(_host: Host) -> None:
    """Nothing happens in between."""


def edit(host: Host) -> None:
    host.own.write_text(host.own.read_text() + "cpus = 1\n")


def install_other(host: Host) -> None:
    host("podman")


def break_other(host: Host) -> None:
    host.engine("podman").write_text("[")


@pytest.mark.parametrize(
    ("then", "output"),
    [
        (keep, "removed"),
        (edit, "kept, because it was changed after `hawse install` wrote it"),
        (install_other, "kept for podman"),
        (break_other, "kept for podman"),
    ],
)
def test_undo_removes_an_unchanged_configuration_that_no_other_engine_uses(
    host: Host, capsys: pytest.CaptureFixture[str], then: Callable[[Host], None], output: str
) -> None:
    host("docker")
    then(host)
    capsys.readouterr()
    host("docker", undo=True, dry_run=True)
    assert host.own.exists() and host.engine("docker").exists()
    capsys.readouterr()
    host("docker", undo=True)
    assert capsys.readouterr().out.splitlines() == [f"{host.engine('docker')}: removed", f"{host.own}: {output}"]
    assert host.own.exists() is (output != "removed")


def test_undo_keeps_an_administrators_configuration(host: Host, capsys: pytest.CaptureFixture[str]) -> None:
    host.own.parent.mkdir()
    host.own.write_text("[vm]\n")
    host("docker", undo=True)
    assert capsys.readouterr().out == f"{host.engine('docker')}: nothing to change\n"
    assert host.own.exists()
