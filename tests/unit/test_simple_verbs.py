"""Verbs that do not use a monitor: spec, features, image, install, timeline."""

from __future__ import annotations

import json
import os
import stat
from dataclasses import replace
from pathlib import Path

import pytest

from hawse.errors import ImageError
from hawse.oci.load import load_bundle
from hawse.state import timeline
from hawse.state.steps import Step
from hawse.vm.image import build, store
from tests.support.command import Command
from tests.support.ready import make_image, make_program

UNCHANGED = "the packages in apt's lists, the recipe and hawse's sources are those that it was built from"


@pytest.fixture
def hawse(tmp_path: Path) -> Command:
    return Command(str(tmp_path))


class TestSpec:
    """`hawse spec`."""

    def test_written_specification_can_be_loaded(self, hawse: Command, tmp_path: Path) -> None:
        (tmp_path / "rootfs").mkdir()
        assert hawse("spec", "--bundle", str(tmp_path)).code == 0
        assert load_bundle(str(tmp_path)).process.args == ["sh"]

    def test_file_that_exists_stays(self, hawse: Command, tmp_path: Path) -> None:
        (tmp_path / "config.json").write_text("mine")
        done = hawse("spec", "-b", str(tmp_path))
        assert (done.code, done.errors) == (1, f"hawse: File {tmp_path}/config.json exists. Remove it first\n")
        assert (tmp_path / "config.json").read_text() == "mine"

    def test_directory_must_exist(self, hawse: Command) -> None:
        assert "cannot write /none/config.json: No such file" in hawse("spec", "-b", "/none").errors

    def test_rootless_is_refused(self, hawse: Command, tmp_path: Path) -> None:
        assert "hawse runs as root" in hawse("spec", "--rootless", "-b", str(tmp_path)).errors
        assert not (tmp_path / "config.json").exists()


def test_features_are_json(hawse: Command) -> None:
    features = json.loads(hawse("features").output)
    assert features["ociVersionMax"].startswith("1.")
    assert "CAP_SYS_ADMIN" in features["linux"]["capabilities"]


class TestImage:
    """`hawse image verify`."""

    def test_image_is_described(self, hawse: Command, tmp_path: Path) -> None:
        make_image(f"{tmp_path}/cache")
        hawse.configure(f'[image]\ncache = "{tmp_path}/cache"')
        done = hawse("image", "verify")
        assert done.code == 0
        assert done.output == "guest image d1: kernel 6.1.0, 0.0 MiB, modules beside it 0.0 MiB, verified\n"

    def test_verify_reads_files_whose_times_are_the_same(self, hawse: Command, tmp_path: Path) -> None:
        """A start relies on the record of an earlier check, until a verification has found the damage."""
        cache = f"{tmp_path}/cache"
        make_image(cache)
        hawse.configure(f'[image]\ncache = "{cache}"')
        assert hawse("image", "verify").code == 0
        kernel = Path(store.locate(cache=cache).kernel)
        status, content = kernel.stat(), kernel.read_bytes()
        kernel.write_bytes(bytes(byte ^ 1 for byte in content))
        os.utime(kernel, ns=(status.st_atime_ns, status.st_mtime_ns))
        store.locate(cache=cache)
        done = hawse("image", "verify")
        assert done.code == 1
        assert done.errors.startswith(f"hawse: the guest image is damaged: {kernel} was altered [")
        with pytest.raises(ImageError, match="was altered"):
            store.locate(cache=cache)

    @pytest.mark.parametrize(("fresh", "result"), [(True, "built in 1.5 s"), (False, f"up to date: {UNCHANGED}")])
    def test_build_prints_its_result(
        self, hawse: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fresh: bool, result: str
    ) -> None:
        make_image(f"{tmp_path}/cache")
        image = replace(store.locate(cache=f"{tmp_path}/cache"), fresh=fresh)
        monkeypatch.setattr(build, "build", lambda **_: image)
        assert (
            hawse("image", "build").output
            == f"guest image d1: kernel 6.1.0, 0.0 MiB, modules beside it 0.0 MiB, {result}\n"
        )

    def test_size_is_in_mebibytes(self, hawse: Command, tmp_path: Path) -> None:
        make_image(f"{tmp_path}/cache", kernel=bytes(3 * 1024 * 1024))
        hawse.configure(f'[image]\ncache = "{tmp_path}/cache"')
        assert ", 3.0 MiB, " in hawse("image", "verify").output

    def test_image_that_is_missing_is_an_error(self, hawse: Command, tmp_path: Path) -> None:
        hawse.configure(f'[image]\ncache = "{tmp_path}/cache"')
        done = hawse("image", "verify")
        assert (done.code, "build it with `hawse image build`" in done.errors) == (1, True)


class TestInstall:
    """`hawse install`: changes of the engine's file and the output. The host's configuration of hawse is complete."""

    @pytest.fixture
    def program(self, hawse: Command, tmp_path: Path) -> str:
        hawse.configure('[vm]\nconfine = "required"\naccel = "auto"\n')
        return make_program(f"{tmp_path}/program", "exit 0")

    def test_engine_is_changed_and_restored(self, hawse: Command, tmp_path: Path, program: str) -> None:
        path = tmp_path / "etc/daemon.json"
        words = ["install", "docker", "--program", program, "--file", str(path)]
        advice = "reload dockerd: systemctl reload docker"
        dry = hawse(*words, "--dry-run")
        assert f'+            "path": "{program}"' in dry.output
        assert not path.exists()
        assert hawse(*words, "--name", "vm").output.splitlines() == [f"{path}: written", advice]
        entry = {"path": program, "runtimeArgs": ["--config", hawse.config]}
        assert json.loads(path.read_text()) == {"runtimes": {"vm": entry}}
        assert stat.S_IMODE(path.stat().st_mode) == 0o644
        assert hawse(*words, "--name", "vm").output == f"{path}: nothing to change\n"
        assert hawse(*words, "--undo").output == f"{path}: nothing to change\n"
        assert hawse(*words, "--undo", "--name", "vm").output.splitlines() == [f"{path}: removed", advice]
        assert not path.exists()

    def test_podman_needs_no_advice(self, hawse: Command, tmp_path: Path, program: str) -> None:
        path = tmp_path / "hawse.conf"
        done = hawse("install", "podman", "--program", program, "--file", str(path))
        assert (done.code, done.output) == (0, f"{path}: written\n")

    def test_dry_run_ends_its_last_line(self, hawse: Command, tmp_path: Path, program: str) -> None:
        """Also if the file has no newline at its end, so that the diff ends without one."""
        path = tmp_path / "hawse.conf"
        path.write_text('[engine]\nruntime = "crun"')
        done = hawse("install", "podman", "-n", "--program", program, "--file", str(path))
        assert done.output.endswith("\n")
        assert all(line[:1] in "+-@ " for line in done.output.splitlines())
        assert path.read_text() == '[engine]\nruntime = "crun"'

    def test_program_is_the_one_that_is_called(self, hawse: Command, tmp_path: Path, program: str) -> None:
        (tmp_path / "other").mkdir()
        path = tmp_path / "hawse.conf"
        relative = os.path.relpath(program)
        assert hawse("install", "podman", "--program", relative, "--file", str(path)).code == 0
        assert f'"{program}"' in path.read_text()

    @pytest.mark.parametrize(
        ("words", "error"),
        [
            (["--name", ""], "--name '': only letters, digits, - and _ are allowed"),
            (["--name", "a b"], "--name 'a b': only letters"),
            (["--name", "ä"], "--name 'ä': only letters"),
            (["--program", "/none"], "--program /none: it cannot be executed"),
            (["--program", "/etc"], "--program /etc: it cannot be executed"),
            (["--program", "/proc/version"], "--program /proc/version: it cannot be executed"),
        ],
    )
    def test_program_that_cannot_be_executed_is_refused(
        self, hawse: Command, tmp_path: Path, program: str, words: list[str], error: str
    ) -> None:
        path = tmp_path / "hawse.conf"
        done = hawse("install", "podman", "--program", program, "--file", str(path), *words)
        assert done.code == 1
        assert done.errors.startswith(f"hawse: {error}")
        assert not path.exists()

    @pytest.mark.parametrize("name", ["a-b", "a_b", "A1"])
    def test_names(self, hawse: Command, tmp_path: Path, program: str, name: str) -> None:
        path = tmp_path / "hawse.conf"
        words = ["--program", program, "--file", str(path)]
        assert hawse("install", "podman", *words, "--name", name).code == 0

    def test_file_that_cannot_be_used_is_named(self, hawse: Command, tmp_path: Path, program: str) -> None:
        (tmp_path / "bad.json").write_text("{")
        (tmp_path / "latin").write_bytes(b"\xff")
        words = ["install", "docker", "--program", program, "--file"]
        assert hawse(*words, f"{tmp_path}/bad.json").errors.startswith(f"hawse: {tmp_path}/bad.json: not JSON")
        assert f"cannot read {tmp_path}/latin" in hawse(*words, f"{tmp_path}/latin").errors
        assert f"cannot read {tmp_path}" in hawse(*words, str(tmp_path)).errors
        assert "cannot write /proc/none/file" in hawse(*words, "/proc/none/file").errors


class TestTimeline:
    """`hawse timeline`."""

    STEPS: tuple[Step, ...] = (
        ("QEMU", "process started", 100.25, 100.5),
        ("command line", "plan made", 100.0, 100.25),
        ("QEMU", "whole start", 100.0, 101.0),
        ("in the guest: boots", "boots", 100.5, 101.0),
    )

    def test_steps_are_drawn_in_the_order_in_which_they_begin(self, hawse: Command, tmp_path: Path) -> None:
        path = str(tmp_path / "trace.json")
        timeline.write(path, list(self.STEPS), name="c1")
        done = hawse("timeline", path)
        assert done.code == 0
        head, *lines = (line.rstrip() for line in done.output.splitlines())
        assert head.split() == ["step", "from", "ms", "takes"]
        assert [(line[: line.index("  ")], *line.split()[-3:-1]) for line in lines] == [
            ("QEMU: whole start", "0", "1000"),
            ("command line: plan made", "0", "250"),
            ("QEMU: process started", "250", "250"),
            ("in the guest: boots", "500", "500"),
        ]
        longest, first, second, last = (line.split()[-1] for line in lines)
        assert len(longest) > len(last) > len(first) == len(second) > 1
        assert 0 <= lines[2].index("█") - lines[1].rindex("█") <= 1, "one begins where the other ends"
        assert lines[0].rindex("█") == lines[3].rindex("█")

    @pytest.mark.parametrize(("columns", "longest"), [("100", range(95, 101)), ("30", range(60, 70))])
    def test_drawing_is_as_wide_as_the_terminal(
        self, hawse: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, columns: str, longest: range
    ) -> None:
        """In a narrow terminal a minimum width remains for the bars."""
        monkeypatch.setenv("COLUMNS", columns)
        path = str(tmp_path / "trace.json")
        timeline.write(path, list(self.STEPS), name="c1")
        lines = [line.rstrip() for line in hawse("timeline", path).output.splitlines()]
        assert max(map(len, lines)) in longest
        assert max(line.count("█") for line in lines) >= 20
