"""Containers of the real agent: states, limits, hooks, namespaces, and the arguments of crun."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hawse.errors import DeviceError, HawseError, StateError, VmError
from hawse.link.frames import EVENT
from hawse.link.messages import decode_event
from tests.support.agent import Agent


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[Agent]:
    with Agent(str(tmp_path / "run"), root=str(tmp_path / "root")) as started:
        drop_caches = tmp_path / "root" / "proc" / "sys" / "vm" / "drop_caches"
        drop_caches.parent.mkdir(parents=True)
        drop_caches.write_text("")
        yield started


def shell(script: str, **other: Any) -> dict[str, Any]:
    return {"args": ["/bin/sh", "-c", script], "cwd": "/", "env": [], **other}


def create(
    agent: Agent, process: dict[str, Any], *, name: str = "c1", number: int = 1, joins: dict[str, str] | None = None,
    **spec: Any,
) -> None:  # fmt: skip
    agent.call(
        "create", container=name, process=number, descriptors=[], joins=joins or {}, devices=[],
        spec={"process": process, **spec},
    )  # fmt: skip


def cgroup(tmp_path: Path, **files: str) -> Path:
    """The directory of the container's cgroup; the test fills it with files."""
    directory = tmp_path / "root/sys/fs/cgroup/hawse/c1"
    directory.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (directory / name.replace("_", ".", 1)).write_text(text)
    return directory


def pid_of(tmp_path: Path, number: int = 1) -> int:
    return int((tmp_path / f"run/containers/c1/pid-{number}").read_text())


def test_container_is_started_only_once_and_only_if_it_exists(agent: Agent) -> None:
    create(agent, shell("exec sleep 1000"))
    agent.call("start", container="c1")
    with pytest.raises(StateError, match="cannot start container c1: it has been started already"):
        agent.call("start", container="c1")
    create(agent, shell("exit 4"), name="c2", number=2)
    agent.call("signal", container="c2", process=2, signal=9, everyone=False)
    assert agent.output_until_exit(2)[1] == 137
    with pytest.raises(StateError, match="cannot start container c2: it has ended"):
        agent.call("start", container="c2")


NODE = {"path": "/dev/x", "major": 1, "minor": 3, "mode": 0o600, "uid": 0, "gid": 0}


def test_exec_in_an_ended_container_is_refused(agent: Agent) -> None:
    create(agent, shell("exit 4"))
    agent.call("start", container="c1")
    assert agent.output_until_exit(1)[1] == 4
    with pytest.raises(StateError, match="cannot exec in a container that is not running"):
        agent.call("exec", container="c1", process=2, descriptors=[], spec=shell("true"))
    with pytest.raises(StateError, match="container c1 has ended: its pid namespace cannot be joined"):
        create(agent, shell("true"), name="c2", number=3, joins={"pid": "c1"}, linux={"namespaces": []})
    with pytest.raises(StateError, match="container c1 has ended"):
        agent.call("add_nodes", container="c1", nodes=[NODE], devices=[])


def test_container_joins_namespaces_of_another(agent: Agent, tmp_path: Path) -> None:
    create(agent, shell("exec sleep 1000"))
    create(
        agent, shell("true"), name="c2", number=2, joins={"network": "c1", "ipc": "c1"},
        linux={"namespaces": [{"type": "mount"}]},
    )  # fmt: skip
    [_, second] = agent.crun_calls("create")
    first = (tmp_path / "run/prepared/pid").read_text()
    assert [entry["type"] for entry in second["spec"]["linux"]["namespaces"]] == ["mount", "network", "ipc"]
    assert second["joined"] == {
        "network": os.readlink(f"/proc/{first}/ns/net"), "ipc": os.readlink(f"/proc/{first}/ns/ipc"),
    }  # fmt: skip
    assert not [name for name in os.listdir(f"/proc/{agent.pid}/fd") if is_namespace(agent.pid, name)]


def is_namespace(pid: int, number: str) -> bool:
    """Whether a descriptor of a process refers to a namespace that the process has open."""
    return os.readlink(f"/proc/{pid}/fd/{number}").startswith(("net:[", "ipc:["))


def test_prepared_crun_is_used_once_and_only_for_plain_containers(agent: Agent) -> None:
    """Hooks depend on the container's name, and a terminal or further descriptors are passed by other means."""
    hook = {"startContainer": [{"path": "/bin/true"}]}
    create(agent, shell("true"), hooks=hook)
    create(agent, shell("true", terminal=True), name="c2", number=2)
    create(agent, shell("true"), name="c3", number=3)
    create(agent, shell("true"), name="c4", number=4)
    assert [call["name"] for call in agent.crun_calls("create")] == ["c1", "c2", "prepared", "c4"]


def test_start_with_hooks_returns_when_the_program_runs(agent: Agent, tmp_path: Path) -> None:
    create(agent, shell("exec sleep 1000"), hooks={"startContainer": [{"path": "/bin/true"}]})
    pid = pid_of(tmp_path)
    before = os.readlink(f"/proc/{pid}/exe")
    agent.call("start", container="c1")
    assert os.readlink(f"/proc/{pid}/exe") != before


def test_template_is_saved_when_crun_waits_for_its_configuration(agent: Agent) -> None:
    assert agent.call("prepare_template") is None
    assert agent.call("trace") == []
    create(agent, shell("echo hello"))
    agent.call("start", container="c1")
    assert agent.output_until_exit(1)[0][1] == b"hello\n"
    steps = agent.call("trace")
    assert [step["name"] for step in steps] == ["prepared crun create", "started"]
    assert all(step["began_ns"] <= step["ended_ns"] for step in steps)


def test_specification_larger_than_a_pipe_reaches_the_prepared_crun(agent: Agent) -> None:
    create(agent, shell("echo hello"), annotations={"large": "x" * 300_000})
    agent.call("start", container="c1")
    assert agent.output_until_exit(1)[0][1] == b"hello\n"


def test_exec_process_has_the_oom_score_of_the_container(agent: Agent) -> None:
    create(agent, shell("exec sleep 1000", oomScoreAdj=321))
    agent.call("start", container="c1")
    agent.call("exec", container="c1", process=2, descriptors=[], spec=shell("cat /proc/self/oom_score_adj"))
    assert agent.output_until_exit(2)[0][1] == b"321\n"


def test_error_names_the_field_of_a_limit_that_the_cgroup_refuses(agent: Agent) -> None:
    refused = {"resources": {"unified": {"memory.high": "1", "memory.nonsense": "refused"}}}
    with pytest.raises(VmError) as caught:
        create(agent, shell("true"), linux=refused)
    assert caught.value.message == (
        "linux.resources.unified: crun create in the guest: open `memory.nonsense`: No such file or directory"
    )


def test_limits_are_updated_and_processes_frozen_by_crun(agent: Agent) -> None:
    create(agent, shell("true"))
    agent.call("update", container="c1", resources={"memory": {"limit": 1 << 20}})
    agent.call("freeze", container="c1", frozen=True)
    agent.call("freeze", container="c1", frozen=False)
    calls = agent.crun_calls("update", "pause", "resume")
    assert [(call["verb"], call["name"], call["resources"]) for call in calls] == [
        ("update", "prepared", {"memory": {"limit": 1 << 20}}), ("pause", "prepared", {}), ("resume", "prepared", {}),
    ]  # fmt: skip
    with pytest.raises(
        VmError, match=r"^update: linux\.resources\.unified: crun update in the guest: open `pids\.max`"
    ):
        agent.call("update", container="c1", resources={"unified": {"pids.max": "refused"}})


def test_limits_of_page_sizes_that_the_guest_lacks_are_omitted(agent: Agent, tmp_path: Path) -> None:
    (tmp_path / "root/sys/kernel/mm/hugepages/hugepages-2048kB").mkdir(parents=True)
    limits = [{"pageSize": "2MB", "limit": 0}, {"pageSize": "1GB", "limit": 0}]
    create(agent, shell("true"), linux={"resources": {"hugepageLimits": limits}})
    [call] = agent.crun_calls("create")
    assert call["spec"]["linux"]["resources"]["hugepageLimits"] == limits[:1]


def test_deleted_container_leaves_no_files_and_no_inodes_of_its_share(agent: Agent, tmp_path: Path) -> None:
    create(agent, shell("exec sleep 1000"))
    agent.call("delete", container="c1")
    assert os.listdir(tmp_path / "run/containers") == []
    assert [call["name"] for call in agent.crun_calls("delete")] == ["prepared"]
    assert (tmp_path / "root/proc/sys/vm/drop_caches").read_text() == "2"


def test_failed_creation_leaves_no_files(agent: Agent, tmp_path: Path) -> None:
    with pytest.raises(VmError):
        create(agent, shell("true"), linux={"resources": {"unified": {"memory.nonsense": "refused"}}})
    assert os.listdir(tmp_path / "run/containers") == []


@pytest.mark.parametrize(("kind", "fails"), [("network", True), ("ipc", False)])
def test_interfaces_of_devices_move_to_the_network_namespace_of_the_container(
    agent: Agent, tmp_path: Path, kind: str, fails: bool
) -> None:
    """In this test the guest has no such interface. Without a network namespace interfaces stay where they are."""
    device = {"guest": {"address": "0000:03:00.0"}, "interfaces": ["enp3s0"]}
    params: dict[str, Any] = {"container": "c1", "process": 1, "descriptors": [], "joins": {}}
    params |= {"devices": [device], "spec": {"process": shell("true"), "linux": {"namespaces": [{"type": kind}]}}}
    if fails:
        with pytest.raises(DeviceError, match="enp3s0 cannot be moved to the network namespace of its container: No"):
            agent.call("create", **params)
    else:
        agent.call("create", **params)
    assert os.listdir(tmp_path / "run/containers") == ([] if fails else ["c1"])


def test_usage_of_a_container_is_read_from_its_cgroup(agent: Agent, tmp_path: Path) -> None:
    create(agent, shell("exec sleep 1000"))
    statistics = {"memory.current": "4096\n", "hugetlb.2MB.current": "0\n", "pids.current": "1\n"}
    directory = cgroup(tmp_path, cgroup_procs="")
    for name, text in statistics.items():
        (directory / name).write_text(text)
    assert agent.call("statistics", container="c1") == statistics


def test_signal_to_all_processes_reaches_the_cgroup(agent: Agent, tmp_path: Path) -> None:
    create(agent, shell("exec sleep 1000"))
    agent.call("start", container="c1")
    pid = (tmp_path / "run/prepared/pid").read_text()
    directory = cgroup(tmp_path, cgroup_procs=f"{pid}\n", cgroup_kill="")
    agent.call("signal", container="c1", process=1, signal=9, everyone=True)
    assert (directory / "cgroup.kill").read_text() == "1"
    agent.call("signal", container="c1", process=1, signal=15, everyone=True)
    assert agent.output_until_exit(1)[1] == 143


@pytest.mark.parametrize("kills", [0, 2])
def test_oom_kill_is_reported_before_the_exit(agent: Agent, tmp_path: Path, kills: int) -> None:
    create(agent, shell("exit 5"))
    cgroup(tmp_path, memory_events=f"oom 3\noom_kill {kills}\n")
    agent.call("start", container="c1")
    events: list[tuple[str, dict[str, Any]]] = []
    while not events or events[-1][0] != "exit":
        _, kind, payload = next(agent.everything())
        if kind == EVENT:
            events.append(decode_event(payload))
    reports = [params for name, params in events if name == "oom"]
    assert reports[:1] == ([{"container": "c1", "kills": kills}] if kills else [])


def test_processes_are_listed_from_the_cgroup(agent: Agent, tmp_path: Path) -> None:
    create(agent, shell("exec sleep 1000"))
    agent.call("start", container="c1")
    pid = (tmp_path / "run/prepared/pid").read_text()
    cgroup(tmp_path, cgroup_procs=f"{pid}\n")
    for name in (pid, "uptime"):
        (tmp_path / "root/proc" / name).symlink_to(f"/proc/{name}")
    assert [process["pid"] for process in agent.call("listing", container="c1")] == [int(pid)]


def test_notifications_are_forwarded_before_the_exit(agent: Agent, tmp_path: Path) -> None:
    """The socket exists before crun is called, every user may write to it, and it is removed with the container."""
    directory = tmp_path / "run/notify/c1"
    send = "import os, socket, sys; s = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)\n"
    send += "for text in sys.argv[2:]: s.sendto(text.encode(), sys.argv[1])"
    words = ["READY=1\nSTATUS=up", *[f"STATUS={number}" for number in range(5)], "STOPPING=1"]
    process = {"args": [sys.executable, "-c", send, f"{directory}/notify.sock", *words], "cwd": "/", "env": []}
    agent.call(
        "create", container="c1", process=1, descriptors=[], joins={}, devices=[], spec={"process": process},
        notify=True,
    )  # fmt: skip
    assert (directory / "notify.sock").stat().st_mode & 0o777 == 0o777
    agent.call("start", container="c1")
    heard = []
    for frame in agent.everything():
        if frame[1] == EVENT:
            name, params = decode_event(frame[2])
            heard += [params["text"]] if name == "notify" else [name] if name == "exit" else []
            if name == "exit":
                break
    assert heard == [*words, "exit"]
    agent.call("delete", container="c1")
    assert not directory.exists()


def test_notification_socket_is_removed_if_the_creation_fails(agent: Agent, tmp_path: Path) -> None:
    with pytest.raises(HawseError):
        agent.call(
            "create", container="c1", process=1, descriptors=[], joins={}, devices=[], notify=True,
            spec={"process": {"args": ["/none"], "cwd": "/", "env": []}, "hostname": "fail"},
        )  # fmt: skip
    assert not (tmp_path / "run/notify/c1").exists()
