"""A run's history in bytes: compact, checked, and told apart from what is not one."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runnel.errors import InputFileError, RunMismatchError
from runnel.hashing import digest
from runnel.optim.fixed_point import MasterWeights
from runnel.optim.just_one_byte import ByteState, take_step
from runnel.optim.seed_log import LogHead, LogReader, encode_chunk, encode_log
from runnel.optim.seed_updates import SeedUpdate

HEAD = LogHead(digest(b"base"), (5, 2**32 - 1))


def history(steps: int, peers: int = 8) -> list[SeedUpdate]:
    state, updates = ByteState(), []
    generator = np.random.default_rng(0)
    for step in range(steps):
        scalars = generator.standard_normal(peers)
        codes = {64 * peer: state.scale.code_of(g) or 0 for peer, g in enumerate(scalars)}
        update, state = take_step(state, codes, lr=1e-3 * (1 - step / (steps + 1)))
        updates.append(update)
    return updates


def table(updates: Any) -> list[tuple[Any, ...]]:
    return [
        (u.step, u.counter, u.unit, u.tensor, u.slots.tolist(), u.codes.tolist()) for u in updates
    ]


def read(data: bytes) -> list[SeedUpdate]:
    return [update for chunk in LogReader(data, "a.log").chunks() for update in chunk]


UPDATE = st.builds(
    lambda counter, unit, tensor, pairs: (counter, unit, tensor, pairs),
    st.integers(0, 2**32 - 1),
    st.integers(0, 2**31 - 1),
    st.integers(-1, 2**31 - 1),
    st.lists(st.tuples(st.integers(0, 2**32 - 1), st.integers(1 - 2**31, 2**31 - 1)), max_size=5),
)


@settings(deadline=None)
@given(
    steps=st.lists(st.lists(UPDATE, min_size=1, max_size=3), max_size=6),
    first=st.integers(0, 2**31),
)
def test_what_is_written_is_read(steps: list[list[Any]], first: int) -> None:
    updates = [
        SeedUpdate(
            step=first + number,
            counter=counter,
            unit=unit,
            tensor=tensor,
            slots=np.array([slot for slot, _ in pairs], np.uint32),
            codes=np.array([code for _, code in pairs], np.int32),
        )
        for number, groups in enumerate(steps)
        for counter, unit, tensor, pairs in groups
    ]
    data = b"".join(encode_log(LogHead(HEAD.base, HEAD.key, ("w",), first), updates))
    reader = LogReader(data, "a.log")
    assert reader.head == LogHead(HEAD.base, HEAD.key, ("w",), first)
    assert table(read(data)) == table(updates)


def test_a_thousand_steps_of_eight_peers_take_little_more_than_their_bytes() -> None:
    data = b"".join(encode_log(HEAD, history(3000)))
    assert len(data) < 1.5 * 3000 * 8
    assert len(list(LogReader(data, "a.log").chunks())) == 3


def test_a_base_and_its_log_give_the_runs_weights() -> None:
    base = {"w": np.linspace(-2, 2, 5000, dtype=np.float32)}
    weights = MasterWeights.from_arrays(base, HEAD.key)
    head = LogHead.of(weights)
    assert head == LogHead(weights.digest(), HEAD.key, ("w",))
    updates = history(50)
    data = b"".join(encode_log(head, updates))
    for update in updates:
        weights.apply([update])
    late = MasterWeights.from_arrays(base, HEAD.key)
    reader = LogReader(data, "a.log")
    reader.require_base(late.digest())
    for chunk in reader.chunks():
        late.apply(chunk)
    assert late.digest() == weights.digest()


def test_another_base_is_refused_by_name() -> None:
    data = b"".join(encode_log(HEAD, history(2)))
    other = digest(b"other")
    with pytest.raises(RunMismatchError) as caught:
        LogReader(data, "a.log").require_base(other)
    assert HEAD.base.hex() in str(caught.value)
    assert other.hex() in str(caught.value)


def test_every_cut_is_found() -> None:
    data = b"".join(encode_log(HEAD, history(40)))
    for size in range(len(data)):
        with pytest.raises(InputFileError, match=r"a\.log"):
            read(data[:size])
    with pytest.raises(InputFileError, match="cut off"):
        read(data[:-1])
    with pytest.raises(InputFileError, match="damaged"):
        read(data + b"\x00")


def test_every_changed_byte_is_found() -> None:
    data = b"".join(encode_log(HEAD, history(3)))
    for place in range(len(data)):
        for flip in (1, 0x80):
            broken = bytearray(data)
            broken[place] ^= flip
            with pytest.raises(InputFileError):
                read(bytes(broken))


def test_a_missing_chunk_is_a_gap_and_a_swapped_one_is_found() -> None:
    parts = list(encode_log(HEAD, history(3000)))
    assert len(parts) == 5
    head, first, second, third, end = parts
    with pytest.raises(InputFileError, match="step 1024, expected step 0: steps are missing"):
        read(head + second + third + end)
    with pytest.raises(InputFileError, match="step 2048, expected step 1024"):
        read(head + first + third + end)
    with pytest.raises(InputFileError, match="step 3000, expected step 2048"):
        read(head + first + second + end)
    foreign = encode_chunk(history(3000)[1024:2048], bytes(16))
    with pytest.raises(InputFileError, match="damaged"):
        read(head + first + foreign + third + end)


def test_a_writer_may_leave_no_step_out() -> None:
    updates = history(5)
    for bad in (updates[1:], updates[:2] + updates[3:], [updates[0], updates[0], updates[2]]):
        with pytest.raises(ValueError, match="step"):
            list(encode_log(HEAD, bad))
    with pytest.raises(ValueError, match="gap"):
        encode_chunk([], bytes(16))


def test_other_files_and_versions_are_told_apart() -> None:
    with pytest.raises(InputFileError, match="is no log of seeds"):
        LogReader(b"PK\x03\x04", "a.log")
    with pytest.raises(InputFileError, match="version '7', expected 1"):
        LogReader(b"runnel seeds 7\n" + bytes(40), "a.log")
    with pytest.raises(InputFileError, match="is no log of seeds"):
        LogReader(b"", "a.log")
