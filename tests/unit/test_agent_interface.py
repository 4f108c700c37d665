"""The calls and events between monitor and agent: names, fields and types are equal at both ends and in
docs/link.md."""

from __future__ import annotations

import ast
import inspect
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

import hawse.agent
from hawse.agent import server
from hawse.agent.calls.guest import Guest
from hawse.agent.container import running_nodes
from hawse.agent.server import Server
from hawse.agent.system.reaper import Reaper
from hawse.link import agreed
from hawse.link.blocking import Port
from hawse.monitor.agent import calls
from hawse.monitor.agent.calls import CALLS, WITH_STREAMS, Call, GuestSocket, LiveNode, SharedBind, answer_type
from hawse.monitor.agent.events import EVENTS
from tests.support.guest_kernel import FakeUevents
from tests.support.link_page import PAGE, page

_AGENT = os.path.dirname(os.path.abspath(hawse.agent.__file__))


def methods() -> dict[str, Callable[..., object]]:
    """The agent's table of calls."""
    port = Port(-1)
    return Server(port, Guest(port, reaper=Reaper(), uevents=FakeUevents(), load=lambda _names: None)).methods


def test_agent_has_exactly_one_method_for_each_call() -> None:
    assert methods().keys() == CALLS.keys()


def test_name_of_a_call_is_derived_from_its_type() -> None:
    assert all(name.replace("_", "") == call.__name__.lower() for name, call in CALLS.items())
    assert len(CALLS) == len({call.__name__ for call in CALLS.values()})


@pytest.mark.parametrize("name", CALLS)
def test_parameters_of_a_method_are_the_fields_of_its_call(name: str) -> None:
    """The server removes ``descriptors``. The monitor sends every field, so the agent needs no default values."""
    parameters = inspect.signature(methods()[name]).parameters
    assert {each.kind for each in parameters.values()} <= {inspect.Parameter.KEYWORD_ONLY}
    assert all(each.default is inspect.Parameter.empty for each in parameters.values())
    types = {field: _type_in_the_agent(text) for field, text in CALLS[name].__annotations__.items()}
    assert {field: each.annotation for field, each in parameters.items()} == {
        field: text for field, text in types.items() if field != "descriptors"
    }


def _type_in_the_agent(text: str) -> str:
    """An annotation of a call as the agent has it, for which an object is a dictionary."""
    return re.sub(r"\b(SharedBind|GuestSocket|LiveNode)\b", "Document", text)


@pytest.mark.parametrize("name", CALLS)
def test_method_returns_a_value_if_its_call_has_an_answer(name: str) -> None:
    """The answers themselves are checked in each test that calls the real agent (tests/support/agent.py)."""
    answers = inspect.signature(methods()[name]).return_annotation != "None"
    assert answers == (answer_type(CALLS[name]) is not type(None))


def test_server_opens_streams_for_calls_with_streams() -> None:
    assert sorted(server.OPENS_STREAMS) == sorted(WITH_STREAMS)
    assert all("process" in CALLS[name].__struct_fields__ for name in WITH_STREAMS)


@pytest.mark.parametrize(
    ("method", "parameter", "kind"), [("create", "binds", SharedBind), ("create", "sockets", GuestSocket)]
)
def test_agent_reads_the_fields_of_objects_in_calls(method: str, parameter: str, kind: type[Any]) -> None:
    assert set(_read(method, parameter)) == set(kind.__struct_fields__)


def test_live_node_of_the_agent_has_the_fields_of_the_calls() -> None:
    parameters = inspect.signature(running_nodes.LiveNode).parameters
    assert {name: each.annotation for name, each in parameters.items()} == LiveNode.__annotations__


def test_all_objects_in_calls_are_tested() -> None:
    structs = {kind for kind in vars(calls).values() if isinstance(kind, type) and issubclass(kind, msgspec.Struct)}
    of_module = {kind for kind in structs if kind.__module__ == calls.__name__ and not issubclass(kind, Call)}
    assert of_module == {SharedBind, GuestSocket, LiveNode}


def _read(method: str, parameter: str) -> Iterator[str]:
    """The names by which a method, with the private methods of its class, reads the objects of a list."""
    owner = methods()[method].__self__  # type: ignore[attr-defined]  # it is a bound method
    [definition] = ast.parse(inspect.getsource(type(owner))).body
    assert isinstance(definition, ast.ClassDef)
    functions = [f for f in definition.body if isinstance(f, ast.FunctionDef) and f.name.startswith(("_", method))]
    for comprehension in (node for function in functions for node in ast.walk(function)):
        if not isinstance(comprehension, ast.ListComp):
            continue
        [loop] = comprehension.generators
        if ast.unparse(loop.iter) == parameter:
            variable = ast.unparse(loop.target)
            for node in ast.walk(comprehension.elt):
                if isinstance(node, ast.Subscript) and ast.unparse(node.value) == variable:
                    yield ast.literal_eval(node.slice)


def sent() -> Iterator[tuple[str, set[str]]]:
    """Name and fields of each event in the agent's sources."""
    for directory, _, names in os.walk(_AGENT):
        for name in names:
            if name.endswith(".py"):
                yield from _events_of(Path(directory, name).read_text())


def _events_of(text: str) -> Iterator[tuple[str, set[str]]]:
    for call in ast.walk(ast.parse(text)):
        if not isinstance(call, ast.Call):
            continue
        function = ast.unparse(call.func)
        if function.endswith(("guest.send_event", "guest.report")):
            yield ast.literal_eval(call.args[0]), _keys(call.args[1])
        elif function == "self._announced.announce":
            fields = call.args[1]
            if isinstance(fields, ast.Name):
                fields = _assigned(text, fields.id)
            yield ast.literal_eval(call.args[0]), _keys(fields) | {"connection"}


def _assigned(text: str, name: str) -> ast.expr:
    """The only object that a variable of this name is assigned."""
    [value] = [
        node.value
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.Assign) and [ast.unparse(target) for target in node.targets] == [name]
    ]
    return value


def _keys(fields: ast.expr) -> set[str]:
    assert isinstance(fields, ast.Dict)
    return {ast.literal_eval(key) for key in fields.keys if key is not None}


def test_agent_sends_exactly_the_events_of_the_interface() -> None:
    events = list(sent())
    assert {name for name, _ in events} == EVENTS.keys()
    for name, fields in events:
        assert fields == set(EVENTS[name].__struct_fields__), name


def test_agent_and_host_use_the_same_directories() -> None:
    named = set()
    for directory, _, names in os.walk(_AGENT):
        for name in names:
            if name.endswith(".py"):
                named |= set(re.findall(r"\{(?:[a-z_]+\.)*run\}/([a-z]+)", Path(directory, name).read_text()))
    places = {agreed.SHARE, agreed.BINDS, agreed.SOCKETS, agreed.NOTIFY, agreed.MEMORY, agreed.HUGEPAGES}
    assert {place.removeprefix(f"{agreed.RUN}/") for place in places} <= named


def test_docs_link_lists_all_calls_and_events() -> None:
    assert PAGE.read_text() == page(), "run python -m tests.support.link_page"
    assert f"Its `protocol` is {agreed.PROTOCOL}." in PAGE.read_text()
