"""JSON from users, engines, the guest and files: documents that would overflow Python's parser, or functions that walk
its result."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hawse import json_text
from hawse.agent.container.crun import read_log
from hawse.cache import results
from hawse.cli.runc import update
from hawse.config import load_config
from hawse.errors import ConfigError, HawseError, LinkError
from hawse.install import default_config, edits
from hawse.link import messages
from hawse.log import Log
from hawse.monitor.joined_namespaces import own_paths
from hawse.oci.default_spec import example
from hawse.oci.guest.specification import plan_guest
from hawse.oci.load import load_bundle, load_process
from hawse.oci.pods import SINGLE, role_of
from hawse.state import timeline
from hawse.state.store import Store
from hawse.vfio.bind import records
from hawse.vm import size

#: Around the limit, around the depth at which only a walk of the result fails, around that at which the parser fails,
#: and far deeper.
DEPTHS = [101, 300, 480, 900, 985, 1100, 100_000]


def lists(depth: int) -> str:
    return "[" * depth + "]" * depth


def objects(depth: int) -> str:
    return '{"a":' * (depth - 1) + "{}" + "}" * (depth - 1)


@pytest.mark.parametrize("nested", [lists, objects])
def test_nesting_is_limited(nested: Callable[[int], str]) -> None:
    assert json_text.parse(nested(100)) == json.loads(nested(100))
    for depth in DEPTHS:
        with pytest.raises(ValueError, match=r"^objects and lists are nested more than 100 levels deep$"):
            json_text.parse(nested(depth))
    assert json_text.parse(nested(101), depth=101) == json.loads(nested(101))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("9" * 5000, "a number has more digits than Python converts"),
        ("NaN", "NaN is not a JSON number"),
        ("[-Infinity]", "-Infinity is not a JSON number"),
        ("1e999", "1e999 is more than a number of 64 bits can hold"),
        ('{"a": [-1e309]}', "-1e309 is more than a number of 64 bits can hold"),
        ('{"a": 1,}', "Expecting property name"),
        (b"\xff", "invalid start byte"),
    ],
)
def test_text_that_is_not_json(text: str | bytes, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        json_text.parse(text)


def test_infinity_is_read_where_python_writes_it() -> None:
    assert json_text.parse("[1e999, -Infinity]", constants=True) == [float("inf"), float("-inf")]
    assert json_text.parse("[1e308, 1.5]") == [1e308, 1.5]


@pytest.mark.parametrize("form", [str, lambda text: text.encode(), lambda text: text.encode("utf-16")])
def test_depth_is_only_walked_where_there_are_brackets_enough(
    monkeypatch: pytest.MonkeyPatch, form: Callable[[str], Any]
) -> None:
    """A walk takes as long as the parsing. Brackets in texts count, too, so that the count is never too small."""
    walked: list[int] = []

    def count_levels(count: int) -> range:
        walked.append(count)
        return range(count)

    monkeypatch.setattr(json_text, "range", count_levels, raising=False)
    flat = json.dumps({"a": list(range(1000)), "b": "[" * 90})
    assert json_text.parse(form(flat)) == json.loads(flat)
    assert walked == []
    wide = json.dumps([[]] * 200)
    assert json_text.parse(form(wide)) == json.loads(wide)
    assert walked
    with pytest.raises(ValueError, match="nested more than 3 levels deep"):
        json_text.parse(form(lists(4)), depth=3)


def bundle(directory: Path, text: str) -> Path:
    (directory / "rootfs").mkdir(exist_ok=True)
    document = json.dumps(example())
    (directory / "config.json").write_text(f'{document[:-1]},"x": {text}}}')
    return directory


def file(directory: Path, text: str) -> str:
    path = directory / "file.json"
    path.write_text(text)
    return str(path)


def resources(directory: Path, text: str) -> object:
    return update._read(file(directory, f'{{"x": {text}}}'))


def process(directory: Path, text: str) -> object:
    return load_process(file(directory, f'{{"cwd": "/", "args": ["x"], "x": {text}}}'))


@pytest.mark.parametrize("text", [*(lists(depth) for depth in DEPTHS), objects(500), "9" * 5000, "NaN", "1e999"])
@pytest.mark.parametrize(
    ("read", "error", "words"),
    [
        (lambda at, text: load_bundle(str(bundle(at, text))), ConfigError, "{at}/config.json: "),
        (process, ConfigError, "{at}/file.json: "),
        (resources, ConfigError, "update: {at}/file.json: not JSON: "),
        (lambda at, text: timeline.read(file(at, text)), ConfigError, "timeline {at}/file.json: not a trace"),
        (lambda _, text: edits._json(text), ConfigError, "not JSON: "),
        (lambda _, text: messages.decode_call(text.encode()), LinkError, "link: control message that is not JSON: "),
        (lambda _, text: messages.decode_reply(text.encode()), LinkError, "link: control message that is not JSON: "),
        (lambda _, text: messages.decode_event(text.encode()), LinkError, "link: control message that is not JSON: "),
    ],
)
def test_sentence_names_the_document(
    tmp_path: Path, read: Callable[[Path, str], object], error: type[HawseError], words: str, text: str
) -> None:
    if error is LinkError and text in (lists(101), "NaN", "1e999"):
        text = lists(151)
    with pytest.raises(error) as caught:
        read(tmp_path, text)
    assert caught.value.message.startswith(words.format(at=tmp_path))


@pytest.mark.parametrize("text", [*(lists(depth) for depth in DEPTHS), objects(500), "9" * 5000, "NaN"])
def test_document_that_others_report_counts_as_none(tmp_path: Path, text: str) -> None:
    bundle(tmp_path, text)
    assert role_of(str(tmp_path)) == (SINGLE, "")
    assert own_paths(str(tmp_path)) == {}
    path = file(tmp_path, text)
    assert size._object(text) == {}
    assert results._entries(path) == []
    assert read_log(path) == ""
    with pytest.raises(ValueError, match=r"not JSON|more than 65536 bytes"):
        records._parse(text.encode(), "0000:00:00.0")
    store = Store(str(tmp_path), "c1")
    store.make()
    Path(store.path, "state.json").write_text(text)
    with pytest.raises(HawseError, match="belongs to another runtime"):
        store.read()
    Log(path, form="json").error("x")
    assert Path(path).read_text().startswith(text)


def test_toml_that_is_nested_deeply(tmp_path: Path) -> None:
    text = f"a = {lists(2000)}"
    with pytest.raises(ConfigError, match=rf"^configuration {tmp_path}/file\.json: nested too deeply$"):
        load_config(file(tmp_path, text))
    assert default_config.notes(text, kvm=lambda: True) == ["hawse cannot read it, it is nested too deeply"]
    with pytest.raises(ConfigError, match=r"not TOML: .* nested more than 100 levels deep"):
        edits._toml(text)


@pytest.mark.parametrize(
    "change",
    [
        lambda spec, text: spec.update(annotations={"a": text, text: "b"}),
        lambda spec, text: spec["process"]["args"].append(text),
        lambda spec, text: spec["process"]["env"].append(f"A={text}"),
        lambda spec, text: spec.update(hostname=text),
        lambda spec, text: spec["mounts"].append({"destination": f"/{text}", "type": "tmpfs", "source": text}),
        lambda spec, text: spec.update({"x": {text: [text]}}),
    ],
)
def test_half_of_a_surrogate_pair_is_replaced_as_in_go(tmp_path: Path, change: Callable[[Any, str], None]) -> None:
    raws = []
    for text in ("a\ud800b", "a\ufffdb"):
        spec = example()
        change(spec, text)
        (tmp_path / "rootfs").mkdir(exist_ok=True)
        (tmp_path / "config.json").write_text(json.dumps(spec))
        bundle = load_bundle(str(tmp_path))
        plan_guest(bundle, container="c1")
        raws.append(bundle.raw)
    assert raws[0] == raws[1]
