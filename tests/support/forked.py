"""Run a function in a forked child, for tests that change their process permanently: namespaces, privileges or root."""

from __future__ import annotations

import json
import os
import traceback
from collections.abc import Callable
from typing import Any


def in_child(act: Callable[[], Any]) -> Any:
    """Call ``act`` in a forked child; returns its value, passed as JSON. Raises AssertionError if the child raises."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            answer = {"returned": act()}
        except BaseException:
            answer = {"raised": traceback.format_exc()}
        os.write(writing, json.dumps(answer).encode())
        os._exit(0)
    os.close(writing)
    with open(reading, "rb") as file:
        answer = json.loads(file.read())
    os.waitpid(child, 0)
    assert "raised" not in answer, answer["raised"]
    return answer["returned"]


def outcome(act: Callable[[], object]) -> str:
    """The kernel's answer to an attempt: "done", or the error's text."""
    try:
        act()
    except OSError as error:
        return os.strerror(error.errno or 0)
    return "done"
