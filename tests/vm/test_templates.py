"""Templates are created by the first start, restored by the next one, and never used if they are damaged."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from hawse.vm import ram_file
from hawse.vm.image import packages
from tests.support.bundles import make_bundle, specification, write
from tests.support.caches import CACHE, own_cache, templates
from tests.support.host import prove_unchanged, snapshot
from tests.support.patience import patience, wait_until
from tests.support.processes import all_pids
from tests.support.runtime import Result, Runtime
from tests.support.timelines import step_names

pytestmark = pytest.mark.vm

SECRET = "a-secret-of-the-first-container"


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A cache with the template of a container with a secret."""
    before = snapshot()
    directory = tmp_path_factory.mktemp("kept")
    runtime = Runtime(str(directory))
    cache = own_cache(str(directory / "cache"))
    configure(runtime, cache)
    make_bundle(f"{directory}/bundle", ["/bin/true"], env=["PATH=/bin", f"SECRET={SECRET}"])
    result = runtime("run", "--bundle", f"{directory}/bundle", "--timeline", f"{directory}/trace.json", "c1")
    assert result == Result(0, "", "")
    assert {"boots", "state saved", "memory saved"} <= step_names(directory / "trace.json")
    assert len(templates(cache)) == 1
    prove_unchanged(before)
    return cache


@pytest.fixture
def cache(kept: str, tmp_path: Path) -> str:
    """A copy of this cache."""
    copy = own_cache(f"{tmp_path}/cache")
    subprocess.run(["cp", "--archive", "--sparse=always", f"{kept}/templates", copy], check=True)
    return copy


@pytest.fixture
def bundle(tmp_path: Path) -> str:
    path = str(tmp_path / "bundle")
    make_bundle(path, ["/bin/echo", "it ran"])
    return path


def configure(runtime: Runtime, cache: str, more: str = "") -> None:
    runtime.configure(f'{more}\n[image]\ncache = "{cache}"\n[emulated]\n5 = ["edu"]\n')


def start(runtime: Runtime, bundle: str, tmp_path: Path) -> tuple[bool, list[str]]:
    """Run a bundle, which must succeed; returns whether the VM was restored, and the warnings."""
    trace = tmp_path / "trace.json"
    result = runtime("run", "--bundle", bundle, "--timeline", str(trace), "c1")
    assert (result.code, result.output) == (0, "it ran\n"), result
    names = step_names(trace)
    assert ("boots" in names) != ("state loaded" in names)
    return "state loaded" in names, [line for line in result.errors.splitlines() if "warning:" in line]


def test_later_start_is_restored(runtime: Runtime, cache: str, bundle: str, tmp_path: Path) -> None:
    configure(runtime, cache)
    assert start(runtime, bundle, tmp_path) == (True, [])
    assert len(templates(cache)) == 1


def test_disabled_templates_are_not_created_or_used(runtime: Runtime, cache: str, bundle: str, tmp_path: Path) -> None:
    configure(runtime, cache, "[template]\nenabled = false")
    assert start(runtime, bundle, tmp_path) == (False, [])
    configure(runtime, own_cache(f"{tmp_path}/empty"), "[template]\nenabled = false")
    assert start(runtime, bundle, tmp_path) == (False, [])
    assert not os.path.exists(f"{tmp_path}/empty/templates")


def test_vm_of_another_configuration_has_another_template(
    runtime: Runtime, cache: str, bundle: str, tmp_path: Path
) -> None:
    configure(runtime, cache, "[vm]\ncpus = 1\nmemory_mib = 512")
    assert start(runtime, bundle, tmp_path) == (False, [])
    assert start(runtime, bundle, tmp_path) == (True, [])
    assert len(templates(cache)) == 2


def test_template_has_no_data_of_the_first_container(kept: str) -> None:
    [digest] = templates(kept)
    with open(f"{kept}/templates/{digest}/memory", "rb") as file:
        tail = b""
        is_found = False
        while piece := file.read(1 << 24):
            is_found = is_found or SECRET.encode() in tail + piece
            tail = piece[-64:]
    assert not is_found
    with open(f"{kept}/templates/{digest}/state", "rb") as file:
        assert SECRET.encode() not in file.read()


def test_no_page_is_shared_between_sandboxes(runtime: Runtime, cache: str, tmp_path: Path) -> None:
    """Private mappings of the same template file would share pages with each other (CVE-2015-2877)."""
    configure(runtime, cache)
    bundle = str(tmp_path / "bundle")
    make_bundle(bundle, ["/bin/sleep", "1000"])
    runtime.run_detached(bundle, "c1")
    mapped = {line.split(maxsplit=5)[5] for line in _maps() if len(line.split(maxsplit=5)) == 6}
    assert "/memfd:hawse-ram (deleted)" in {path.strip() for path in mapped}, "QEMU and virtiofsd map private memory"
    assert not [path for path in mapped if "/templates/" in path]


def _maps() -> list[str]:
    lines = []
    for pid in all_pids():
        try:
            with open(f"/proc/{pid}/maps") as file:
                lines += file.readlines()
        except OSError:
            continue
    return lines


# Damage


def _truncate(path: str) -> None:
    os.truncate(path, os.path.getsize(path) // 2)


def _alter(path: str) -> None:
    """Change one byte that is not in a hole of the file."""
    with open(path, "r+b") as file:
        position = os.lseek(file.fileno(), 0, os.SEEK_DATA) + 5000
        file.seek(position)
        byte = file.read(1)
        file.seek(position)
        file.write(bytes([byte[0] ^ 1]))


@pytest.mark.parametrize(
    ("name", "damage", "words"),
    [("memory", _alter, "memory was altered"), ("state", _truncate, "bytes, not ")],
)
def test_damaged_template_is_not_used_and_is_replaced(
    runtime: Runtime, cache: str, bundle: str, tmp_path: Path, name: str, damage: Callable[[str], None], words: str
) -> None:
    """Each kind of damage is tried in tests/unit/test_template_refusals.py."""
    configure(runtime, cache)
    [digest] = templates(cache)
    damage(f"{cache}/templates/{digest}/{name}")
    restored, warnings = start(runtime, bundle, tmp_path)
    assert not restored
    assert len(warnings) == 1, warnings
    [warning] = warnings
    assert warning.startswith(f"hawse: warning: this start is a cold one: the template {digest[:12]} is damaged: ")
    assert words in warning
    assert start(runtime, bundle, tmp_path) == (True, [])


def test_template_that_qemu_cannot_load_is_removed(runtime: Runtime, cache: str, bundle: str, tmp_path: Path) -> None:
    """The files match the manifest, but QEMU cannot use them."""
    configure(runtime, cache)
    [digest] = templates(cache)
    place = f"{cache}/templates/{digest}"
    with open(f"{place}/state", "r+b") as file:
        file.write(os.urandom(4096))
        file.flush()
        state_digest = ram_file.digest(file.fileno())
    manifest = json.loads(Path(f"{place}/manifest.json").read_text())
    manifest["files"]["state"]["digest"] = state_digest
    Path(f"{place}/manifest.json").write_text(json.dumps(manifest))
    trace = tmp_path / "trace.json"
    result = runtime("run", "--bundle", bundle, "--timeline", str(trace), "c1")
    assert (result.code, result.output) == (0, "it ran\n"), result
    [warning] = [line for line in result.errors.splitlines() if "warning:" in line]
    assert f"cannot restore the template {digest[:12]}, and the virtual machine boots instead: QEMU " in warning
    assert start(runtime, bundle, tmp_path) == (True, [])


def test_directory_that_other_users_can_write_is_not_used(
    runtime: Runtime, cache: str, bundle: str, tmp_path: Path
) -> None:
    configure(runtime, cache)
    os.chmod(f"{cache}/templates", 0o777)
    restored, warnings = start(runtime, bundle, tmp_path)
    assert not restored
    assert ["others may write to " in warning for warning in warnings] == [True], warnings


@pytest.fixture
def small(tmp_path: Path) -> Iterator[str]:
    """The path of a cache with too little space for a template."""
    cache = own_cache(f"{tmp_path}/mounted")
    os.mkdir(f"{cache}/templates")
    subprocess.run(["mount", "-t", "tmpfs", "-o", "mode=700,size=16m", "none", f"{cache}/templates"], check=True)
    yield cache
    subprocess.run(["umount", f"{cache}/templates"], check=True)


def test_container_starts_if_no_template_can_be_stored(
    runtime: Runtime, small: str, bundle: str, tmp_path: Path
) -> None:
    cache = small
    configure(runtime, cache)
    restored, warnings = start(runtime, bundle, tmp_path)
    assert not restored
    assert len(warnings) == 1, warnings
    [warning] = warnings
    assert warning.startswith("hawse: warning: cannot save a template for later starts: ")
    assert "No space left on device" in warning
    assert not [name for name in os.listdir(f"{cache}/templates") if not name.endswith(".lock")], "nothing is left"


def test_two_simultaneous_first_starts_create_one_valid_template(runtime: Runtime, bundle: str, tmp_path: Path) -> None:
    configure(runtime, own_cache(f"{tmp_path}/cache"))
    null, pipe = subprocess.DEVNULL, subprocess.PIPE
    processes = [
        runtime.start("run", "--bundle", bundle, f"c{n}", stdin=null, stdout=pipe, stderr=pipe) for n in range(2)
    ]
    for process in processes:
        assert process.communicate(timeout=patience(30)) == (b"it ran\n", b"")
        assert process.returncode == 0
    assert len(templates(f"{tmp_path}/cache")) == 1
    assert start(runtime, bundle, tmp_path) == (True, [])


def test_crash_while_saving_leaves_no_usable_template(runtime: Runtime, bundle: str, tmp_path: Path) -> None:
    cache = own_cache(f"{tmp_path}/cache")
    configure(runtime, cache)
    null = subprocess.DEVNULL
    process = runtime.start("run", "--bundle", bundle, "c1", stdin=null, stdout=null, stderr=null)
    half_written = Path(cache) / "templates"
    wait_until(lambda: half_written.is_dir() and any(n.name.endswith(".new") for n in half_written.iterdir()))
    os.kill(runtime.monitor("c1"), signal.SIGKILL)
    assert process.wait(patience(10)) != 0
    assert templates(cache) == []
    assert [name for name in os.listdir(half_written) if name.endswith(".new")]
    runtime("delete", "--force", "c1")
    assert start(runtime, bundle, tmp_path) == (False, [])
    assert len(templates(cache)) == 1
    assert not [name for name in os.listdir(half_written) if name.endswith(".new")], "the next writer removes it"


# Clones


def test_two_clones_have_different_identities(runtime: Runtime, kept: str, tmp_path: Path) -> None:
    configure(runtime, kept)
    [digest] = templates(kept)
    created = json.loads(Path(f"{kept}/templates/{digest}/manifest.json").read_text())["created"]
    # Otherwise a clock that was not set would be correct by chance.
    wait_until(lambda: time.time() - created > 5)
    bundle = str(tmp_path / "bundle")
    script = (
        "head -c 32 /dev/urandom | md5sum; cat /proc/sys/kernel/random/boot_id; dbus-uuidgen;"
        "ssh-keygen -q -t ed25519 -N '' -f /tmp/key; tail -n 2 /tmp/key | head -n 1; date +%s"
    )
    _make_rootfs(f"{bundle}/rootfs")
    write(bundle, specification(["/bin/sh", "-c", script]))
    seen, times = [], []
    for name in ("c1", "c2"):
        before = time.time()
        result = runtime("run", "--bundle", bundle, name)
        assert result.code == 0, result
        os.unlink(f"{bundle}/rootfs/tmp/key")
        lines = result.output.splitlines()
        assert len(lines) == 5, result
        seen.append(lines[:4])
        times.append((before, int(lines[4]), time.time()))
    for ours, theirs in zip(*seen, strict=True):
        assert ours != theirs
    for before, inside, after in times:
        assert before - 1 <= inside <= after + 1


def _make_rootfs(rootfs: str) -> None:
    """Create a root file system with Debian's ssh-keygen, dbus-uuidgen and libraries, and the script's programs."""
    fetched = packages.fetch(["openssh-client", "dbus-bin", "busybox-static"], cache=CACHE, progress=print)
    programs = ("usr/bin/ssh-keygen", "usr/bin/dbus-uuidgen", "usr/bin/busybox", "bin/busybox")
    packages.unpack(
        fetched, rootfs, select=lambda name: name in programs or (".so" in name and name.startswith(("usr/lib", "lib")))
    )
    for name in ("dev", "etc", "proc", "sys", "tmp"):
        os.makedirs(f"{rootfs}/{name}", exist_ok=True)
    for applet in ("sh", "head", "tail", "date", "md5sum", "cat"):
        os.symlink("busybox", f"{rootfs}/usr/bin/{applet}")
    with open(f"{rootfs}/etc/passwd", "w") as file:
        file.write("root:x:0:0:root:/:/bin/sh\n")


# The commands


def test_templates_are_built_listed_and_removed(runtime: Runtime, tmp_path: Path, bundle: str) -> None:
    cache = own_cache(f"{tmp_path}/cache")
    configure(runtime, cache)
    assert runtime("template", "list", "--format", "json").output == "[]\n"
    built = runtime("template", "build")
    assert built.code == 0, built
    [digest] = templates(cache)
    assert built.output.startswith(f"template {digest[:12]}: ")
    assert runtime("template", "build").output.rstrip().endswith(" exists already")
    assert start(runtime, bundle, tmp_path) == (True, [])
    [entry] = json.loads(runtime("template", "list", "--format", "json").output)
    assert entry["digest"] == digest
    assert entry["shape"]["memory_mib"] == 1024
    assert 30 << 20 < entry["used_bytes"] < 300 << 20
    assert digest[:12] in runtime("template", "list").output
    assert "no template begins with 'zz'" in runtime("template", "remove", "zz").errors
    assert runtime("template", "remove", digest[:6]).code == 0
    assert templates(cache) == []


def test_template_for_a_bundle_is_built_in_advance(runtime: Runtime, tmp_path: Path, bundle: str) -> None:
    """For a pod, whose VM has more ports than usual."""
    cache = own_cache(f"{tmp_path}/cache")
    configure(runtime, cache)
    spec = json.loads(Path(f"{bundle}/config.json").read_text())
    write(bundle, spec | {"annotations": {"io.kubernetes.cri.container-type": "sandbox"}})
    built = runtime("template", "build", "--bundle", bundle)
    assert built.code == 0, built
    assert start(runtime, bundle, tmp_path) == (True, [])
    assert len(templates(cache)) == 1
    refused = runtime("template", "list", "--bundle", bundle)
    assert "template list takes no bundle" in refused.errors
    configure(runtime, cache, "[template]\nenabled = false")
    assert "this VM cannot have a template [set template.enabled" in runtime("template", "build").errors


def test_timeline_is_written(runtime: Runtime, cache: str, bundle: str, tmp_path: Path) -> None:
    configure(runtime, cache, f'[timeline]\ndirectory = "{tmp_path}/traces"')
    (tmp_path / "traces").mkdir()
    assert runtime("run", "--bundle", bundle, "c7").code == 0
    drawn = runtime("timeline", f"{tmp_path}/traces/c7.json").output.splitlines()
    assert drawn[0].split()[:3] == ["step", "from", "ms"]
    for words in ("command line: plan made", "QEMU: state loaded", "in the guest: prepared crun create"):
        assert any(line.startswith(words) and "█" in line for line in drawn), drawn
    events = json.loads((tmp_path / "traces" / "c7.json").read_text())["traceEvents"]
    steps = {event["name"]: event for event in events if event["ph"] == "X"}
    # Host and guest use one clock: the steps of the guest for a call are within the call.
    call, inside = steps["container created"], steps["prepared crun create"]
    # In microseconds: half of the call that compared the clocks, and their drift during a start.
    slack = steps["woken"]["dur"] / 2 + 5_000
    assert call["ts"] - slack <= inside["ts"]
    assert inside["ts"] + inside["dur"] <= call["ts"] + call["dur"] + slack


def test_timeline_that_cannot_be_written_is_refused_before_the_start(runtime: Runtime, bundle: str) -> None:
    result = runtime("run", "--bundle", bundle, "--timeline", "/nowhere/trace.json", "c1")
    assert result.code == 1
    assert "the timeline cannot be written: /nowhere/trace.json [" in result.errors
