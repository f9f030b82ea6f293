"""A vault over a disk that a crash stops at any call: state and what is owed are found by the next start."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

from runnel.dht.blob_shelf import BlobShelf
from runnel.node.pinning import Pinning
from runnel.protocols import Float32
from runnel.types import Digest
from tests.support.crash_images import check_every_crash
from tests.support.file_layer import FileLayer
from tests.support.members import following_record
from tests.support.vault_bench import EVERY, FRAGMENTS, Bench

SEED = 20


@dataclass
class Course:
    """What a bench held after each step: names of states, and what it owed with and without newest work."""

    bench: Bench
    heads: list[Digest] = field(default_factory=list)
    roots: dict[Digest, list[Digest]] = field(default_factory=dict)
    owed: dict[Digest, list[list[Float32]]] = field(default_factory=dict)

    def note(self) -> None:
        bench, head = self.bench, self.bench.chain.path[-1]
        self.heads.append(head)
        self.roots[head] = [bench.store.root(f) for f in range(FRAGMENTS)]
        self.owed[head] = [[bench.owed(f)] for f in range(FRAGMENTS)]

    def round(self, included: tuple[bool, bool], *, reducer: bool) -> None:
        before = [learned.copy() for learned in self.bench.learned]
        head = self.bench.chain.path[-1]
        self.bench.round(included, give=True, reducer=reducer)
        for f in range(FRAGMENTS):  # until it was handed over, or until its round was decided
            gained = self.bench.learned[f] - before[f]
            self.owed[head][f].append(self.owed[head][f][0] + gained)
        self.note()

    def write(self, layer: FileLayer) -> None:
        bench = self.bench
        keep = 2 * FRAGMENTS
        pinning = Pinning(bench.log, bench.vault, BlobShelf(), every=EVERY, keep_rounds=keep)
        self.note()
        layer.mark()
        for number in range(3 * EVERY + 2):
            if number == EVERY + 1:
                bench.abort()
                self.note()
            elif number == EVERY + 4:
                other = following_record(bench.chain.record(bench.chain.path[-3]), nonce=b"other")
                bench.give_up(2, other)
                self.note()
            else:
                self.round((True, number % 3 > 0), reducer=number % 2 > 0)
            layer.mark()
            if bench.chain.number % EVERY == 0:
                pinning.renew(bench.chain, tuple(bench.chain.path))

    def check(self, home: Path, marks: int) -> None:
        if not marks:
            return  # founded anew
        for _ in range(2):  # a restart is followed by another one
            with self.bench.resumed(home / "state") as (vault, head):
                assert head in self.heads[marks - 1 : marks + 1]
                for f in range(FRAGMENTS):
                    assert vault.store.root(f) == self.roots[head][f]
                    found = vault.store.residual(f)
                    off = [float(np.abs(found - held).max()) for held in self.owed[head][f]]
                    assert min(off) < 4e-4, f"fragment {f} owes something else: {off}"


def check_vault(*, seed: int, share: float) -> int:
    courses: list[Course] = []

    def work(home: Path, layer: FileLayer) -> None:
        courses.append(Course(Bench(home / "state")))
        courses[0].write(layer)
        courses[0].bench.log.close()

    return check_every_crash(
        work, lambda home, marks: courses[0].check(home, marks), seed=seed, share=share
    )


def test_state_and_what_is_owed_are_found_after_a_crash_at_sampled_calls() -> None:
    assert check_vault(seed=SEED, share=0.02) > 20


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_state_and_what_is_owed_are_found_after_a_crash_at_any_call() -> None:
    assert check_vault(seed=SEED + 1, share=1.0) > 600
