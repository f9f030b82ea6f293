"""What an encoding lost fades, where a run says so, with each record that includes its peer, and only then."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from runnel.hashing import digest
from runnel.optim.codecs import codec_named
from runnel.optim.outer import Sgd
from runnel.optim.store import Outcome, OuterStore, StoreParts
from runnel.verification import aggregator_named

HALF, SIZE = 4096, 8192
BOUNDS = ((0, HALF), (HALF, SIZE))
ZEROS = tuple(bytes(4 * HALF) for _ in BOUNDS)
CODEC = codec_named("int8")


def store_of(decay: float) -> OuterStore:
    parts = StoreParts(
        codec=CODEC,
        result_codec=codec_named("fp32"),
        aggregator=aggregator_named("weighted-mean"),
        optimizer=Sgd(1.0),
        root_of=lambda views: digest(*(bytes(view) for view in views)),
        decay=decay,
    )
    return OuterStore([np.zeros(SIZE, np.float32)], parts)


def learned(seed: int = 1) -> Any:
    return np.random.default_rng(seed).normal(size=SIZE).astype(np.float32)


def decoded(payloads: Any) -> Any:
    out = np.empty(SIZE, np.float32)
    for payload, (low, high) in zip(payloads, BOUNDS, strict=True):
        CODEC.decode(payload, out[low:high])
    return out


def send(store: OuterStore, key: str, drift: Any, included: tuple[bool, bool]) -> Outcome:
    """A round from hand-over to adoption whose results are zero."""
    snapshot = store.parameters(0) - drift
    encoded = store.encode(key, 0, snapshot, version=store.version(0), bounds=BOUNDS)
    assert encoded is not None
    outcome = Outcome(key, 0, BOUNDS, encoded.payloads, included, (None, None), final=False)
    store.prepare(key, 0, BOUNDS, ZEROS, final=False)
    store.adopt(key, outcome)
    return outcome


def test_it_fades_in_the_slices_that_a_record_includes() -> None:
    store, drift = store_of(0.5), learned()
    outcome = send(store, "a", drift, (True, False))
    lost = drift - decoded(outcome.payloads)
    assert np.any(lost[:HALF])
    np.testing.assert_array_equal(store.residual(0)[:HALF], lost[:HALF] * np.float32(0.5))
    assert not store.residual(0)[HALF:].any()  # that is still in the trainer's values


def test_a_round_that_does_not_include_a_peer_makes_nothing_fade() -> None:
    store = store_of(0.5)
    send(store, "a", learned(1), (True, True))
    owed = store.residual(0).copy()
    send(store, "b", learned(2), (False, False))
    np.testing.assert_array_equal(store.residual(0), owed)


def test_by_default_nothing_is_forgotten() -> None:
    store, drift = store_of(1.0), learned()
    outcome = send(store, "a", drift, (True, True))
    np.testing.assert_array_equal(store.residual(0), drift - decoded(outcome.payloads))


@pytest.mark.parametrize("included", [(True, True), (True, False), (False, False)])
def test_a_restart_finds_the_same_residual(included: tuple[bool, bool]) -> None:
    drift, live = learned(), store_of(0.75)
    outcome = send(live, "a", drift, included)
    again = store_of(0.75)
    again.settle_again(outcome, drift)
    np.testing.assert_array_equal(again.residual(0), live.residual(0))


def test_a_leap_over_records_fades_as_often_as_steps_do() -> None:
    drift = learned()
    live = store_of(0.5)
    outcome = send(live, "a", drift, (True, True))
    restarted = store_of(0.5)
    restarted.recall("a", 0, outcome.payloads, drift)
    zeros = np.zeros(SIZE, np.float32)
    restarted.leap(0, zeros, zeros.copy(), [outcome])
    np.testing.assert_array_equal(restarted.residual(0), live.residual(0))
