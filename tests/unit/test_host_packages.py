"""scripts/host-packages: what `make demo` and `make test` install, and that neither removes a package."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tests.support.ready import make_program

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "scripts" / "host-packages"
ENGINES = {"docker.io", "containerd", "podman", "runc", "crun"}


class Machine:
    """A machine with these packages, on which apt-get would remove ``removed``."""

    def __init__(self, directory: Path, *, installed: str = "", removed: str = "", codename: str = "bookworm") -> None:
        self.calls = directory / "calls"
        self.calls.touch()
        (directory / "bin").mkdir()
        query = f'case " {installed} " in *" $3 "*) printf installed;; *) exit 1;; esac'
        make_program(f"{directory}/bin/dpkg-query", query)
        lines = "".join(f"echo 'Remv {name} [1.0]'; " for name in removed.split())
        simulate = f'case "$*" in *--simulate*) echo "Inst x (1.0)"; {lines};; esac'
        make_program(f"{directory}/bin/apt-get", f'echo "$*" >>{self.calls}\n{simulate}')
        (directory / "os-release").write_text(f"ID=debian\nVERSION_CODENAME={codename}\n")
        self._environment = os.environ | {
            "PATH": f"{directory}/bin:{os.environ['PATH']}", "HAWSE_OS_RELEASE": f"{directory}/os-release",
        }  # fmt: skip

    def run(self, *words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["bash", str(SCRIPT), *words], env=self._environment, capture_output=True, text=True, check=False
        )

    def installed(self) -> set[str]:
        """The packages of the calls that install."""
        real = [line for line in self.calls.read_text().splitlines() if "install" in line and "--simulate" not in line]
        return {word for line in real for word in line.split() if not word.startswith("-")} - {"install"}


def test_demo_installs_no_engine(tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    assert machine.run("hawse").returncode == 0
    assert machine.installed() >= {"qemu-system-x86", "python3-venv"}
    assert not machine.installed() & ENGINES


def test_tests_install_engines_and_are_told_to_remove_nothing(tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    done = machine.run("tests", "debootstrap")
    assert done.returncode == 0
    assert machine.installed() >= ENGINES | {"qemu-system-x86", "debootstrap"}
    assert all("--no-remove" in line for line in machine.calls.read_text().splitlines() if " -y " in line)


@pytest.mark.parametrize("removed", ["docker-ce containerd.io", "containerd.io", "podman-static"])
@pytest.mark.parametrize("group", ["hawse", "tests"])
def test_nothing_is_installed_where_a_package_would_be_removed(tmp_path: Path, group: str, removed: str) -> None:
    machine = Machine(tmp_path, removed=removed)
    done = machine.run(group)
    assert done.returncode == 1
    names = " ".join(sorted(removed.split()))
    assert f"would remove {names}: nothing is installed" in done.stderr
    assert ("without other container engines" in done.stderr) == (group == "tests")
    assert machine.installed() == set()


def test_second_run_asks_apt_nothing(tmp_path: Path) -> None:
    machine = Machine(tmp_path, installed="qemu-system-x86 qemu-system-common seabios ipxe-qemu python3-venv procps")
    assert machine.run("hawse").returncode == 0
    assert machine.calls.read_text() == ""


def test_debian_13_has_more_packages(tmp_path: Path) -> None:
    machine = Machine(tmp_path, codename="trixie")
    machine.run("tests")
    assert machine.installed() >= {"virtiofsd", "docker-cli"}


def test_unknown_group_is_refused(tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    assert "unknown group all [give hawse or tests]" in machine.run("all").stderr
    assert machine.calls.read_text() == ""


def test_only_tests_and_benchmarks_have_the_makefile_install_engines() -> None:
    rules = dict(
        line.split(":", 1)
        for line in (ROOT / "Makefile").read_text().splitlines()
        if ": " in line and line[0].isalpha()
    )
    assert {target for target, needs in rules.items() if "engines" in needs.split()} == {
        "test", "soak", "mutants", "bench", "lab",
    }  # fmt: skip
    recipes = (ROOT / "Makefile").read_text()
    assert recipes.count("scripts/host-packages tests") == 1
    assert "apt" not in recipes
