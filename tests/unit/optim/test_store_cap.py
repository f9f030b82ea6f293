"""A cap on residuals: it bites where a record takes a contribution out of the trainer, once, and says how much."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from runnel.hashing import digest
from runnel.kernels import norm
from runnel.optim.codecs import codec_named
from runnel.optim.exchange import Merge
from runnel.optim.outer import Sgd
from runnel.optim.store import Outcome, OuterStore, StoreParts
from runnel.verification import aggregator_named

HALF, SIZE = 4096, 8192
BOUNDS = ((0, HALF), (HALF, SIZE))
ZEROS = tuple(bytes(4 * HALF) for _ in BOUNDS)
CODEC = codec_named("top-k")


def store_of(cap: float, decay: float = 1.0) -> OuterStore:
    parts = StoreParts(
        codec=CODEC,
        result_codec=codec_named("fp32"),
        aggregator=aggregator_named("weighted-mean"),
        optimizer=Sgd(1.0),
        root_of=lambda views: digest(*(bytes(view) for view in views)),
        decay=decay,
        cap=cap,
    )
    return OuterStore([np.zeros(SIZE, np.float32)], parts)


def learned(seed: int = 1) -> Any:
    return np.random.default_rng(seed).normal(size=SIZE).astype(np.float32)


class Life:
    """A store and its trainer's values, through rounds whose results are zero."""

    def __init__(self, cap: float, decay: float = 1.0) -> None:
        self.store, self.w = store_of(cap, decay), np.zeros(SIZE, np.float32)
        self.sent = np.zeros(SIZE, np.float64)

    def hand_over(self, key: int, drift: Any) -> None:
        self.w -= drift
        snapshot = self.w.copy()
        encoded = self.store.encode(key, 0, snapshot, version=self.store.version(0), bounds=BOUNDS)
        assert encoded is not None
        self.payloads = encoded.payloads

    def decide(self, key: int, included: tuple[bool, bool]) -> Merge:
        outcome = Outcome(key, 0, BOUNDS, self.payloads, included, (None, None), final=False)
        self.store.prepare(key, 0, BOUNDS, ZEROS, final=False)
        merge = self.store.adopt(key, outcome)
        self.w += merge.delta
        for payload, (low, high), is_in in zip(self.payloads, BOUNDS, included, strict=True):
            out = np.zeros(high - low, np.float32)
            CODEC.decode(payload, out)
            self.sent[low:high] += out * is_in
        return merge

    def unsent(self) -> Any:
        """U: what was learned and is on no chain."""
        owed = self.store.residual(0).astype(np.float64) + self.store.parameters(0)
        return owed - self.w


def test_it_bounds_what_was_lost_by_what_was_sent_slice_by_slice_and_tells_the_difference() -> None:
    free, life = Life(0.0), Life(2.0)
    for one in (free, life):
        one.hand_over(0, learned())
    merges = [one.decide(0, (True, True)) for one in (free, life)]
    gone = free.store.residual(0) - life.store.residual(0)
    for payload, (low, high) in zip(life.payloads, BOUNDS, strict=True):
        most = 2.0 * CODEC.norm(payload, high - low)
        assert norm(free.store.residual(0)[low:high]) > most
        assert norm(life.store.residual(0)[low:high]) == pytest.approx(most, rel=1e-6)
    assert merges[0].cut == 0
    assert merges[1].cut == pytest.approx(float(np.linalg.norm(gone)), rel=1e-5)
    assert merges[1].delta.tobytes() == merges[0].delta.tobytes()


def test_nothing_else_changes_what_is_owed_over_a_life_with_aborts_and_late_slices() -> None:
    life, total, cuts = Life(2.0), np.zeros(SIZE, np.float64), []
    for number, included in enumerate(
        [(True, True), (False, False), (True, False), None, (True, True), (False, True)]
    ):
        drift = learned(number) * np.float32(0.1)
        total += drift
        life.hand_over(number, drift)
        before = life.unsent()
        if included is None:
            life.store.forget(number)  # aborted: it stays in the trainer's values
            assert np.array_equal(life.unsent(), before)
            continue
        sent = life.sent.copy()
        merge = life.decide(number, included)
        missing = before - (life.sent - sent) - life.unsent()  # what the cap took
        assert np.linalg.norm(missing) == pytest.approx(merge.cut, abs=1e-4)
        for (low, high), is_in in zip(BOUNDS, included, strict=True):
            assert is_in or np.abs(missing[low:high]).max() < 1e-5
        cuts.append(missing)
    accounted = life.sent + life.unsent() + np.sum(cuts, axis=0)
    np.testing.assert_allclose(accounted, total, atol=1e-4)
    assert sum(np.linalg.norm(cut) > 0.01 for cut in cuts) >= 3


def test_a_large_cap_and_a_fine_codec_leave_everything() -> None:
    life = Life(1e6)
    for number in range(5):
        life.hand_over(number, learned(number))
        assert life.decide(number, (True, True)).cut == 0


def test_after_a_restart_the_record_cuts_the_same_again() -> None:
    life = Life(2.0)
    life.hand_over(0, learned())
    drift, payloads = -life.w.copy(), life.payloads
    life.decide(0, (True, True))
    again = store_of(2.0)
    outcome = Outcome(0, 0, BOUNDS, payloads, (True, True), (None, None), final=False)
    again.settle_again(outcome, drift)
    np.testing.assert_allclose(again.residual(0), life.store.residual(0), atol=1e-6)


def test_a_debt_behind_a_later_handover_is_not_cut() -> None:
    life = Life(1e-3)
    life.hand_over(0, learned())
    first = life.payloads
    life.hand_over(1, learned(2))  # on another path: holds the first one's drift, too
    outcome = Outcome(0, 0, BOUNDS, first, (True, True), (None, None), final=False)
    before = life.unsent()
    life.store.prepare(0, 0, BOUNDS, ZEROS, final=False)
    merge = life.store.adopt(0, outcome)
    life.w += merge.delta
    sent = np.zeros(SIZE, np.float32)
    for payload, (low, high) in zip(first, BOUNDS, strict=True):
        CODEC.decode(payload, sent[low:high])
    assert merge.cut == 0
    np.testing.assert_allclose(life.unsent(), before - sent, atol=1e-5)
