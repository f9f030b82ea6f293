"""Events: JSON both ways, the diary, and strangers' lines."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runnel.node import events
from runnel.node.event_lines import from_json, to_json
from runnel.node.events import (
    KINDS,
    Event,
    InnerProgress,
    RoundDecided,
    TrafficCounted,
    UnknownEvent,
    diary,
)
from runnel.node.json_fields import field_values
from runnel.node.wording import count_text, size_text

VALUES = {
    "float": st.floats(allow_nan=False),
    "int": st.integers(-(2**70), 2**70),
    "bool": st.booleans(),
    "str": st.text(),
    "tuple[str, ...]": st.lists(st.text()).map(tuple),
    "Mapping[str, int]": st.dictionaries(st.text(), st.integers()),
}
ONLY_FOR_MACHINES = {
    "RoundCommitted",
    "SetDecided",
    "InnerProgress",
    "MergeApplied",
    "WindowStarted",
    "TrafficCounted",
}


def any_event() -> st.SearchStrategy[Event]:
    def of(kind: type[Event]) -> st.SearchStrategy[Event]:
        return st.builds(kind, **{f.name: VALUES[str(f.type)] for f in dataclasses.fields(kind)})

    return st.sampled_from(sorted(KINDS.values(), key=lambda kind: kind.__name__)).flatmap(of)


def example(kind: type[Event]) -> Event:
    samples: dict[str, Any] = {
        "float": 2.5,
        "int": 3,
        "bool": False,
        "str": "7f3a91c2",
        "tuple[str, ...]": ("7f3a91c2",),
        "Mapping[str, int]": {"reduce": 5},
    }
    return kind(**{f.name: samples[str(f.type)] for f in dataclasses.fields(kind)})


@given(any_event())
def test_every_event_survives_json(event: Event) -> None:
    line = to_json(event)
    assert "\n" not in line
    assert from_json(line) == event


def test_the_table_of_kinds_is_complete() -> None:
    defined = {
        name
        for name, value in vars(events).items()
        if isinstance(value, type) and issubclass(value, Event)
    }
    assert set(KINDS) == defined - {"Event", "UnknownEvent"}


@pytest.mark.parametrize("kind", KINDS.values(), ids=list(KINDS))
def test_each_event_is_one_line_for_a_person_or_declared_to_be_for_machines(
    kind: type[Event],
) -> None:
    line = diary(example(kind))
    if kind.__name__ in ONLY_FOR_MACHINES:
        assert line is None
    else:
        assert line is not None
        assert line.strip()
        assert "\n" not in line


@pytest.mark.parametrize("kind", KINDS.values(), ids=list(KINDS))
def test_events_are_frozen_and_say_when_they_fire(kind: type[Event]) -> None:
    assert kind.__doc__
    with pytest.raises(dataclasses.FrozenInstanceError):
        example(kind).unix_s = 0.0  # type: ignore[misc]


def test_a_decided_round_reads_like_the_documented_line() -> None:
    decided = RoundDecided(
        unix_s=1.0,
        round=1204,
        kind="record",
        fragment=0,
        contributors=("a", "b", "c", "d"),
        members=5,
        seconds=2.1,
        sent_bytes=312_044,
    )
    assert diary(decided) == "round 1204 done: 4 of 5 peers, 312 kB up, 2.1 s"
    assert diary(dataclasses.replace(decided, missed=True)) is None
    aborted = diary(dataclasses.replace(decided, kind="abort", waited_for="7f3a91c2"))
    assert aborted is not None
    assert "aborted" in aborted
    assert "waited for 7f3a91c2" in aborted


def test_values_that_are_not_finite_survive_as_plain_json() -> None:
    event = InnerProgress(
        unix_s=1.0, step=1, round=0, loss=math.nan, tokens=1, tokens_per_s=math.inf, lr=0.1
    )
    line = to_json(event)
    json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    back = from_json(line)
    assert isinstance(back, InnerProgress)
    assert math.isnan(back.loss)
    assert back.tokens_per_s == math.inf


@given(st.text())
def test_no_line_is_a_crash(line: str) -> None:
    assert isinstance(from_json(line), Event)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)


@given(st.sampled_from(sorted(KINDS)), st.data())
def test_wrong_types_in_known_events_become_unknown_or_the_right_types(
    kind: str, data: st.DataObject
) -> None:
    raw = {f.name: data.draw(json_values) for f in dataclasses.fields(KINDS[kind])}
    event = from_json(json.dumps({"event": kind, **raw}))
    if not isinstance(event, UnknownEvent):
        for f in dataclasses.fields(event):
            expected = {"float": float, "int": int, "bool": bool, "str": str}.get(
                str(f.type), tuple if str(f.type).startswith("tuple") else Mapping
            )
            assert isinstance(getattr(event, f.name), expected)


def test_lines_of_a_newer_version_are_kept_and_their_new_fields_dropped() -> None:
    unknown = from_json('{"event": "Teleported", "unix_s": 5.0, "to": "mars"}')
    assert unknown == UnknownEvent(
        unix_s=5.0, kind="Teleported", line='{"event": "Teleported", "unix_s": 5.0, "to": "mars"}'
    )
    assert from_json(to_json(unknown)) == unknown
    known = TrafficCounted(unix_s=1.0, sent={"reduce": 1}, received={})
    assert from_json(to_json(known)[:-1] + ', "colour": "blue"}') == known


def test_a_missing_field_takes_its_default_or_makes_the_line_unknown() -> None:
    assert from_json('{"event": "TrafficCounted", "unix_s": 1}') == TrafficCounted(unix_s=1.0)
    assert isinstance(from_json('{"event": "MemberJoined", "unix_s": 1}'), UnknownEvent)


def test_a_field_of_the_wrong_shape_is_refused_by_name() -> None:
    assert field_values(TrafficCounted(unix_s=1.0, sent={"a": 1}))["sent"] == {"a": 1}
    assert isinstance(
        from_json('{"event": "TrafficCounted", "unix_s": 1, "sent": {"a": true}}'), UnknownEvent
    )


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1 kB"),
        (312_044, "312 kB"),
        (999_600, "1 MB"),
        (1_250_000_000, "1.25 GB"),
        (4e15, "4,000 TB"),
    ],
)
def test_sizes_are_three_digits_with_a_unit(size: float, text: str) -> None:
    assert size_text(size) == text


def test_counts_have_their_plural() -> None:
    assert [count_text(n, "address") for n in (0, 1, 2)] == [
        "0 addresses",
        "1 address",
        "2 addresses",
    ]
    assert count_text(3, "peer") == "3 peers"
