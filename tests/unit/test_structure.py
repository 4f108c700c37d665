"""The architecture: imports point downward, hot verbs import few modules, and test modules are not imported."""

from __future__ import annotations

import ast
import collections
import graphlib
import itertools
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import hawse

PACKAGE = os.path.dirname(os.path.abspath(hawse.__file__))
TOP = Path(__file__).parents[2]
#: Directories of test modules. Helpers in them serve only the tests of the same directory; others are in tests/support.
SUITES = ("conformance", "contract", "engines", "lab", "unit", "vm")
#: Shared packages, lowest first: each may import itself and those before it.
SHARED = (
    "version",
    "errors",
    "json_text",
    "log",
    "notes",
    "patterns",
    "linux",
    "config",
    "link",
    "cache",
    "vfio",
    "oci",
    "nodes",
    "vm",
    "jail",
    "state",
    "plan",
    "host",
)
#: Packages by the process that runs them, in the same order.
PROCESSES = {
    "command": ("planner", "doctor", "install", "commands", "cli", "__main__"),
    "proxy": ("proxy",),
    "tap helper": ("tap_helper",),
    "monitor": ("monitor",),
    "agent": ("agent",),
}
LAYERS = [*SHARED, *(package for packages in PROCESSES.values() for package in packages)]
#: Modules of one process that another process imports, and why.
CROSSINGS = {
    # `hawse template build` starts a virtual machine itself: no sandbox exists yet.
    "commands.build_template": "monitor",
    # The command writes what the proxy reads.
    "commands.host_process": "proxy",
    # `hawse run` in the foreground becomes the proxy of its container.
    "cli.runc.run": "proxy",
}
#: Top-level modules and packages of hawse in the guest.
GUEST = {
    "errors", "json_text", "linux.libc", "linux.mounts", "linux.netlink", "link", "oci.document", "vfio.sysfs", "agent"
}  # fmt: skip
#: The maximum number of files in a folder, so that readers can keep them in mind. cli/runc contains one for each verb
#: of runc.
MOST_FILES = 15
#: Names of several files of the host, and why. A verb in cli/ and its implementation in commands/ have the same name.
SAME_NAMES = {
    "main": "the entry point of each process",
    "container": "the plan of a container, and the container",
    "sandbox": "the plan of a sandbox, and the sandbox",
    "guest_drivers": "the plan of functions for guest drivers, and their plugging",
    "host_sockets": "the plan of forwarded sockets, and their connections",
    "hooks": "the hooks of a specification, and their execution",
    "mounts": "the system calls, and the plan of the mounts in a specification",
    "store": "the directories of sandboxes, and of guest images",
}
#: Lines and parameters of a function, "self" not counted, unless a comment "Large: " above it gives the reason.
MOST_LINES, MOST_PARAMETERS = 60, 7


def imports(path: str) -> set[str]:
    """The modules of hawse that a source imports, as "vm.ports"."""
    with open(path) as file:
        tree = ast.parse(file.read())
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("hawse"):
            module = node.module.removeprefix("hawse").lstrip(".")
            names |= {module} | ({f"{module}.{alias.name}".lstrip(".") for alias in node.names} if module else set())
            if not module:
                names |= {alias.name for alias in node.names}
    return names - {""}


def sources() -> list[tuple[str, str]]:
    """(module, path) of every source."""
    modules = []
    for directory, _, names in os.walk(PACKAGE):
        for name in sorted(names):
            if name.endswith(".py") and name != "__init__.py":
                path = os.path.join(directory, name)
                modules.append((os.path.relpath(path, PACKAGE)[:-3].replace("/", "."), path))
    return modules


def process(module: str) -> str:
    """The process that runs a module; "" for shared code."""
    package = module.split(".")[0]
    return next((name for name, packages in PROCESSES.items() if package in packages), "")


def package(module: str) -> str:
    """The folder of a module, or the module itself at the top."""
    return module.rpartition(".")[0] or module


def cycles(edges: dict[str, set[str]]) -> str:
    """A cycle of a graph; "" if it has none."""
    try:
        graphlib.TopologicalSorter(edges).prepare()
    except graphlib.CycleError as error:
        return " -> ".join(error.args[1])
    return ""


@pytest.mark.parametrize(("module", "path"), sources())
def test_modules_import_lower_layers_only(module: str, path: str) -> None:
    layer = LAYERS.index(module.split(".")[0])
    for imported in imports(path):
        other = imported.split(".")[0]
        assert LAYERS.index(other) <= layer or CROSSINGS.get(module) == other, f"{module} imports {imported}"


def documented_order() -> dict[str, int]:
    """The shared folders and top-level modules, with their row in the first table of docs/architecture.md."""
    text = (TOP / "docs" / "architecture.md").read_text().partition("Shared code, lowest first.")[2]
    rows = [line.split(" | ")[0] for line in text.partition("Code of one process.")[0].splitlines()]
    rows = [row for row in rows if row.startswith("| `")]
    names = [(name, number) for number, row in enumerate(rows) for name in re.findall(r"`([\w/.]+)`", row)]
    return {name.removesuffix(".py").strip("/").replace("/", "."): number for name, number in names}


def test_shared_folders_import_only_folders_above_them_in_the_documentation() -> None:
    order = documented_order()
    modules = {module: path for module, path in sources() if module.split(".")[0] in SHARED}
    assert {package(module) for module in modules} == order.keys()
    for module, path in modules.items():
        for imported in imports(path) & modules.keys():
            assert order[package(imported)] <= order[package(module)], f"{module} imports {imported}"


@pytest.mark.parametrize(("module", "path"), sources())
def test_process_imports_no_code_of_another_process(module: str, path: str) -> None:
    """The command does not import the monitor's code, and so on: code that both need is in a shared package."""
    for imported in imports(path):
        if process(imported) not in ("", process(module)):
            assert CROSSINGS.get(module) == imported.split(".")[0], f"{module} imports {imported}"


def test_neither_files_nor_folders_import_each_other_in_a_cycle() -> None:
    modules = {module for module, _ in sources()}
    files = {module: {name for name in imports(path) if name in modules} for module, path in sources()}
    assert cycles(files) == ""
    folders: dict[str, set[str]] = {}
    for module, imported in files.items():
        others = {package(name) for name in imported} - {package(module)}
        folders.setdefault(package(module), set()).update(others)
    assert cycles(folders) == ""


def functions(tree: ast.AST, prefix: str = "") -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef]]:
    """Every function with its name; that of a method begins with its class."""
    for node in ast.iter_child_nodes(tree):
        name = prefix
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            name = f"{prefix}.{node.name}".lstrip(".")
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield name, node
        yield from functions(node, name)


def parameters(function: ast.FunctionDef | ast.AsyncFunctionDef) -> list[str]:
    """The names of the parameters without "self"."""
    given = function.args
    others = [each for each in (given.vararg, given.kwarg) if each]
    names = [each.arg for each in (*given.posonlyargs, *given.args, *given.kwonlyargs, *others)]
    return [name for name in names if name not in ("self", "cls")]


def reason(lines: list[str], function: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    """Whether a comment above a function gives a reason for its size."""
    first = min(node.lineno for node in (function, *function.decorator_list))
    comments = itertools.takewhile(lambda line: line.lstrip().startswith("#"), reversed(lines[: first - 1]))
    return any(line.lstrip().startswith("# Large: ") for line in comments)


def test_functions_are_small_or_have_a_reason() -> None:
    """A function that is small again has to lose its comment."""
    for module, path in sources():
        text = Path(path).read_text()
        for name, function in functions(ast.parse(text)):
            lines = (function.end_lineno or 0) - function.lineno + 1
            is_large = lines > MOST_LINES or len(parameters(function)) > MOST_PARAMETERS
            assert is_large == reason(text.splitlines(), function), f"{module}: {name}"


def test_files_of_the_host_have_different_names() -> None:
    counts = collections.Counter(
        module.split(".")[-1] for module, _ in sources() if not module.startswith(("agent.", "cli."))
    )
    assert {name for name, count in counts.items() if count > 1} == SAME_NAMES.keys()
    assert max(counts.values()) <= 3


def test_folders_are_small() -> None:
    for directory, _, names in os.walk(PACKAGE):
        files = [name for name in names if name.endswith(".py") and name != "__init__.py"]
        assert len(files) <= MOST_FILES, directory


@pytest.mark.parametrize(("module", "path"), [entry for entry in sources() if entry[0].startswith("agent.")])
def test_agent_imports_only_modules_of_the_guest(module: str, path: str) -> None:
    packages = {"agent", "linux", "oci", "vfio"}
    packages |= {f"agent.{name}" for name in os.listdir(f"{PACKAGE}/agent") if os.path.isdir(f"{PACKAGE}/agent/{name}")}
    for imported in imports(path):
        assert imported in packages or any(imported == name or imported.startswith(f"{name}.") for name in GUEST), (
            module
        )


def test_init_files_are_empty() -> None:
    for directory, _, _ in os.walk(PACKAGE):
        path = os.path.join(directory, "__init__.py")
        assert not os.path.exists(path) or os.path.getsize(path) == 0


@pytest.mark.parametrize("verb", ["state", "start", "kill", "delete", "update"])
def test_hot_verb_imports_only_the_standard_library(verb: str) -> None:
    text = f"import sys, hawse.__main__, hawse.cli.runc.{verb}; print(*sys.modules)"
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
    own = {"hawse.oci", "hawse.oci.limits", "hawse.oci.limits.changes"} if verb == "update" else set()
    assert not {name for name in ours - own if name.startswith(("hawse.vm", "hawse.vfio", "hawse.oci"))}


def test_start_without_a_network_does_not_import_pyroute2() -> None:
    """pyroute2 needs 0.17 s and 20 MB, so a separate program imports it, and never the monitor."""
    text = "import sys, hawse.monitor.main, hawse.monitor.lifecycle, hawse.cli.runc.run; print(*sys.modules)"
    answer = subprocess.run([sys.executable, "-I", "-c", text], capture_output=True, text=True, check=True)
    loaded = set(answer.stdout.split())
    assert "hawse.monitor.network.nics" in loaded
    assert not loaded & {"pyroute2", "hawse.tap_helper.main", "hawse.tap_helper.interfaces"}


def test_asyncio_is_not_imported_before_qemu_starts() -> None:
    text = "import sys, hawse.monitor.main; print(*sys.modules)"
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


def test_docs_architecture_names_every_folder() -> None:
    with open(os.path.join(PACKAGE, "..", "..", "docs", "architecture.md")) as file:
        named = set(re.findall(r"`([a-z_/]+)/`", file.read()))
    folders = {package(module).replace(".", "/") for module, _ in sources() if "." in module}
    assert folders <= named
    assert not {name for name in named - folders if os.path.exists(os.path.join(PACKAGE, name))}


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


def test_files_and_functions_of_the_node_s_journey_exist() -> None:
    text = (TOP / "docs" / "architecture.md").read_text()
    table = text.partition("## The journey of a VFIO node")[2].partition("## Folders")[0]
    steps = [re.findall(r"`([\w/]+\.py)`(?:, `(\w+)`)?", line.rpartition(" | ")[2]) for line in table.splitlines()]
    places = [place for step in steps for place in step]
    assert len(places) >= 10
    for path, function in places:
        source = Path(PACKAGE, path).read_text()
        assert not function or re.search(rf"^ *(async )?def {function}\(", source, re.M), (path, function)
