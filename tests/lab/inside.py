"""The first program of the lab: it prepares a host for containers, then serves commands or runs a shell.

``inside.py serve`` answers on the virtio-serial port "lab.commands": each request and each answer is four bytes of
length and a JSON object, {"number", "argv", "cwd", "timeout", "text"} and {"number", "code", "output", "errors"}.
"""

from __future__ import annotations

import importlib
import json
import os
import resource
import select
import signal
import struct
import subprocess
import sys
import threading
import traceback
from typing import IO

PORT = "lab.commands"
#: Devices that are on vfio-pci when the lab is ready: edu, e1000e, igb's virtual functions, nvme, pci-testdev.
VFIO_IDS = {
    ("0x1234", "0x11e8"), ("0x8086", "0x10d3"), ("0x8086", "0x10ca"), ("0x1b36", "0x0010"), ("0x1b36", "0x0005"),
}  # fmt: skip
VIRTUAL_FUNCTIONS = 2
#: Modules of hawse's commands and of the tests' programs. They are imported once, before the processes are forked.
PRELOADED = (
    "hawse.vfio.sysfs", "hawse.config", "hawse.commands.build_template", "tests.support.bundles", "tests.support.host",
    "tests.support.runtime", "hawse.__main__", "hawse.cli.own.attach", "hawse.cli.own.bind", "hawse.cli.runc.create",
    "hawse.cli.runc.delete", "hawse.cli.own.detach", "hawse.cli.runc.execute", "hawse.cli.runc.list",
    "hawse.cli.runc.run", "hawse.cli.runc.start",
    "hawse.cli.runc.state", "hawse.cli.own.unbind", "hawse.commands.spawn", "hawse.planner.sandbox", "hawse.oci.load",
)  # fmt: skip
#: The content of the installed script `hawse`. Engines in the lab run the script itself.
HAWSE = "import sys; from hawse.__main__ import main; sys.exit(main())"


def main() -> None:
    """Fork: the first process collects orphans and powers the lab off at the end. Its child prepares and serves."""
    served = os.fork()
    while served:
        if os.wait()[0] == served:
            with open("/proc/sysrq-trigger", "w") as file:
                file.write("o")
            threading.Event().wait()
    os.environ.update(PATH="/usr/sbin:/usr/bin:/sbin:/bin", HOME="/root", TERM=os.environ.get("TERM", "linux"))
    for kind, target in (("cgroup2", "/sys/fs/cgroup"), ("devpts", "/dev/pts"), ("tmpfs", "/dev/shm")):
        os.makedirs(target, exist_ok=True)
        subprocess.run(["mount", "-t", kind, kind, target], check=True)
    # udev creates these links. devtmpfs has none (Linux drivers/base/devtmpfs.c).
    for name, target in (("fd", ""), ("stdin", "/0"), ("stdout", "/1"), ("stderr", "/2")):
        os.symlink(f"/proc/self/fd{target}", f"/dev/{name}")
    subprocess.run(["ip", "link", "set", "lo", "up"], check=False)
    resource.setrlimit(resource.RLIMIT_MEMLOCK, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    make_virtual_functions()
    bind_devices()
    # Time limits and one CPU: see tests/lab/steps.py.
    os.makedirs("/etc/hawse", exist_ok=True)
    allowed = '[devices]\nannotations = ["device-mode", "devices", "managed", "vf-token"]\n'
    machine = '[vm]\nboot_seconds = 300\ndevice_seconds = 120\ncpus = 1\nconfine = "required"\n'
    write("/etc/hawse/config.toml", machine + allowed)
    if sys.argv[1:] == ["serve"]:
        serve()
    else:
        subprocess.run(["setsid", "-c", "bash", "-l"], check=False)


def make_virtual_functions() -> None:
    """Create virtual functions of every physical one. Its driver answers them only while its interface is up."""
    for address in os.listdir("/sys/bus/pci/devices"):
        device = f"/sys/bus/pci/devices/{address}"
        if os.path.exists(f"{device}/sriov_numvfs") and os.path.isdir(f"{device}/net"):
            [interface] = os.listdir(f"{device}/net")
            subprocess.run(["ip", "link", "set", interface, "up"], check=True)
            write("/sys/bus/pci/drivers_autoprobe", "0")
            write(f"{device}/sriov_numvfs", str(VIRTUAL_FUNCTIONS))
            write("/sys/bus/pci/drivers_autoprobe", "1")
            for number in range(VIRTUAL_FUNCTIONS):
                mac = f"02:00:00:00:01:{number:02x}"
                subprocess.run(["ip", "link", "set", interface, "vf", str(number), "mac", mac], check=True)


def bind_devices() -> None:
    """Bind the devices to vfio-pci."""
    for address in os.listdir("/sys/bus/pci/devices"):
        device = f"/sys/bus/pci/devices/{address}"
        if (read(f"{device}/vendor"), read(f"{device}/device")) in VFIO_IDS:
            write(f"{device}/driver_override", "vfio-pci")
            if os.path.exists(f"{device}/driver"):
                write(f"{device}/driver/unbind", address)
            write("/sys/bus/pci/drivers_probe", address)


def serve() -> None:
    """Answer one request after the other until the other side closes the port."""
    sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))
    for module in PRELOADED:
        importlib.import_module(module)
    names = "/sys/class/virtio-ports"
    port = next(name for name in os.listdir(names) if read(f"{names}/{name}/name") == PORT)
    with open(f"/dev/{port}", "r+b", buffering=0) as channel:
        while header := read_exactly(channel, 4):
            request = json.loads(read_exactly(channel, struct.unpack(">I", header)[0]))
            number = request.pop("number")
            answer = json.dumps({"number": number} | run(**request)).encode()
            channel.write(struct.pack(">I", len(answer)))
            view = memoryview(answer)
            while view:
                view = view[channel.write(view) :]


def run(argv: list[str], cwd: str, timeout: float, text: str | None = None) -> dict[str, object]:
    """Run a command, or, with ``text``, a Python program with the arguments ``argv``. hawse is run as such a program.

    Outputs go to files, since processes that a command leaves behind would keep a pipe open.
    """
    with open("/tmp/out", "w+b") as output, open("/tmp/err", "w+b") as errors:
        if text is None and os.path.basename(argv[0]) == "hawse":
            text, argv = HAWSE, argv[1:]
        if text is not None:
            code = run_python(text, argv, cwd, timeout, output, errors)
        else:
            code = run_command(argv, cwd, timeout, output, errors)
        texts = []
        for file in (output, errors):
            file.seek(0)
            texts.append(file.read(4 * 1024 * 1024).decode(errors="replace"))
    return {"code": code, "output": texts[0], "errors": texts[1]}


def run_command(argv: list[str], cwd: str, timeout: float, output: IO[bytes], errors: IO[bytes]) -> int:
    """Returns the exit code; -1 when the time limit was exceeded, -2 when the command could not be started."""
    try:
        return subprocess.run(
            argv, cwd=cwd, timeout=timeout, check=False, stdin=subprocess.DEVNULL, stdout=output, stderr=errors
        ).returncode
    except subprocess.TimeoutExpired:
        return -1
    except OSError as error:
        errors.write(str(error).encode())
        return -2


def run_python(text: str, argv: list[str], cwd: str, timeout: float, output: IO[bytes], errors: IO[bytes]) -> int:
    """Like run_command(), in a fork of this process, which has imported PRELOADED: imports take seconds in the lab."""
    pid = os.fork()
    if not pid:
        code = 1
        try:
            os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
            os.dup2(output.fileno(), 1)
            os.dup2(errors.fileno(), 2)
            os.chdir(cwd)
            sys.argv = ["hawse", *argv]
            exec(compile(text, "<program>", "exec"), {"__name__": "__main__"})
            code = 0
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else int(end.code is not None)
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    ended = os.pidfd_open(pid)
    try:
        over = not select.select([ended], [], [], timeout)[0]
    finally:
        os.close(ended)
    if over:
        os.kill(pid, signal.SIGKILL)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    return -1 if over else status


def read_exactly(channel: object, count: int) -> bytes:
    """Read ``count`` bytes; empty at the end of the channel."""
    data = b""
    while len(data) < count:
        piece = channel.read(count - len(data))  # type: ignore[attr-defined]
        if not piece:
            return b""
        data += piece
    return data


def read(path: str) -> str:
    """Read an attribute in sysfs."""
    with open(path) as file:
        return file.read().strip()


def write(path: str, text: str) -> None:
    """Write a file or an attribute in sysfs."""
    with open(path, "w") as file:
        file.write(text)


if __name__ == "__main__":
    main()
