"""The architecture: imports point downward, hot verbs import few modules, and test modules are not imported."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

import hawse

PACKAGE = os.path.dirname(os.path.abspath(hawse.__file__))
TOP = Path(__file__).parents[2]
#: Directories of test modules. Helpers in them serve only the tests of the same directory; others are in tests/support.
SUITES = ("conformance", "contract", "engines", "lab", "unit", "vm")
#: Lowest first; a layer may import itself and earlier ones. The agent may import only GUEST.
LAYERS = [
    "version",
    "errors",
    "log",
    "netlink",
    "linux",
    "patterns",
    "config",
    "link",
    "vfio",
    "oci",
    "nodes",
    "vm",
    "jail",
    "sandbox",
    "container",
    "doctor",
    "install",
    "cli",
    "__main__",
]
#: Modules that exist in the guest.
GUEST = {"errors", "netlink", "link", "vfio.rules", "vfio.sysfs", "agent"}


def imports(path: str) -> set[str]:
    """The modules of hawse that a source imports, as "vm.ports"."""
    with open(path) as file:
        tree = ast.parse(file.read())
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("hawse"):
            module = node.module.removeprefix("hawse").lstrip(".")
            found |= {module} | ({f"{module}.{alias.name}".lstrip(".") for alias in node.names} if module else set())
            if not module:
                found |= {alias.name for alias in node.names}
    return found - {""}


def sources() -> list[tuple[str, str]]:
    """(module, path) of every source."""
    found = []
    for directory, _, names in os.walk(PACKAGE):
        for name in sorted(names):
            if name.endswith(".py") and name != "__init__.py":
                path = os.path.join(directory, name)
                found.append((os.path.relpath(path, PACKAGE)[:-3].replace("/", "."), path))
    return found


@pytest.mark.parametrize(("module", "path"), sources())
def test_dependencies_point_downward(module: str, path: str) -> None:
    layer = module.split(".")[0]
    if layer == "agent":
        return
    for imported in imports(path):
        target = imported.split(".")[0]
        assert target != "agent", f"{module} imports what only the guest runs"
        assert LAYERS.index(target) <= LAYERS.index(layer), f"{module} imports {imported}"


@pytest.mark.parametrize(("module", "path"), [entry for entry in sources() if entry[0].startswith("agent.")])
def test_agent_imports_only_modules_of_the_guest(module: str, path: str) -> None:
    for imported in imports(path):
        assert any(imported == name or imported.startswith(f"{name}.") for name in GUEST) or imported == "vfio", module


def test_init_files_are_empty() -> None:
    for directory, _, _ in os.walk(PACKAGE):
        path = os.path.join(directory, "__init__.py")
        assert not os.path.exists(path) or os.path.getsize(path) == 0


@pytest.mark.parametrize("verb", ["state", "start", "kill", "delete"])
def test_hot_verb_imports_only_the_standard_library(verb: str) -> None:
    text = f"import sys, hawse.__main__, hawse.cli.{verb}; print(*sys.modules)"
    answer = subprocess.run([sys.executable, "-I", "-c", text], capture_output=True, text=True, check=True)
    loaded = set(answer.stdout.split())
    assert not loaded & {
        "msgspec",
        "qemu",
        "rich",
        "asyncio",
        "argparse",
        "typing",
        "dataclasses",
        "subprocess",
        "shutil",
    }
    ours = {name for name in loaded if name.startswith("hawse.")}
    assert not {name for name in ours if name.startswith(("hawse.vm", "hawse.vfio", "hawse.oci"))}


def test_start_without_a_network_does_not_import_pyroute2() -> None:
    """pyroute2 needs 0.17 s and 20 MB, so a separate program imports it, and never the monitor."""
    text = "import sys, hawse.sandbox.monitor, hawse.sandbox.lifetime, hawse.cli.run; print(*sys.modules)"
    answer = subprocess.run([sys.executable, "-I", "-c", text], capture_output=True, text=True, check=True)
    loaded = set(answer.stdout.split())
    assert "hawse.sandbox.nics" in loaded
    assert not loaded & {"pyroute2", "hawse.sandbox.taps", "hawse.sandbox.interfaces"}


def test_asyncio_is_not_imported_before_qemu_starts() -> None:
    text = "import sys, hawse.sandbox.monitor; print(*sys.modules)"
    answer = subprocess.run([sys.executable, "-I", "-c", text], capture_output=True, text=True, check=True)
    assert "asyncio" not in answer.stdout.split()


def test_modules_of_the_guest_do_not_import_typing() -> None:
    """Importing it takes 0.1 s in a guest without KVM."""
    names = [module for module, _ in sources() if module.startswith(("agent.", "link."))]
    text = f"import sys\nfor n in {names!r}: __import__('hawse.' + n)\nprint(*sys.modules)"
    command = [
        sys.executable,
        "-I",
        "-S",
        "-c",
        f"import sys; sys.path.insert(0, {os.path.dirname(PACKAGE)!r})\n{text}",
    ]
    answer = subprocess.run(command, capture_output=True, text=True, check=True)
    assert not {"typing", "dataclasses", "asyncio", "subprocess", "inspect"} & set(answer.stdout.split())


def imported_from_tests(path: Path) -> set[str]:
    """The modules of tests that a source imports, as "lab.host"; names are included, since each may be a module."""
    modules = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            modules |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return {module.removeprefix("tests.") for module in modules if module.startswith("tests.")}


def test_test_modules_are_not_imported() -> None:
    """A suite's helper modules are imported only by this suite, by benchmarks, and by unit tests of these helpers."""
    for path in (*(TOP / "tests").rglob("*.py"), *(TOP / "bench").rglob("*.py")):
        suite = path.relative_to(TOP / "tests").parts[0] if TOP / "tests" in path.parents else "bench"
        for module in imported_from_tests(path):
            parts = module.split(".")
            assert not any(part.startswith("test_") or part == "conftest" for part in parts), f"{path} imports {module}"
            assert suite in ("unit", "bench") or parts[0] not in SUITES or parts[0] == suite, f"{path} imports {module}"
