"""The architecture, as the imports have it: dependencies point downward, hot verbs import little."""

from __future__ import annotations

import ast
import os
import subprocess
import sys

import pytest

import hawse

PACKAGE = os.path.dirname(os.path.abspath(hawse.__file__))
#: Lowest first; a layer may import itself and those before it. The agent is beside them: see GUEST.
LAYERS = [
    "version",
    "errors",
    "json_text",
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
#: What the guest has.
GUEST = {"errors", "json_text", "netlink", "link", "vfio.rules", "vfio.sysfs", "agent"}


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
def test_the_agent_imports_what_the_guest_has(module: str, path: str) -> None:
    for imported in imports(path):
        assert any(imported == name or imported.startswith(f"{name}.") for name in GUEST) or imported == "vfio", module


def test_init_files_are_empty() -> None:
    for directory, _, _ in os.walk(PACKAGE):
        path = os.path.join(directory, "__init__.py")
        assert not os.path.exists(path) or os.path.getsize(path) == 0


@pytest.mark.parametrize("verb", ["state", "start", "kill", "delete"])
def test_a_hot_verb_imports_the_standard_library_alone(verb: str) -> None:
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


def test_a_start_without_a_network_loads_nothing_for_one() -> None:
    """pyroute2 takes a sixth of a second and twenty megabytes: a program that ends has it, the monitor never."""
    text = "import sys, hawse.sandbox.monitor, hawse.sandbox.lifetime, hawse.cli.run; print(*sys.modules)"
    answer = subprocess.run([sys.executable, "-I", "-c", text], capture_output=True, text=True, check=True)
    loaded = set(answer.stdout.split())
    assert "hawse.sandbox.nics" in loaded
    assert not loaded & {"pyroute2", "hawse.sandbox.taps", "hawse.sandbox.interfaces"}


def test_what_is_loaded_before_qemu_starts_needs_no_asyncio() -> None:
    text = "import sys, hawse.sandbox.monitor; print(*sys.modules)"
    answer = subprocess.run([sys.executable, "-I", "-c", text], capture_output=True, text=True, check=True)
    assert "asyncio" not in answer.stdout.split()


def test_the_guests_modules_need_no_typing() -> None:
    """Its import alone costs a tenth of a second in a guest without KVM."""
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
