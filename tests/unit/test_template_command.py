"""`hawse template`: saved VMs are listed, built and removed."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from hawse.commands.build_template import build
from hawse.config import load_config
from hawse.errors import ConfigError
from hawse.plan.model import MachinePlan
from hawse.planner.vm import plan_machine
from hawse.vm import templates
from hawse.vm.ram_file import MIB
from tests.support.command import Command
from tests.support.ready import EMULATED, Planner, Sandboxes, keep_template


@pytest.fixture
def host(tmp_path: Path) -> Planner:
    return Planner(str(tmp_path))


@pytest.fixture
def hawse(host: Planner) -> Command:
    command = Command(host.directory)
    command.configure(host.config(vm='share = "9p"'))
    return command


def keep(host: Planner, digest: str, *, used: int = 0) -> str:
    """A template of the bundle's VM under a digest, with this many MiB of memory in use; returns its directory."""
    return keep_template(host.cache, digest, host.sandbox(host.config(vm='share = "9p"')).machine, used_mib=used)


def digest_of(machine: MachinePlan) -> str:
    assert machine.template is not None
    return machine.template.digest


def test_table_has_a_line_for_every_template(host: Planner, hawse: Command) -> None:
    assert hawse("template", "list").output == f"{'DIGEST':14}{'MIB':>6}  {'CREATED':21}MACHINE\n"
    keep(host, "a" * 64, used=2)
    manifest = Path(keep(host, "b" * 64)) / "manifest.json"
    manifest.write_text("{")
    created = json.loads((Path(host.cache) / "templates" / ("a" * 64) / "manifest.json").read_text())["created"]
    _, first, second = hawse("template", "list").output.splitlines()
    assert first.split()[:2] == ["aaaaaaaaaaaa", "2"]
    assert first.endswith(f"Z tcg, 2 CPUs, 1024 MiB, 9p, {host.qemu}")
    assert second.startswith(f"{'bbbbbbbbbbbb':43}unusable: the template bbbbbbbbbbbb is damaged")
    good, bad = json.loads(hawse("template", "list", "--format", "json").output)
    assert (good["digest"], good["used_bytes"], good["created"]) == ("a" * 64, 2 * MIB, created)
    assert good["shape"]["cpus"] == 2
    assert list(bad) == ["digest", "problem"]


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (["list", "abc"], "template list takes no digest"),
        (["list", "--all"], "template list takes no digest"),
        (["build", "abc"], "template build takes no digest"),
        (["list", "--bundle", "/b"], "template list takes no bundle"),
        (["remove", "ab", "--bundle", ""], "template remove takes no bundle"),
        (["remove"], "template remove takes digests or --all"),
        (["remove", "ab", "--all"], "template remove takes digests or --all"),
        (["remove", "c"], "no template begins with 'c'"),
        (["remove", "a"], "more than one template begins with 'a'"),
        (["remove", "ab", "x"], "no template begins with 'x'"),
    ],
)
def test_invalid_arguments_remove_nothing(host: Planner, hawse: Command, words: list[str], error: str) -> None:
    for digest in ("ab", "ac"):
        keep(host, digest * 32)
    done = hawse("template", *words)
    assert done.code == 1
    assert done.errors.startswith(f"hawse: {error}")
    assert len(json.loads(hawse("template", "list", "-f", "json").output)) == 2


@pytest.mark.parametrize(("words", "left"), [(["ab"], 1), (["ab", "ac"], 0), (["--all"], 0)])
def test_templates_are_removed(host: Planner, hawse: Command, words: list[str], left: int) -> None:
    for digest in ("ab", "ac"):
        keep(host, digest * 32)
    done = hawse("template", "remove", *words)
    assert (done.code, done.output.splitlines()[0]) == (0, "removed the template abababababab")
    assert len(json.loads(hawse("template", "list", "-f", "json").output)) == left


@pytest.mark.parametrize("bundle", [False, True])
def test_existing_template_is_not_built_again(host: Planner, hawse: Command, bundle: bool) -> None:
    """That of the configuration's VM, or of a bundle's."""
    machine = host.sandbox(host.config(vm='share = "9p"')).machine
    keep(host, digest_of(machine), used=3)
    done = hawse("template", "build", *(["--bundle", host.bundle] if bundle else []))
    assert (done.code, done.errors) == (0, "")
    assert done.output == f"template {digest_of(machine)[:12]}: 3 MiB, exists already\n"


def test_no_template_is_built_if_templates_are_disabled(host: Planner, hawse: Command) -> None:
    hawse.configure(host.config(more="[template]\nenabled = false"))
    done = hawse("template", "build")
    assert (done.code, "this VM cannot have a template" in done.errors) == (1, True)
    host.write(lambda spec: spec.update(annotations={"hawse.devices": "5"}))
    with pytest.raises(ConfigError, match="this VM cannot have a template"):
        build(host.sandbox(host.config(more=f'[devices]\nplug = "cold"\n{EMULATED}')).machine)


def test_vm_is_booted_and_saved(tmp_path: Path) -> None:
    """The second time there is nothing to do."""
    host = Sandboxes(str(tmp_path))
    host.hawse.configure(host.config(vm='share = "9p"\nmemory_mib = 128'))
    done = host.hawse("template", "build")
    assert (done.code, done.errors) == (0, "")
    digest, _, rest = done.output.removeprefix("template ").partition(": ")
    assert re.fullmatch(r"0 MiB, built in \d+\.\d s\n", rest)
    assert float(rest.split()[4]) < 60, "seconds"
    assert host.hawse("template", "build").output == f"template {digest}: 0 MiB, exists already\n"
    [entry] = json.loads(host.hawse("template", "list", "-f", "json").output)
    assert entry["digest"].startswith(digest)


def test_template_that_another_process_builds_is_not_built_twice(tmp_path: Path) -> None:
    host = Sandboxes(str(tmp_path))
    text = host.config(vm='share = "9p"\nmemory_mib = 128')
    host.hawse.configure(text)
    machine, _ = plan_machine(load_config(host.hawse.config), [])
    draft = templates.begin(host.cache, digest_of(machine), machine.shape)
    assert draft is not None
    try:
        done = host.hawse("template", "build")
        assert (done.code, done.errors) == (
            1,
            "hawse: another process is building this template [wait until it has finished]\n",
        )
    finally:
        draft.close()
