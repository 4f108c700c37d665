"""A container's notifications on the host: their destination, and that only the configured socket can be reached."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hawse.agent.streams.notify import MAX_BYTES
from hawse.agent.streams.notify import Notify as AgentSocket
from hawse.commands.host_process import IoOptions, relays
from hawse.errors import HostError
from hawse.host import notify
from hawse.monitor.agent import notifications
from hawse.notes import debug
from hawse.oci.load import load_bundle
from hawse.oci.process.notify_socket import Notify, in_mounts, serve, value_of
from hawse.planner.notify_target import find_notified
from hawse.state.store import CREATED, Store
from tests.support import bundles
from tests.support.command import Command
from tests.support.fake_monitor import FakeMonitor
from tests.support.notified import Notified
from tests.support.patience import patience, wait_until
from tests.support.processes import waits_for_input
from tests.support.proxies import Attached, Pipes

RUN = {"destination": "/run/notify", "type": "bind", "source": "/h/notify", "options": ["bind"]}
SOCKET = "NOTIFY_SOCKET=/run/notify/notify.sock"


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Notified]:
    with Notified(f"{tmp_path}/n.sock") as socket_of_host:
        yield socket_of_host


@pytest.mark.parametrize(
    ("env", "mounts", "expected"),
    [
        ([SOCKET], [RUN], Notify(host="/h/notify", below="notify.sock")),
        (["A=1", SOCKET, "B=2"], [RUN], Notify(host="/h/notify", below="notify.sock")),
        ([SOCKET.replace("notify.sock", "a/./b//c")], [RUN], Notify(host="/h/notify", below="a/b/c")),
        ([SOCKET], [RUN | {"type": "none", "options": ["rbind", "ro"]}], Notify(host="/h/notify", below="notify.sock")),
        ([SOCKET], [RUN | {"destination": "/run//notify/"}], Notify(host="/h/notify", below="notify.sock")),
        ([SOCKET], [RUN | {"source": "notify"}], Notify(host="/b/notify", below="notify.sock")),
        ([SOCKET], [RUN | {"source": "../n"}], Notify(host="/n", below="notify.sock")),
        (["NOTIFY_SOCKET=/s"], [RUN | {"destination": "/s", "source": "/h/s"}], Notify(host="/h/s")),
        (["NOTIFY_SOCKET=/s/t"], [RUN | {"destination": "/"}], Notify(host="/h/notify", below="s/t")),
        # A later mount covers an earlier one.
        ([SOCKET], [RUN, RUN | {"source": "/other"}], Notify(host="/other", below="notify.sock")),
        ([SOCKET], [RUN, {"destination": "/run", "type": "tmpfs"}], None),
        ([SOCKET], [{"destination": "/run", "type": "tmpfs"}, RUN], Notify(host="/h/notify", below="notify.sock")),
        ([SOCKET], [RUN, {"destination": "/run/notify/notify.sock", "type": "tmpfs"}], None),
        ([SOCKET], [RUN, {"destination": "/run/notify2", "type": "tmpfs"}],
         Notify(host="/h/notify", below="notify.sock")),
        # Of several variables the last one counts.
        (["NOTIFY_SOCKET=/x", SOCKET], [RUN], Notify(host="/h/notify", below="notify.sock")),
        ([SOCKET, "NOTIFY_SOCKET="], [RUN], None),
        ([SOCKET], [], None), ([], [RUN], None), (["NOTIFY_SOCKETS=/run/notify/x"], [RUN], None),
        (["NOTIFY_SOCKET=@run/notify/x"], [RUN], None), (["NOTIFY_SOCKET=vsock:2:9"], [RUN], None),
        (["NOTIFY_SOCKET=run/notify/x"], [RUN], None), (["NOTIFY_SOCKET=/run/notify/../x"], [RUN], None),
        (["NOTIFY_SOCKET=/run/notify/../../h"], [RUN], None),
    ],
)  # fmt: skip
def test_path_of_the_containers_own_variable(env: list[str], mounts: list[Any], expected: Notify | None) -> None:
    assert in_mounts({"env": env}, mounts, bundle="/b") == expected


def test_container_with_the_callers_socket() -> None:
    """The mount and the variable are those of runc (notify_socket.go, setupSpec())."""
    spec: dict[str, Any] = {"process": {"env": ["A=1", "NOTIFY_SOCKET=/old"]}, "mounts": [RUN]}
    served = serve(spec, Notify(host="/h", caller=True), container="c1")
    assert spec == {"process": {"env": ["A=1", "NOTIFY_SOCKET=/old"]}, "mounts": [RUN]}
    assert served["process"]["env"] == ["A=1", SOCKET]
    assert served["mounts"] == [RUN, {
        "type": "bind", "destination": "/run/notify", "source": "/run/hawse/notify/c1",
        "options": ["bind", "nosuid", "noexec", "nodev", "ro"],
    }]  # fmt: skip
    bare: dict[str, Any] = {"process": {}}
    served = serve(bare, Notify(host="/h", caller=True), container="c1")
    assert (served["process"]["env"], len(served["mounts"])) == ([SOCKET], 1)
    assert bare == {"process": {}}


def test_container_with_a_socket_among_its_mounts() -> None:
    spec: dict[str, Any] = {"process": {"env": ["NOTIFY_SOCKET=/run/notify//notify.sock"]}, "mounts": [RUN]}
    spec = serve(spec, Notify(host="/h/notify", below="notify.sock"), container="c1")
    assert value_of(spec["process"]["env"]) == "/run/notify//notify.sock"
    assert spec["mounts"][1:] == [{
        "type": "bind", "destination": "/run/notify/notify.sock", "source": "/run/hawse/notify/c1/notify.sock",
        "options": ["bind", "nosuid", "noexec", "nodev"],
    }]  # fmt: skip


def test_socket_of_the_caller_takes_precedence_over_mounts(tmp_path: Path, host: Notified) -> None:
    """If it cannot be reached, there is a warning for a socket of the caller; a socket among the mounts is not
    served."""
    (tmp_path / "rootfs").mkdir()
    spec = bundles.specification(["sh"], env=[SOCKET])
    spec["mounts"].append(RUN | {"source": str(tmp_path)})
    bundles.write(str(tmp_path), spec)
    bundle = load_bundle(str(tmp_path))
    text = f"process.env: NOTIFY_SOCKET is not served: {tmp_path}/notify.sock: No such file or directory"
    assert find_notified(bundle, "") == (None, [debug(text)])
    with Notified(f"{tmp_path}/notify.sock"):
        assert find_notified(bundle, "") == (Notify(host=str(tmp_path), below="notify.sock"), [])
        assert find_notified(bundle, host.address) == (Notify(host=host.address, caller=True), [])
        notified, notes = find_notified(bundle, "@none")
    assert notified == Notify(host="@none", caller=True)
    [(level, text)] = notes
    assert level == "warning"
    assert text.startswith("NOTIFY_SOCKET: @none: Connection refused: the container's notifications are lost [")


@pytest.mark.parametrize(
    ("caller", "detach", "expected"), [(True, False, True), (True, True, False), (False, False, False)]
)
def test_foreground_command_relays_notifications_to_its_caller(caller: bool, detach: bool, expected: bool) -> None:
    assert relays(Notify(host="/h", caller=caller), IoOptions(None, detach)) is expected


def test_sockets_by_path_and_by_abstract_name_are_reached(tmp_path: Path, host: Notified) -> None:
    with Notified(f"@hawse-unit-{os.getpid()}") as abstract:
        for socket_of_host in (host, abstract):
            assert notify.problem(Notify(host=socket_of_host.address, caller=True)) == ""
            with notify.connect_for(Notify(host=socket_of_host.address, caller=True)) as connection:
                assert notify.send(connection, "STATUS=x", pid=7)
            assert socket_of_host.next() == (os.getpid(), ["STATUS=x"])
    assert notify.problem(Notify(host=str(tmp_path), below="n.sock")) == ""
    assert notify.problem(Notify(host=host.address)) == ""


@pytest.mark.parametrize(
    ("below", "problem"),
    [
        ("link.sock", "it is not a socket"), ("linked/n.sock", "Not a directory"), ("up/n.sock", "Not a directory"),
        ("file", "it is not a socket"), ("fifo", "it is not a socket"), ("none", "No such file or directory"),
        ("file/x", "Not a directory"), ("inner", "it is not a socket"), ("dead.sock", "Connection refused"),
        ("inner/n.sock", "No such file or directory"), ("", "it is not a socket"),
    ],
)  # fmt: skip
def test_only_sockets_below_the_mount_are_reached(tmp_path: Path, host: Notified, below: str, problem: str) -> None:
    """A container may have written to that directory: its links would lead to any socket of the host."""
    mount = tmp_path / "mount"
    (mount / "inner").mkdir(parents=True)
    (mount / "link.sock").symlink_to(host.address)
    (mount / "linked").symlink_to(tmp_path)
    (mount / "up").symlink_to("..")
    (mount / "file").write_text("")
    os.mkfifo(mount / "fifo")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as dead:
        dead.bind(f"{mount}/dead.sock")
    before = len(os.listdir("/proc/self/fd"))
    assert notify.problem(Notify(host=str(mount), below=below)) == problem
    assert len(os.listdir("/proc/self/fd")) == before
    assert host.nothing()


@pytest.mark.parametrize("address", ["/none/x", "@none", "/" + "x" * 200, "/a\0b", "/", "@", "vsock:2:9"])
def test_unreachable_socket_of_the_caller_is_reported_in_a_sentence(address: str) -> None:
    assert notify.problem(Notify(host=address, caller=True)) != ""
    with pytest.raises(HostError) as caught:
        notify.report_ready(address, "READY=1", pid=1)
    assert "the container is ready, but this cannot be reported [set it to the service manager's socket" in str(
        caught.value.sentence()
    )


def test_readiness_is_reported_with_the_pid_before_the_command_ends(host: Notified) -> None:
    words = {"address": host.address, "notice": "READY=1\nSTATUS=up", "pid": 77}
    reporting = threading.Thread(target=notify.report_ready, kwargs=words)
    reporting.start()
    assert host.next() == (os.getpid(), ["READY=1", "STATUS=up", "MAINPID=77"])
    wait_until(lambda: not reporting.is_alive() or waits_for_input(reporting))
    assert reporting.is_alive(), "it waits until the notification was read"
    assert host.next() == (os.getpid(), ["BARRIER=1"])
    reporting.join(patience(5))
    assert not reporting.is_alive()


def test_relay_sends_with_the_pid_of_the_command(host: Notified) -> None:
    relay = notify.Relay(notify.connect(host.address))
    with relay.theirs as proxys:
        for text in ("STATUS=a", "READY=1", "STOPPING=1"):
            proxys.send(text.encode())
    relay.finish()
    me = os.getpid()
    notices = [host.next() for _ in range(3)]
    assert notices == [(me, ["STATUS=a"]), (me, ["READY=1", f"MAINPID={me}"]), (me, ["STOPPING=1"])]


def test_relay_outlives_a_service_manager_that_is_gone(tmp_path: Path) -> None:
    with Notified(f"{tmp_path}/n.sock") as host:
        relay = notify.Relay(notify.connect(host.address))
    with relay.theirs as proxys:
        proxys.send(b"READY=1")
        proxys.send(b"STATUS=a")
    relay.finish()


@pytest.fixture
def monitor(tmp_path: Path) -> Iterator[FakeMonitor]:
    with FakeMonitor(Store(str(tmp_path), "c1")) as monitor:
        yield monitor


def test_proxy_sends_all_notifications_with_its_own_pid_before_its_end(monitor: FakeMonitor, host: Notified) -> None:
    with Pipes() as pipes, notify.connect(host.address) as connection:
        proxy = pipes.start(monitor, notify=connection.fileno())
        connection.close()
        with Attached(monitor) as process:
            process.event("notify", notice="STATUS=a")
            assert host.next() == (proxy.pid, ["STATUS=a"])
            process.event("notify", notice="STATUS=ä\nREADY=1")
            process.event("notify", notice="STOPPING=1")
            process.exit(3)
            assert proxy.wait() == 3
    assert [host.next() for _ in range(2)] == [(proxy.pid, ["STATUS=ä", "READY=1"]), (proxy.pid, ["STOPPING=1"])]


@pytest.mark.parametrize("listens", [False, True])
def test_service_manager_does_not_delay_the_proxy(monitor: FakeMonitor, tmp_path: Path, listens: bool) -> None:
    """Neither by one that does not read nor by one that is gone: output is forwarded, and the exit code is the
    proxy's."""
    host = Notified(f"{tmp_path}/n.sock")
    with Pipes() as pipes, host, notify.connect(host.address) as connection:
        proxy = pipes.start(monitor, notify=connection.fileno())
        if not listens:
            host._socket.close()
        with Attached(monitor) as process:
            for number in range(2000):
                process.event("notify", notice=f"STATUS={number}")
            process.write(1, b"output")
            assert os.read(pipes.stdout, 9) == b"output"
            process.exit(3)
            assert proxy.wait() == 3


def test_proxy_without_a_socket_ignores_notifications(monitor: FakeMonitor) -> None:
    with Pipes() as pipes:
        proxy = pipes.start(monitor)
        with Attached(monitor) as process:
            process.event("notify", notice="READY=1")
            process.exit(3)
            assert proxy.wait() == 3
    assert proxy.relay is None


@pytest.mark.parametrize(
    ("state", "variable", "expected"),
    [({"notify": True}, True, {"notify": True}), ({}, True, {}), ({"notify": True}, False, {})],
)
def test_start_waits_if_both_callers_have_the_variable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, host: Notified, state: Any, variable: bool, expected: Any
) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    if variable:
        monkeypatch.setenv("NOTIFY_SOCKET", host.address)
    hawse = Command(str(tmp_path))
    with FakeMonitor(hawse.store("c1"), {"start": [["warning", "a note"]]}, status=CREATED, **state) as monitor:
        done: list[Any] = []
        starting = threading.Thread(target=lambda: done.append(hawse("start", "c1")))
        starting.start()
        if expected:
            wait_until(lambda: bool(monitor.calls) and monitor.has_answered)
            wait_until(lambda: not starting.is_alive() or waits_for_input(starting))
            assert starting.is_alive(), "it waits for an event of the monitor"
            monitor.end()
            monitor.hang_up()
        starting.join(patience(5))
        assert monitor.calls == [("start", {"container": "c1"} | expected)]
        assert (done[0].code, "a note" in done[0].errors) == (0, True)
        assert host.nothing()


def test_notification_socket_of_the_agent(tmp_path: Path) -> None:
    """Every user may send. A barrier is released when earlier notifications were forwarded. The end loses none of
    them."""
    sent: list[str] = []
    served = AgentSocket(f"{tmp_path}/c1", sent.append)
    path = f"{tmp_path}/c1/notify.sock"
    assert os.stat(path).st_mode & 0o777 == 0o777
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as program:
        program.connect(path)
        for data in (b"", b"READY=1", b"x" * (MAX_BYTES + 1), b"y" * MAX_BYTES, b"\xff\n"):
            program.send(data)
        reading, writing = os.pipe()
        with os.fdopen(reading, "rb") as end:
            socket.send_fds(program, [b"BARRIER=1"], [writing])
            os.close(writing)
            assert end.read() == b""
        assert sent[:3] == ["READY=1", "y" * MAX_BYTES, "\ufffd\n"]
        for number in range(5):
            program.send(b"STATUS=%d" % number)
        served.finish()
        assert sent[-5:] == [f"STATUS={number}" for number in range(5)]
        with pytest.raises(BrokenPipeError):
            program.send(b"late")
    served.end()
    assert os.listdir(tmp_path) == []


def test_host_and_guest_have_the_same_size_limit() -> None:
    assert MAX_BYTES == notifications.MAX_TEXT == notify._MAX_BYTES
