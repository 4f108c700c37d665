"""Control messages: calls, replies and events, as JSON on stream 0. Every received message is validated."""

from __future__ import annotations

import json

from hawse.errors import HawseError, LinkError, from_wire
from hawse.json_text import MAX_MESSAGE_DEPTH, Document, parse
from hawse.link.frames import CALL, CONTROL_STREAM, EVENT, REPLY, encode

TYPE_CHECKING = False  # typing's import costs a tenth of a second in a guest without KVM
if TYPE_CHECKING:
    pass

MAX_NAME = 64


def encode_call(number: int, method: str, params: Document) -> bytes:
    """A frame that calls ``method`` of the peer; the reply has the same number."""
    return _frame(CALL, {"id": number, "method": method, "params": params})


def encode_result(number: int, result: object) -> bytes:
    """The frame of a successful reply."""
    return _frame(REPLY, {"id": number, "result": result})


def encode_error(number: int, error: HawseError) -> bytes:
    """The frame of a reply with an error."""
    return _frame(REPLY, {"id": number, "error": error.to_wire()})


def encode_event(name: str, params: Document) -> bytes:
    """The frame of an event, which has no reply."""
    return _frame(EVENT, {"event": name, "params": params})


def decode_call(payload: bytes) -> tuple[int, str, Document]:
    """Number, method and parameters of a call. Raises :class:`LinkError` for an invalid message."""
    message = _object(payload)
    return _number(message), _name(message, "method"), _params(message)


def decode_reply(payload: bytes) -> tuple[int, object, HawseError | None]:
    """Number, result and error of a reply; the result is valid if the error is None."""
    message = _object(payload)
    error = from_wire(message["error"]) if "error" in message else None
    return _number(message), message.get("result"), error


def decode_event(payload: bytes) -> tuple[str, Document]:
    """Name and parameters of an event."""
    message = _object(payload)
    return _name(message, "event"), _params(message)


def _frame(kind: int, message: dict[str, object]) -> bytes:
    return encode(CONTROL_STREAM, kind, json.dumps(message, separators=(",", ":")).encode())


def _object(payload: bytes) -> Document:
    try:
        message = parse(payload, depth=MAX_MESSAGE_DEPTH, constants=True)
    except ValueError as error:
        raise LinkError(f"link: control message that is not JSON: {error}") from None
    if not isinstance(message, dict):
        raise LinkError("link: control message that is not a JSON object")
    return message


def _number(message: Document) -> int:
    number = message.get("id")
    if type(number) is not int or not 0 <= number < 2**53:
        raise LinkError("link: control message without a usable id")
    return number


def _name(message: Document, key: str) -> str:
    name = message.get(key)
    if not isinstance(name, str) or not 0 < len(name) <= MAX_NAME:
        raise LinkError(f"link: control message without a usable {key}")
    return name


def _params(message: Document) -> Document:
    params = message.get("params")
    if not isinstance(params, dict):
        raise LinkError("link: control message whose params are not an object")
    return params
