"""Every failure is reported by one sentence with cause and remedy, also in the log, and leaves nothing behind.

The fixture ``runtime`` compares processes, mounts, cgroups, open groups and driver links before and after each test.
Failures with real VFIO of the host are in tests/lab.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from hawse.vm.image.store import current_path
from tests.support.bundles import add_devices, make_bundle, write
from tests.support.caches import CACHE
from tests.support.patience import patience
from tests.support.pod_bundles import FOREVER, role
from tests.support.refusals import fails
from tests.support.runtime import Runtime

pytestmark = pytest.mark.vm


@pytest.fixture
def bundle(tmp_path: Path) -> str:
    """A valid bundle."""
    directory = str(tmp_path / "bundle")
    make_bundle(directory, ["/bin/true"])
    return directory


def change(bundle: str, path: str, value: object) -> None:
    """Set one field of config.json, such as "process.user.uid"; None removes it."""
    with open(f"{bundle}/config.json") as file:
        spec = json.load(file)
    part = spec
    *parents, last = path.split(".")
    for name in parents:
        part = part.setdefault(name, {})
    if value is None:
        del part[last]
    else:
        part[last] = value
    write(bundle, spec)


def test_bundle_directory_is_missing(runtime: Runtime, tmp_path: Path) -> None:
    error = fails(runtime, "create", "--bundle", str(tmp_path / "none"), "c1")
    assert error == f"bundle {tmp_path}/none: no such directory [give the bundle with --bundle]"


def test_config_json_is_missing(runtime: Runtime, bundle: str) -> None:
    os.unlink(f"{bundle}/config.json")
    error = fails(runtime, "create", "--bundle", bundle, "c1")
    assert error == f"{bundle}/config.json: no such file or directory [create one with `hawse spec`]"


def test_config_json_is_invalid(runtime: Runtime, bundle: str) -> None:
    with open(f"{bundle}/config.json", "w") as file:
        file.write('{\n "ociVersion": "1.0.2",,\n}')
    error = fails(runtime, "create", "--bundle", bundle, "c1")
    assert error.startswith(
        f"{bundle}/config.json: not JSON: Expecting property name enclosed in double quotes in line 2"
    )
    assert error.endswith("[correct it there]")


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("process.user.uid", "root", "process.user.uid: expected int, got str"),
        ("process.user.uid", -1, "process.user.uid: expected int >= 0"),
        ("process.terminal", 1, "process.terminal: expected bool, got int"),
        ("process.args", "sh", "process.args: expected array, got str"),
        ("process.args", [], "process.args: empty"),
        ("process.cwd", "tmp", "process.cwd: 'tmp' is not absolute"),
        ("mounts", {}, "mounts: expected array | null, got object"),
        ("linux.devices", [{"path": 5, "type": "c"}], "linux.devices[0].path: expected str, got int"),
        ("linux.devices", [{"path": "", "type": "c"}], "linux.devices[0].path: empty"),
        ("linux.devices", [{"path": "/dev/x", "type": "z"}], "linux.devices[0].type: 'z' is not c, b, u or p"),
        ("ociVersion", "9.1.0", "ociVersion: unknown version '9.1.0'"),
        ("ociVersion", None, "ociVersion: missing"),
        ("root", None, "root: missing"),
        ("process", None, "process: missing"),
        ("root.path", "nowhere", "root.path: {bundle}/nowhere is not a directory"),
        ("process.scheduler", {"policy": "SCHED_FIFO"}, "process.scheduler: the guest's runtime does not support it"),
        (
            "linux.resources.blockIO",
            {"weight": 500},
            "linux.resources.blockIO.weight: the container's files are in a shared",
        ),
        ("process.rlimits", [{"type": "RLIMIT_X", "soft": 1, "hard": 1}], "process.rlimits[0].type: 'RLIMIT_X' is no"),
        ("hooks", {"prestart": [{"path": "true"}]}, "hooks.prestart[0].path: 'true' is not absolute"),
        (
            "mounts",
            [{"destination": "/x", "type": "bind", "source": "/none"}],
            "mounts[0].source: /none does not exist",
        ),
    ],
)
def test_error_names_an_invalid_field(runtime: Runtime, bundle: str, field: str, value: object, words: str) -> None:
    change(bundle, field, value)
    error = fails(runtime, "create", "--bundle", bundle, "c1")
    assert error.startswith(f"{bundle}/config.json: {words.format(bundle=bundle)}")
    assert error.endswith("]"), "with a remedy"


@pytest.mark.parametrize("name", ["a/b", "..", "a b", "\u00e9", "x" * 256])
def test_id_is_invalid(runtime: Runtime, bundle: str, name: str) -> None:
    assert fails(runtime, "create", "--bundle", bundle, name).startswith("invalid container ID format: ")


def test_id_is_in_use(runtime: Runtime, bundle: str) -> None:
    os.makedirs(f"{runtime.root}/c1")
    error = fails(runtime, "create", "--bundle", bundle, "c1")
    assert error.startswith("container with given ID already exists: c1 [use another ID")


@pytest.mark.parametrize("verb", ["start", "kill", "state", "delete"])
def test_container_does_not_exist(runtime: Runtime, verb: str) -> None:
    assert fails(runtime, verb, "c1") == "container does not exist: c1"


def test_group_does_not_exist(runtime: Runtime, bundle: str) -> None:
    with open(f"{bundle}/config.json") as file:
        spec = json.load(file)
    add_devices(spec, [("/dev/vfio/vfio", 10, 196), ("/dev/vfio/99", 511, 99)])
    write(bundle, spec)
    error = fails(runtime, "create", "--bundle", bundle, "c1")
    assert error.startswith("linux.devices: /dev/vfio/99: group 99 is missing: no VFIO device has the number 511:99 [")


def test_qemu_is_missing(runtime: Runtime, bundle: str) -> None:
    runtime.configure('[vm]\nqemu = "/none/qemu"\n')
    error = fails(runtime, "create", "--bundle", bundle, "c1")
    assert error.startswith("QEMU cannot be run: /none/qemu: No such file or directory [install the package")


def test_error_has_the_last_output_of_a_qemu_that_exits_at_its_start(
    runtime: Runtime, bundle: str, tmp_path: Path
) -> None:
    # It answers queries about its features, as a QEMU does that later has not enough memory.
    qemu = tmp_path / "qemu"
    qemu.write_text(
        '#!/bin/sh\ncase "$*" in *"-machine none"*) exec /usr/bin/qemu-system-x86_64 "$@";; esac\n'
        "echo 'qemu: cannot set up guest memory' >&2\nexit 3\n"
    )
    qemu.chmod(0o755)
    runtime.configure(f'[vm]\nqemu = "{qemu}"\nconfine = "off"\n')
    error = fails(runtime, "create", "--bundle", bundle, "c1")
    assert error.startswith("QEMU ended with exit code 3 [")
    assert "| qemu: cannot set up guest memory" in error


def test_guest_image_is_missing(runtime: Runtime, bundle: str, tmp_path: Path) -> None:
    runtime.configure(f'[image]\ncache = "{tmp_path}"\n')
    error = fails(runtime, "create", "--bundle", bundle, "c1")
    assert error == f"there is no guest image in {tmp_path} [build it with `hawse image build`]"


def copy_image(tmp_path: Path) -> str:
    """Create a private cache with a copy of the image; returns the directory of its files."""
    with open(current_path(CACHE)) as file:
        digest = file.read()
    shutil.copytree(f"{CACHE}/images/{digest}", tmp_path / "images" / digest)
    Path(current_path(str(tmp_path))).write_text(digest)
    return str(tmp_path / "images" / digest)


def test_guest_image_is_truncated(runtime: Runtime, bundle: str, tmp_path: Path) -> None:
    directory = copy_image(tmp_path)
    os.truncate(f"{directory}/initrd.cpio", 1000)
    runtime.configure(f'[image]\ncache = "{tmp_path}"\n')
    error = fails(runtime, "create", "--bundle", bundle, "c1")
    assert re.fullmatch(r"the guest image is damaged: \S+/initrd.cpio has 1000 bytes, not \d+ \[build it .*\]", error)


def test_guest_image_was_changed(runtime: Runtime, bundle: str, tmp_path: Path) -> None:
    directory = copy_image(tmp_path)
    with open(f"{directory}/vmlinux", "r+b") as file:
        file.seek(5_000_000)
        file.write(b"altered")
    runtime.configure(f'[image]\ncache = "{tmp_path}"\n')
    assert "vmlinux was altered" in fails(runtime, "create", "--bundle", bundle, "c1")


def test_guest_image_is_stale(runtime: Runtime, bundle: str, tmp_path: Path) -> None:
    directory = copy_image(tmp_path)
    with open(f"{directory}/manifest.json") as file:
        manifest = json.load(file)
    manifest["sources"] = "0" * 64
    with open(f"{directory}/manifest.json", "w") as file:
        json.dump(manifest, file)
    runtime.configure(f'[image]\ncache = "{tmp_path}"\n')
    assert " is stale: " in fails(runtime, "create", "--bundle", bundle, "c1")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[vm]\nmemroy_mib = 5\n", "vm.memroy_mib is unknown"),
        ('[vm]\nshare = "nfs"\n', "vm.share is 'nfs'"),
        ("[vm]\ncpus = 256\n", "vm.cpus must be from 0 to 255"),
        ("[vm\n", "Expected ']'"),
        ('[emulated]\n5 = ["gpu"]\n', "emulated.5: unknown model 'gpu'"),
        ('[emulated]\nfive = ["edu"]\n', "emulated.five: the key is not a group number"),
        ("[emulated]\n5 = []\n", "emulated.5: 0 functions"),
    ],
)
def test_configuration_is_invalid(runtime: Runtime, bundle: str, text: str, words: str) -> None:
    runtime.configure(text)
    assert words in fails(runtime, "create", "--bundle", bundle, "c1")


def test_error_has_the_console_of_a_guest_that_does_not_report(runtime: Runtime, bundle: str) -> None:
    seconds = round(patience(3))
    append = "loglevel=7 rdinit=/usr/bin/busybox -- sleep 1000"
    runtime.configure(f'[vm]\nboot_seconds = {seconds}\nkernel_append = "{append}"\n')
    said = fails(runtime, "create", "--bundle", bundle, "c1")
    assert said.startswith(f"the guest did not report within {seconds} s [the end of the console log follows")
    assert "Run /usr/bin/busybox as init process" in said


def test_agent_that_violates_the_protocol(runtime: Runtime, bundle: str) -> None:
    box = "/usr/bin/busybox"
    script = (
        f"{box} mount -t devtmpfs d /dev; {box} mount -t sysfs s /sys; {box} mount -t proc p /proc;"
        f"{box} mkdir -p /lib/modules; {box} ln -sfn /usr/lib/hawse/modules /lib/modules/$({box} uname -r);"
        f"{box} modprobe -a virtio_pci virtio_console; {box} sleep 1;"
        f"{box} yes nonsense >/dev/vport0p1 || {box} yes nonsense >/dev/vport1p1; {box} sleep 1000"
    )
    runtime.configure(f"[vm]\nkernel_append = '''rdinit=/usr/bin/sh -- -c \"{script}\"'''\n")
    said = fails(runtime, "create", "--bundle", bundle, "c1")
    assert said.startswith("protocol violation by the guest agent: link: frame of ")


@pytest.mark.parametrize(
    ("append", "words"),
    [
        # Then nothing in the guest notices the device that QEMU has plugged.
        ("acpiphp.disable=1", "in the guest 0000:02:00.0: the device did not appear in the guest within 8 s"),
        # Without an IOMMU vfio-pci binds to no device (drivers/vfio/pci: probe failed with error -22).
        ("intel_iommu=off", "in the guest 0000:02:00.0: appeared in the guest, but does not bind to vfio-pci"),
    ],
)
def test_device_does_not_appear_in_the_guest(runtime: Runtime, bundle: str, append: str, words: str) -> None:
    runtime.configure(
        f'[vm]\ndevice_seconds = 8\nkernel_append = "{append}"\n[template]\nenabled = false\n[emulated]\n5 = ["edu"]\n'
    )
    with open(f"{bundle}/config.json") as file:
        spec = json.load(file)
    add_devices(spec, [("/dev/vfio/vfio", 10, 196), ("/dev/vfio/5", 511, 5)])
    write(bundle, spec)
    error = fails(runtime, "create", "--bundle", bundle, "c1")
    assert error.startswith(f"emulated edu of group 5, {words}")


@pytest.mark.parametrize(
    ("program", "code", "words"),
    [
        ("/bin/nothing", 127, 'exec: "/bin/nothing": executable file not found in $PATH, or no such file or directory'),
        ("/etc", 126, 'exec: "/etc": permission denied, not executable'),
        ("/data/file", 126, 'exec: "/data/file": permission denied, not executable'),
    ],
)
def test_program_cannot_be_executed(runtime: Runtime, bundle: str, program: str, code: int, words: str) -> None:
    with open(f"{bundle}/rootfs/data/file", "w") as file:
        file.write("no program")
    change(bundle, "process.args", [program])
    assert fails(runtime, "run", "--bundle", bundle, "c1", code=code).startswith(words)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "no command given"),
        (["frobnicate"], "unknown command 'frobnicate'"),
        (["kill", "c1", "SIGNOTHING"], "unknown signal 'SIGNOTHING'"),
        (["state"], "state: ID is missing [see `hawse state --help`]"),
        (["create", "--nonsense", "c1"], "create: unrecognized arguments: --nonsense"),
    ],
)
def test_command_line_is_invalid(runtime: Runtime, arguments: list[str], words: str) -> None:
    assert words in fails(runtime, *arguments)


def mount(**fields: Any) -> dict[str, Any]:
    return {"mounts": [{"destination": "/x", "source": "none"} | fields]}


#: Changes of a specification with which the runtime in the guest fails, and the field at the start of the error.
REFUSED_BY_THE_GUEST: dict[str, tuple[dict[str, Any], str]] = {
    "a file system that is none": (mount(type="nofs"), "mounts: the guest kernel has no file system 'nofs', for /x "),
    "an option that is none": (
        mount(type="tmpfs", options=["size=abc", "ro"]), "mounts: /x, type tmpfs, options size=abc,ro: ",
    ),
    "a directory over a file": (
        mount(destination="/bin/busybox", type="tmpfs"), "mounts: /bin/busybox, type tmpfs, options none: ",
    ),
    "a setting": ({"linux": {"sysctl": {"kernel.shm_rmid_forced": "abc"}}}, "linux.sysctl: "),
    "a setting of the host's": ({"linux": {"sysctl": {"kernel.panic": "1"}}}, "linux.sysctl: "),
    "a group": ({"process": {"user": {"uid": 0, "gid": 0, "additionalGids": [2**32 - 1]}}}, "process.user."),
    "a directory to work in": ({"process": {"cwd": "/bin/busybox"}}, "process.cwd: "),
    "a name": ({"hostname": "x" * 100}, "hostname: "),
    "a limit": ({"linux": {"resources": {"cpu": {"quota": 1, "period": 100000}}}}, "linux.resources.cpu: "),
}  # fmt: skip


def test_error_of_the_runtime_in_the_guest_begins_with_the_field(runtime: Runtime, bundle: str, tmp_path: Path) -> None:
    """For containers of one pod. Each must leave nothing behind."""
    spec = json.loads(Path(bundle, "config.json").read_text())
    spec["annotations"] = role("pod")
    spec["process"]["args"] = FOREVER
    write(bundle, spec)
    runtime.run_detached(bundle, "pod")
    for number, (what, (change, words)) in enumerate(REFUSED_BY_THE_GUEST.items()):
        path = str(tmp_path / f"c{number}")
        spec = make_bundle(path, ["/bin/true"])
        spec["annotations"] = role(f"c{number}")
        spec["mounts"] += change.get("mounts", [])
        spec["process"] |= change.get("process", {})
        spec |= {"hostname": change.get("hostname", spec["hostname"])}
        linux = change.get("linux", {})
        resources = spec["linux"]["resources"] | linux.get("resources", {})
        spec["linux"] |= linux | {"resources": resources}
        write(path, spec)
        done = runtime("create", "--bundle", path, f"c{number}")
        assert done.code == 1, what
        assert done.errors.splitlines()[-1].startswith(f"hawse: {words}"), (what, done.errors)
    assert sorted(os.listdir(runtime.root)) == ["pod"]
