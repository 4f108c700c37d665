"""Statistics, process lists and limits: data from guests and engines is checked and converted."""

from __future__ import annotations

import json
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hawse.agent.container.cgroup import Cgroup
from hawse.agent.container.process_table import listing
from hawse.cli.runc.events import parse_interval
from hawse.cli.runc.ps import chosen
from hawse.cli.runc.update import from_options, parse_size
from hawse.errors import ConfigError, HostError, UsageError, VmError
from hawse.monitor.agent.calls import Listing, Statistics, read_answer
from hawse.oci.limits.changes import changes_nothing, limits_of
from hawse.oci.limits.statistics import convert
from hawse.oci.limits.update import difference, for_guest, merge
from hawse.oci.process.table import Row, rows, table

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=12), inner, max_size=4),
    max_leaves=20,
)
CURRENT = {"memory": {"limit": 64}, "cpu": {"shares": 512, "period": 1000}, "blockIO": {"weight": 7}, "pids": None}


def test_statistics_have_the_format_of_runc() -> None:
    converted = convert({
        "cpu.stat": "usage_usec 30\nuser_usec 20\nsystem_usec 10\nnr_periods 4\nnr_throttled 2\nthrottled_usec 5\n",
        "memory.current": "4096\n", "memory.max": "max\n", "memory.peak": "8192\n", "memory.stat": "anon 7\nfile 9\n",
        "memory.swap.current": "1\n", "memory.swap.max": "max\n", "memory.events": "low 0\nmax 3\noom_kill 1\n",
        "pids.current": "2\n", "pids.max": "max\n",
        "io.stat": "8:16 rbytes=5 wbytes=6 rios=1 wios=2 dbytes=0 dios=0\n",
        "hugetlb.2MB.current": "2097152\n", "hugetlb.2MB.events": "max 1\n",
    })  # fmt: skip
    assert converted["cpu"] == {
        "usage": {"total": 30000, "kernel": 10000, "user": 20000},
        "throttling": {"periods": 4, "throttledPeriods": 2, "throttledTime": 5000},
    }
    most = 2**64 - 1
    assert converted["memory"] == {
        "cache": 9, "raw": {"anon": 7, "file": 9},
        "usage": {"usage": 4096, "max": 8192, "limit": most, "failcnt": 3},
        "swap": {"usage": 4097, "limit": most, "failcnt": 0},
        "kernel": {"limit": 0, "failcnt": 0}, "kernelTCP": {"limit": 0, "failcnt": 0},
    }  # fmt: skip
    assert converted["pids"] == {"current": 2}
    assert converted["blkio"]["ioServiceBytesRecursive"] == [
        {"major": 8, "minor": 16, "op": "Read", "value": 5},
        {"major": 8, "minor": 16, "op": "Write", "value": 6},
        {"major": 8, "minor": 16, "op": "Discard"},
    ]
    assert converted["hugetlb"] == {"2MB": {"usage": 2097152, "failcnt": 1}}
    assert converted["network_interfaces"] is None


def test_statistics_of_a_hostile_guest_fit_in_64_bits() -> None:
    """Engines parse them as Go's uint64, and would fail with a larger number."""
    most = 2**64 - 1
    converted = convert({
        "cpu.stat": "".join(f"{name}_usec {most}\n" for name in ("usage", "user", "system", "throttled")),
        "memory.current": str(most), "memory.swap.current": str(most),
    })  # fmt: skip
    assert converted["cpu"]["usage"] == {"total": most, "kernel": most, "user": most}
    assert converted["cpu"]["throttling"] == {"throttledTime": most}
    assert converted["memory"]["swap"]["usage"] == most


@given(JSON)
def test_any_answer_of_a_guest_gives_valid_statistics(answer: Any) -> None:
    try:
        converted = convert(read_answer(Statistics(container="c1"), answer))
    except VmError:
        assert not isinstance(answer, dict) or not all(isinstance(text, str) for text in answer.values())
        return
    assert converted["cpu"]["usage"]["user"] == 0


@given(st.dictionaries(st.sampled_from(["cpu.stat", "memory.stat", "io.stat", "memory.max"]), st.text(max_size=60)))
def test_any_text_of_a_guest_gives_valid_statistics(texts: dict[str, str]) -> None:
    assert set(convert(texts)) >= {"cpu", "memory", "pids", "blkio"}


@given(JSON)
def test_any_answer_of_a_guest_gives_a_valid_list_of_processes(answer: Any) -> None:
    try:
        processes = read_answer(Listing(container="c1"), answer)
    except VmError:
        assert answer != []
        return
    assert len(table(rows(processes), now=1e9)) == len(processes) + 1


PROCESS = {"uid": 0, "pid": 1, "parent": 0, "age": 100, "terminal": "?", "used": 10, "command": "/bin/sh\x1b[2J"}


def listed(*processes: object) -> list[Row]:
    """The rows of the agent's answer."""
    return rows(read_answer(Listing(container="c1"), list(processes)))


@pytest.mark.parametrize(
    ("answer", "refusal"),
    [
        (None, "Expected `array`, got `null`"),
        ({"uid": 0}, "Expected `array`, got `object`"),
        ([PROCESS, ["no"]], "[1]: Expected `object`, got `array`"),
        ([[0, 1, 0, 100, "?", 10, "sh"]], "[0]: Expected `object`, got `array`"),
        ([{**PROCESS, "uid": True}], "[0].uid: Expected `int`, got `bool`"),
        ([{**PROCESS, "age": 0.5}], "[0].age: Expected `int`, got `float`"),
        ([{**PROCESS, "pid": "1"}], "[0].pid: Expected `int`, got `str`"),
        ([{**PROCESS, "terminal": 0}], "[0].terminal: Expected `str`, got `int`"),
        ([{**PROCESS, "command": None}], "[0].command: Expected `str`, got `null`"),
        ([{key: PROCESS[key] for key in PROCESS if key != "used"}], "[0]: Object missing required field `used`"),
    ],
)
def test_invalid_list_of_processes_is_refused(answer: object, refusal: str) -> None:
    with pytest.raises(VmError) as caught:
        read_answer(Listing(container="c1"), answer)
    assert caught.value.message == f"the guest's answer to listing is unusable: {refusal}"


@pytest.mark.parametrize(
    ("answer", "refusal"),
    [
        (None, "Expected `object`, got `null`"),
        ([], "Expected `object`, got `array`"),
        ({"cpu.stat": ["\0"]}, "[...]: Expected `str`, got `array`"),
        ({"memory.current": 3}, "[...]: Expected `str`, got `int`"),
        ({"memory.current": None}, "[...]: Expected `str`, got `null`"),
    ],
)
def test_invalid_statistics_are_refused(answer: object, refusal: str) -> None:
    with pytest.raises(VmError) as caught:
        read_answer(Statistics(container="c1"), answer)
    assert caught.value.message == f"the guest's answer to statistics is unusable: {refusal}"


def test_rows_are_bounded_and_printable() -> None:
    huge = {**PROCESS, "uid": 2**70, "pid": -1, "used": -(2**70), "terminal": "\ud800\n", "command": "x" * 5000}
    [row] = listed(huge)
    assert (row.uid, row.pid, row.used, row.terminal, row.command) == (2**63, 0, 0, "??", "x" * 4096)
    assert len(listed(*[PROCESS] * 1001)) == 1000
    assert json.loads(json.dumps(listed(PROCESS))) == [[0, 1, 0, 100, "?", 10, "/bin/sh?[2J"]]


def test_table_has_the_format_of_ps() -> None:
    other = {"uid": 1000, "pid": 2, "parent": 1, "age": 0, "terminal": "pts/0", "used": 3661, "command": "x"}
    lines = [line.split() for line in table(listed(PROCESS, other), now=1_000_000)]
    assert [(row[0], row[1], row[2], row[3], *row[5:]) for row in lines] == [
        ("UID", "PID", "PPID", "C", "TTY", "TIME", "CMD"),
        ("0", "1", "0", "10", "?", "00:00:10", "/bin/sh?[2J"),
        ("1000", "2", "1", "0", "pts/0", "01:01:01", "x"),
    ]


def test_output_of_the_hosts_ps_is_filtered() -> None:
    lines = ["UID PID CMD", "root 12 12", "root 1 12", "root 123 x"]
    assert chosen(lines, [12, 7]) == ["UID PID CMD", "root 12 12"]
    with pytest.raises(HostError, match="leave the column PID out"):
        chosen(["CMD", "x"], [1])


def test_processes_are_read_from_proc(tmp_path: Path) -> None:
    (tmp_path / "uptime").write_text("1000.00 1.0\n")
    for pid, parent, spaces in ((50, 1, "50 1"), (51, 50, "51 2"), (1, 0, "1")):
        (tmp_path / str(pid)).mkdir()
        fields = ["S", str(parent), "0", "0", str(136 << 8 | 3 if pid == 51 else 0), "0", *["0"] * 5, "150", "50"]
        fields += [*["0"] * 6, "90000", "0"]
        (tmp_path / str(pid) / "stat").write_text(f"{pid} (a ) b) {' '.join(fields)}\n")
        (tmp_path / str(pid) / "cmdline").write_bytes(b"" if pid == 51 else b"/bin/sh\0-c\0x\0")
        (tmp_path / str(pid) / "status").write_text(f"Name:\tx\nNSpid:\t{spaces}\n".replace(" ", "\t"))
    listed = rows(read_answer(Listing(container="c1"), listing([51, 50, 99], proc=str(tmp_path))))
    uid = os.getuid()
    assert listed == [(uid, 1, 0, 100, "?", 2, "/bin/sh -c x"), (uid, 2, 1, 100, "pts/3", 2, "[a ) b]")]


def test_removed_cgroup_has_no_statistics(tmp_path: Path) -> None:
    gone = Cgroup("/hawse/c1", root=str(tmp_path))
    assert (gone.members(), gone.statistics(), gone.oom_kills()) == ([], {}, 0)
    (tmp_path / "hawse" / "c1" / "sub").mkdir(parents=True)
    files = {
        "cgroup.procs": "1\n2\n", "sub/cgroup.procs": "3\n", "memory.events": "oom 4\noom_kill 2\n",
        "pids.max": "max\n", "hugetlb.2MB.max": "0\n", "cgroup.type": "domain\n",
    }  # fmt: skip
    for path, text in files.items():
        (tmp_path / "hawse" / "c1" / path).write_text(text)
    cgroup = Cgroup("/hawse/c1", root=str(tmp_path))
    assert (cgroup.members(), cgroup.oom_kills()) == ([1, 2, 3], 2)
    assert set(cgroup.statistics()) == {"memory.events", "pids.max", "hugetlb.2MB.max"}


@pytest.mark.parametrize(
    ("update", "guest"),
    [
        ({}, {"memory": {"limit": 64}, "cpu": {"shares": 512, "period": 1000}}),
        ({"memory": {"limit": 128}}, {"memory": {"limit": 128}, "cpu": {"shares": 512, "period": 1000}}),
        ({"memory": {"limit": 0, "swap": None}}, {"memory": {"limit": 64}, "cpu": {"shares": 512, "period": 1000}}),
        (
            {"cpu": {"quota": -1}, "memory": {"limit": -1}},
            {"cpu": {"shares": 512, "period": 1000}, "unified": {"cpu.max": "max", "memory.max": "max"}},
        ),
        ({"memory": {"swap": 64}}, {"memory": {"limit": 64, "swap": 64}, "cpu": {"shares": 512, "period": 1000}}),
        (
            {"memory": {"swap": -1}},
            {
                "memory": {"limit": 64}, "cpu": {"shares": 512, "period": 1000},
                "unified": {"memory.swap.max": "max"},
            },
        ),
        (
            {"pids": {"limit": 5}, "unified": {"memory.high": "9"}},
            {
                "memory": {"limit": 64}, "cpu": {"shares": 512, "period": 1000}, "pids": {"limit": 5},
                "unified": {"memory.high": "9"},
            },
        ),
        # Unchanged and empty values change nothing; device rules are ignored, as by runc.
        (
            {
                "blockIO": {"weight": 7}, "devices": [{"allow": True}], "hugepageLimits": [], "rdma": None,
                "network": {"classID": 0, "priorities": None}, "memory": None, "cpu": {"realtimeRuntime": 0},
            },
            {"memory": {"limit": 64}, "cpu": {"shares": 512, "period": 1000}},
        ),
    ],
)  # fmt: skip
def test_limits_are_merged(update: dict[str, Any], guest: dict[str, Any]) -> None:
    assert for_guest(merge(update, CURRENT)) == guest


@pytest.mark.parametrize(
    ("update", "words"),
    [
        ([], "not a JSON object"),
        ({"memory": {"limit": "64m"}}, "memory.limit: expected int"),
        ({"memory": {"limit": 10**30}}, "memory.limit: expected int <= 9223372036854775807"),
        ({"memory": {"swap": 10**30}}, "memory.swap: expected int <= 9223372036854775807"),
        ({"memory": {"reservation": -2}}, "memory.reservation: expected int >= -1"),
        ({"cpu": {"shares": -1}}, "cpu.shares: expected int >= 0"),
        ({"cpu": {"period": -5}}, "cpu.period: expected int >= 0"),
        ({"cpu": {"period": 2**64}}, "cpu.period: expected int < 2**64"),
        ({"cpu": {"shares": 10**30}}, "cpu.shares: expected int < 2**64"),
        ({"cpu": {"quota": -(2**63) - 1}}, "cpu.quota: expected int >= -9223372036854775808"),
        ({"pids": {"limit": 2**63}}, "pids.limit: expected int <= 9223372036854775807"),
        ({"cpu": {"cpus": "0\0"}}, "cpu.cpus: expected str matching regex"),
        ({"memory": {"kernel": 5}}, "memory.kernel cannot be changed"),
        ({"memory": {"disableOOMKiller": True}}, "memory.disableOOMKiller cannot"),
        ({"memory": {"swap": 63}}, "memory.swap 63"),
        ({"memory": {"checkBeforeUpdate": True}}, "memory.checkBeforeUpdate cannot"),
        ({"cpu": {"realtimePeriod": 5}}, "cpu.realtimePeriod cannot"),
        ({"blockIO": {"weight": 8}}, "blockIO cannot"),
        ({"hugepageLimits": [{"pageSize": "2MB", "limit": 1}]}, "hugepageLimits cannot"),
        ({"unified": {"io.max": "8:0"}}, "unified.io.max cannot"),
        ({"unified": {"memory.../x": "1"}}, "cannot be changed"),
    ],
)
def test_field_that_cannot_be_changed_is_named(update: Any, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        merge(update, CURRENT)
    assert words in caught.value.message


@given(JSON)
def test_any_update_of_an_engine_is_merged_or_refused(update: Any) -> None:
    try:
        merge(update, CURRENT)
    except ConfigError as error:
        assert error.message.startswith("update: ")


@pytest.mark.parametrize(
    ("update", "nothing"),
    [
        ({}, True),
        ({"memory": {"limit": 64, "reservation": 0}, "cpu": {"shares": 512}, "pids": None}, True),
        ({"cpu": {"cpus": "", "realtimeRuntime": 0}, "unified": {}, "memory": None}, True),
        ({"devices": [{"allow": True}], "unknown": {"x": 1}}, True),
        ({"blockIO": {"weight": 7}, "hugepageLimits": [], "network": {"classID": 0, "priorities": None}}, True),
        ({"memory": {"limit": 65}}, False),
        ({"memory": {"limit": 64, "swap": 128}}, False),
        ({"memory": {"limit": -1}}, False),
        ({"cpu": {"cpus": "0"}}, False),
        ({"pids": {"limit": 5}}, False),
        ({"unified": {"memory.high": "9"}}, False),
        # The monitor refuses these.
        ({"blockIO": {"weight": 8}}, False),
        ({"memory": {"kernel": 5}}, False),
        ({"cpu": "x"}, False),
        ({"memory": {"limit": 64.0}}, False),
        ([], False),
    ],
)
def test_update_that_changes_nothing_is_detected(update: Any, nothing: bool) -> None:
    current = limits_of(CURRENT)
    assert changes_nothing(update, current) is nothing
    if nothing:
        assert limits_of(merge(update, current)) == current


@given(JSON)
def test_update_that_changes_nothing_leaves_the_limits(update: Any) -> None:
    for document in (update, {"memory": update}, {"unified": update}, {"blockIO": update}):
        if changes_nothing(document, CURRENT):
            with suppress(ConfigError):  # a zero of another type
                assert merge(document, CURRENT) == CURRENT


@pytest.mark.parametrize(
    ("before", "after", "sent"),
    [
        ({"memory": {"limit": 64}}, {"memory": {"limit": 64}}, {}),
        ({"memory": {"limit": 64}, "pids": {"limit": 1}}, {"memory": {"limit": 64, "swap": 70}, "pids": {"limit": 1}},
         {"memory": {"limit": 64, "swap": 70}}),
        ({"unified": {"memory.high": "9", "pids.max": "7"}}, {"unified": {"memory.high": "8", "pids.max": "7"}},
         {"unified": {"memory.high": "8"}}),
        ({"memory": {"limit": 64}}, {"unified": {"memory.max": "max"}}, {"unified": {"memory.max": "max"}}),
        ({}, {"cpu": {"quota": 5, "period": 10}}, {"cpu": {"quota": 5, "period": 10}}),
    ],
)  # fmt: skip
def test_only_changed_limits_are_sent(before: dict[str, Any], after: dict[str, Any], sent: dict[str, Any]) -> None:
    assert difference(before, after) == sent


def test_cgroup_file_of_no_controller_is_accepted_unchanged() -> None:
    """Engines send config.json's `unified` again."""
    current = {"unified": {"hugetlb.2MB.max": "0", "memory.high": "9"}}
    assert merge(current, current) == current


@pytest.mark.parametrize(
    ("text", "size"), [("0", 0), ("512m", 512 << 20), ("1G", 1 << 30), ("2kb", 2048), ("3 MiB", 3 << 20), ("-1", -1)]
)
def test_sizes_are_parsed(text: str, size: int) -> None:
    assert parse_size("memory", text) == size


@pytest.mark.parametrize("text", ["", "m", "-2", "1x", "1.5.2g", "\u0661"])
def test_invalid_sizes_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match=r"update: --memory .* is not a size"):
        parse_size("memory", text)


@pytest.mark.parametrize(
    "options",
    [
        {"cpu-quota": "9999999999999999999"}, {"memory": "9999999p"}, {"cpu-share": str(2**64)}, {"cpu-share": "-1"},
        {"cpu-period": "-5"}, {"cpu-rt-period": "-5"}, {"blkio-weight": "-1"},
    ],
)  # fmt: skip
def test_numbers_of_more_than_64_bits_are_refused(options: dict[str, str]) -> None:
    with pytest.raises(UsageError, match="64 bits") as caught:
        from_options(options)
    assert caught.value.message.startswith(f"update: --{next(iter(options))} ")
    assert caught.value.hint


def test_options_become_resources() -> None:
    options = {"memory": "5k", "cpu-share": "7", "cpuset-cpus": "0-1", "cpu-quota": "-1"}
    assert from_options(options) == {"memory": {"limit": 5120}, "cpu": {"shares": 7, "cpus": "0-1", "quota": -1}}


@pytest.mark.parametrize(("text", "seconds"), [("5s", 5), ("1m30s", 90), ("250ms", 0.25), ("1.5h", 5400)])
def test_intervals_are_parsed(text: str, seconds: float) -> None:
    assert parse_interval(text) == seconds


@pytest.mark.parametrize("text", ["", "5", "s", "-5s", "0s", "5s5", "5 s"])
def test_invalid_intervals_are_refused(text: str) -> None:
    with pytest.raises(UsageError):
        parse_interval(text)
