"""A real proxy and the monitor's end of its connection: bytes, signals, sizes, exit codes, and how `ps` shows it."""

from __future__ import annotations

import fcntl
import os
import signal
import struct
import termios
import tty
from collections.abc import Iterator
from pathlib import Path

import pytest

from hawse.commands.spawn import FORWARDED, ProxyProcess
from hawse.link.flow import WINDOW, decode_credit, encode_credit
from hawse.link.frames import CREDIT, MAX_DATA, encode
from hawse.link.streams import STREAMS
from hawse.proxy.main import LOST
from hawse.state.store import Store
from tests.support.fake_monitor import FakeMonitor
from tests.support.patience import wait_until
from tests.support.processes import status_of
from tests.support.proxies import Attached, Pipes, read_all


@pytest.fixture
def monitor(tmp_path: Path) -> Iterator[FakeMonitor]:
    with FakeMonitor(Store(str(tmp_path), "c1")) as monitor:
        yield monitor


def test_stdio_and_exit_code_are_the_processes(monitor: FakeMonitor) -> None:
    with Pipes() as pipes:
        proxy = pipes.start(monitor)
        with Attached(monitor) as process:
            assert process.params == {"key": "c1/key", "descriptors": []}
            os.write(pipes.stdin, b"typed")
            assert process.next_data() == (0, b"typed")
            pipes.end(pipes.stdin)
            assert process.next_data() == (0, None)
            process.write(1, b"to stdout")
            process.write(2, b"to stderr")
            process.close(1)
            assert read_all(pipes.stdout) == b"to stdout", "its end does not wait for the end of the process"
            process.exit(7)
            assert read_all(pipes.stderr) == b"to stderr"
            assert proxy.wait() == 7


def test_proxy_has_no_capabilities_when_it_announces_itself(monitor: FakeMonitor) -> None:
    """The monitor then moves it to the container's cgroups. A cpuset of version 1 refuses a process with capabilities
    that the monitor lacks."""
    with Pipes() as pipes:
        proxy = pipes.start(monitor)
        with Attached(monitor) as process:
            status = status_of(proxy.pid)
            assert {status[name] for name in ("CapInh", "CapPrm", "CapEff", "CapAmb")} == {"0" * 16}
            process.exit(0)
            assert proxy.wait() == 0


def test_input_waits_for_credit(monitor: FakeMonitor) -> None:
    """Data that the process does not read stays in the pipe: no buffer grows."""
    with Pipes() as pipes:
        proxy = pipes.start(monitor)
        with Attached(monitor) as process:
            os.set_blocking(pipes.stdin, True)
            sent = 0
            while sent < WINDOW:
                sent += os.write(pipes.stdin, bytes(MAX_DATA))
            got = 0
            while got < WINDOW:
                got += len(process.next_data()[1] or b"")
            assert got == WINDOW
            os.write(pipes.stdin, b"more")
            pipes.end(pipes.stdin)
            process.port.send(encode(STREAMS, CREDIT, encode_credit(4)))
            assert process.next_data() == (0, b"more")
            assert process.next_data() == (0, None)
            process.exit(0)
            assert proxy.wait() == 0


def test_credit_of_forwarded_output_is_returned(monitor: FakeMonitor) -> None:
    with Pipes() as pipes:
        proxy = pipes.start(monitor)
        with Attached(monitor) as process:
            process.write(1, bytes(MAX_DATA))
            got = os.read(pipes.stdout, MAX_DATA)
            while len(got) < MAX_DATA:
                got += os.read(pipes.stdout, MAX_DATA)
            for _ in range(WINDOW // MAX_DATA - 1):
                process.write(1, bytes(MAX_DATA))
                left = MAX_DATA
                while left:
                    left -= len(os.read(pipes.stdout, left))
            stream, kind, payload = next(process.frames)
            assert (stream, kind) == (STREAMS + 1, CREDIT)
            assert 0 < decode_credit(payload) <= WINDOW
            process.exit(0)
            assert proxy.wait() == 0


def test_output_without_a_reader_is_dropped(monitor: FakeMonitor) -> None:
    """The process ends nevertheless, with its own exit code."""
    with Pipes() as pipes:
        proxy = pipes.start(monitor)
        with Attached(monitor) as process:
            pipes.end(pipes.stdout)
            for _ in range(2):
                process.write(1, bytes(MAX_DATA))
            process.write(2, b"still read")
            process.exit(3)
            assert read_all(pipes.stderr) == b"still read"
            assert proxy.wait() == 3


@pytest.mark.parametrize("nonsense", [False, True])
def test_exit_code_shows_that_the_sandbox_ended_first(monitor: FakeMonitor, nonsense: bool) -> None:
    with Pipes() as pipes:
        proxy = pipes.start(monitor)
        with Attached(monitor) as process:
            process.write(1, b"last words")
            assert os.read(pipes.stdout, 100) == b"last words"
            if nonsense:
                process.connection.sendall(b"\xff" * 9)
                process.await_end()
        assert read_all(pipes.stdout) == b""
        assert proxy.wait() == LOST


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGWINCH, signal.SIGRTMAX])
def test_signals_reach_the_process(monitor: FakeMonitor, number: signal.Signals) -> None:
    with Pipes() as pipes:
        proxy = pipes.start(monitor)
        with Attached(monitor) as process:
            proxy.forward(number)
            assert process.next_event() == ("signal", {"number": int(number)})
            process.exit(128 + number)
            assert proxy.wait() == 128 + number
            proxy.forward(number)  # the proxy has ended: its pid may belong to another process


def test_signal_between_the_end_of_a_proxy_and_its_exit_code_is_not_sent(monitor: FakeMonitor) -> None:
    """A signal handler of the command may run then: the proxy was waited for, and its pid may belong to another
    process."""
    proxy = ProxyProcess(monitor.store, "k", terminal=-1, command=["x"])
    process = proxy._process
    process.kill()

    def wait() -> int:
        os.waitpid(process.pid, 0)
        proxy.forward(signal.SIGUSR1)  # raises ProcessLookupError if it sends the signal
        process.returncode = -signal.SIGKILL
        return process.returncode

    process.wait = wait  # type: ignore[method-assign,assignment]
    assert proxy.wait() == 128 + signal.SIGKILL


def test_proxy_that_is_killed_ends_as_its_signal_says(monitor: FakeMonitor) -> None:
    with Pipes() as pipes:
        proxy = pipes.start(monitor)
        with Attached(monitor) as process:
            os.kill(proxy.pid, signal.SIGKILL)
            process.await_end()
            assert proxy.wait() == 137


def test_aborted_proxy_has_ended(monitor: FakeMonitor) -> None:
    with Pipes() as pipes:
        proxy = pipes.start(monitor)
        with Attached(monitor) as process:
            proxy.abort()
            process.await_end()
        assert not os.path.exists(f"/proc/{proxy.pid}")


def test_host_sees_the_title_and_a_session(monitor: FakeMonitor) -> None:
    """Engines run the host's ps on the pids that hawse reports; no signal of the caller's session reaches the proxy."""
    with Pipes() as pipes:
        proxy = pipes.start(monitor, command=["sh", "-c", "echo a\0b", "x" * 5000])
        with Attached(monitor) as process:
            with open(f"/proc/{proxy.pid}/cmdline", "rb") as file:
                title = file.read().rstrip(b"\0")
            assert title == b"hawse[c1]: sh -c echo a b " + b"x" * (4096 - len("sh -c echo a b "))
            with open(f"/proc/{proxy.pid}/comm") as comm:
                assert comm.read() == "hawse-proxy\n"
            assert os.getsid(proxy.pid) == proxy.pid
            assert os.readlink(f"/proc/{proxy.pid}/cwd") == "/"
            process.exit(0)
            assert proxy.wait() == 0


def test_short_title_is_whole(monitor: FakeMonitor) -> None:
    with Pipes() as pipes:
        proxy = pipes.start(monitor, command=["a"])
        with Attached(monitor) as process:
            with open(f"/proc/{proxy.pid}/cmdline", "rb") as file:
                assert file.read().rstrip(b"\0") == b"hawse[c1]: a"
            process.exit(0)
            assert proxy.wait() == 0


def test_proxy_uses_memory_in_the_containers_cgroup(monitor: FakeMonitor) -> None:
    """A container that uses no memory has no statistics for Kubernetes."""

    def size() -> int:
        with open(f"/proc/{proxy.pid}/statm") as file:
            return int(file.read().split()[0]) * os.sysconf("SC_PAGE_SIZE")

    with Pipes() as pipes:
        proxy = pipes.start(monitor)
        with Attached(monitor) as process:
            process.write(1, b"1")
            assert os.read(pipes.stdout, 9) == b"1"  # its threads have allocated their stacks
            before = size()
            process.event("unknown")
            process.event("placed")
            wait_until(lambda: size() >= before + 1024 * 1024)
            process.exit(0)
            assert proxy.wait() == 0


class TestTerminal:
    """A proxy whose process has a terminal of this size."""

    @pytest.mark.parametrize(("rows", "columns"), [(24, 80), (0, 0), (24, 0), (0, 80)])
    def test_size_of_the_terminal_is_reported(self, monitor: FakeMonitor, rows: int, columns: int) -> None:
        master, slave = os.openpty()
        tty.setraw(slave)
        fcntl.ioctl(master, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
        proxy = ProxyProcess(monitor.store, "k", stdio=(slave, slave, slave), terminal=0, command=["sh"])
        os.close(slave)
        with Attached(monitor) as process:
            expected = {"rows": rows, "columns": columns} if rows and columns else {}
            assert process.params == {"key": "c1/k", "descriptors": []} | expected
            # The terminal is now the proxy's controlling terminal: the kernel sends SIGWINCH to the proxy.
            fcntl.ioctl(master, termios.TIOCSWINSZ, struct.pack("HHHH", 50, 132, 0, 0))
            assert process.next_event() == ("resize", {"rows": 50, "columns": 132})
            os.write(master, b"keys")
            assert process.next_data() == (0, b"keys")
            process.write(1, b"screen")
            assert os.read(master, 100) == b"screen"
            os.kill(proxy.pid, signal.SIGTERM)
            assert process.next_event() == ("signal", {"number": 15})
            process.exit(0)
            assert proxy.wait() == 0
        os.close(master)

    def test_closed_terminal_has_no_size(self, monitor: FakeMonitor) -> None:
        """The engine has closed the terminal: a SIGWINCH reports no new size."""
        with Pipes() as pipes:
            proxy = pipes.start(monitor, terminal=0)
            with Attached(monitor) as process:
                assert "rows" not in process.params
                os.kill(proxy.pid, signal.SIGWINCH)
                assert process.next_event() == ("resize", {"rows": 0, "columns": 0})
                process.exit(0)
                assert proxy.wait() == 0


def test_command_forwards_signals_that_end_or_control_programs() -> None:
    assert {signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGWINCH, signal.SIGQUIT} < set(FORWARDED)
    assert not {signal.SIGCHLD, signal.SIGPIPE, signal.SIGKILL, signal.SIGSTOP} & set(FORWARDED)
