"""Events as lines of JSON and back: what a journal holds and what programs read."""

from __future__ import annotations

import json

from runnel.node.events import KINDS, Event, UnknownEvent
from runnel.node.json_fields import field_values, fields_from, to_float


def to_json(event: Event) -> str:
    """One line of JSON without a newline; NaN and infinities become the strings "nan", "inf", "-inf"."""
    if isinstance(event, UnknownEvent):
        return event.line
    values = {"event": type(event).__name__, **field_values(event)}
    return json.dumps(values, allow_nan=False)


def from_json(line: str) -> Event:
    """The event of one line; what is not one of ours becomes an `UnknownEvent`, never an exception.

    Fields that a newer version added are dropped, missing ones take their default.
    """
    try:
        raw = json.loads(line)
    except (ValueError, RecursionError):
        return UnknownEvent(unix_s=0.0, kind="not JSON", line=line)
    if not isinstance(raw, dict):
        return UnknownEvent(unix_s=0.0, kind="not an object", line=line)
    kind = KINDS.get(str(raw.get("event")))
    try:
        if kind is not None:
            return kind(**fields_from(kind, raw))
        unix_s = to_float(raw.get("unix_s", 0.0))
    except (TypeError, ValueError, OverflowError):
        unix_s = 0.0
    return UnknownEvent(unix_s=unix_s, kind=str(raw.get("event")), line=line)
