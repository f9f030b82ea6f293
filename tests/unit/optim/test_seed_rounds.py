"""Entries of rounds and the methods' states: one encoding each, and nothing else is read."""

from __future__ import annotations

from contextlib import suppress

import msgpack
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from runnel.errors import PeerError
from runnel.optim.byte_scale import ByteScale
from runnel.optim.fedkseed import LocalStep, pack_steps
from runnel.optim.ferret import BlockScalars
from runnel.optim.just_one_byte import ByteState, pack_codes
from runnel.optim.seed_methods import (
    BlockMethod,
    LearningRate,
    OneByteMethod,
    PoolMethod,
    SeedMethod,
    largest_payload,
    pack_blocks,
    unpack_blocks,
)
from runnel.optim.seed_rounds import FULL_PROGRESS, RoundEntry

RATE = LearningRate(1e-3, 0.1)
METHODS: tuple[SeedMethod, ...] = (
    OneByteMethod(3, RATE),
    PoolMethod(50, 4, RATE),
    BlockMethod(2, 8, RATE),
)
SHARES = st.dictionaries(st.integers(0, 63), st.binary(max_size=40), max_size=8)


@given(SHARES, st.integers(0, FULL_PROGRESS))
def test_an_entry_is_read_as_it_was_written_whatever_the_order(
    shares: dict[int, bytes], progress: int
) -> None:
    entry = RoundEntry(progress, shares)
    turned = RoundEntry(progress, dict(reversed(list(shares.items()))))
    assert turned.encode() == entry.encode()
    read = RoundEntry.decode(entry.encode())
    assert (read.progress, dict(read.shares)) == (progress, shares)


@given(st.binary(max_size=60))
def test_other_bytes_are_refused_or_canonical(data: bytes) -> None:
    with suppress(PeerError):
        assert RoundEntry.decode(data).encode() == data


@pytest.mark.parametrize(
    "fields",
    [
        [0],
        [0, 1],
        [0, [[1]]],
        [0, [[64, b""]]],
        [0, [[-1, b""]]],
        [0, [[1, "text"]]],
        [0, [[[1], b""]]],
        [0, [[2, b""], [1, b""]]],
        [0, [[1, b"a"], [1, b"b"]]],
        [-1, []],
        [FULL_PROGRESS + 1, []],
        [True, []],
        ["0", []],
        {},
    ],
    ids=repr,
)
def test_fields_that_are_no_entry_are_refused(fields: object) -> None:
    with pytest.raises(PeerError, match="no round of shared seeds"):
        RoundEntry.decode(msgpack.packb(fields))


@pytest.mark.parametrize("method", METHODS, ids=lambda method: type(method).__name__)
def test_a_state_has_one_size_and_comes_back(method: SeedMethod) -> None:
    payloads = {
        "OneByteMethod": pack_codes([5, -127, None]),
        "PoolMethod": pack_steps([LocalStep(3, 7), LocalStep(49, -9)]),
        "BlockMethod": pack_blocks([BlockScalars(-3, b"\x01\x02"), BlockScalars(0, b"")]),
    }
    state, payload = method.first(), payloads[type(method).__name__]
    assert method.problem(payload) == ""
    for _ in range(30):
        packed = method.pack(state)
        assert len(packed) == method.state_bytes
        assert method.pack(method.unpack(packed)) == packed
        updates, state = method.take(state, {0: payload, 5: payload}, 0)
        assert sum(map(len, updates)) > 0
    assert method.pack(state) != method.pack(method.first())


def test_a_state_with_an_impossible_scale_is_refused() -> None:
    method = OneByteMethod(1, RATE)
    packed = bytearray(method.pack(ByteState(3, ByteScale(2, (1, 2)))))
    packed[-1] = 1  # a magnitude beyond those that count
    with pytest.raises(PeerError, match="scale"):
        method.unpack(bytes(packed))


@pytest.mark.parametrize(
    ("method", "payload", "why"),
    [
        (METHODS[0], b"", "0 bytes for 3 probes"),
        (METHODS[0], b"1234", "4 bytes for 3 probes"),
        (METHODS[1], b"", "no local step"),
        (METHODS[1], b"12", "three for each"),
        (METHODS[1], pack_steps([LocalStep(50, 1)]), "candidate 50 of 50"),
        (METHODS[1], b"\x00\x00\x80", "code -128"),
        (METHODS[1], pack_steps([LocalStep(1, 1)] * 5), "three for each"),
        (METHODS[2], pack_blocks([BlockScalars(0, b"1")]), "1 blocks of 2"),
        (
            METHODS[2],
            pack_blocks([BlockScalars(0, b"1" * 9), BlockScalars(0, b"")]),
            "9 directions",
        ),
        (METHODS[2], b"\x00\x00\x02\x00a", "cut off"),
        (METHODS[2], b"\x00\x00\x02", "cut off"),
        (METHODS[2], pack_blocks([BlockScalars(401, b"")] * 2), "out of range"),
        (METHODS[2], pack_blocks([BlockScalars(0, b"\x80")] * 2), "out of range"),
    ],
)
def test_a_contribution_that_is_none_is_named(method: SeedMethod, payload: bytes, why: str) -> None:
    assert why in method.problem(payload)


@given(st.binary(max_size=40))
def test_whatever_a_peer_sends_is_sound_or_named(payload: bytes) -> None:
    for method in METHODS:
        if not method.problem(payload):
            assert len(payload) <= largest_payload(method)
            method.take(method.first(), {63: payload}, FULL_PROGRESS)


def test_blocks_come_back() -> None:
    blocks = (BlockScalars(-400, b"\x01\xff"), BlockScalars(400, b""), BlockScalars(7, b"\x7f" * 8))
    assert unpack_blocks(pack_blocks(blocks)) == blocks


def test_the_learning_rate_falls_along_a_line_to_its_share() -> None:
    rates = [RATE.at(progress) for progress in (0, FULL_PROGRESS // 2, FULL_PROGRESS)]
    np.testing.assert_allclose(rates, [1e-3, 5.5e-4, 1e-4], rtol=1e-12)
    assert LearningRate(2.0).at(FULL_PROGRESS) == 2.0
