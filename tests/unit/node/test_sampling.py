from __future__ import annotations

import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from itertools import islice

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader, TensorDataset

from runnel.errors import ConfigError
from runnel.node.sampling import (
    batches,
    dataset_batches,
    endless_indices,
    validation_batches,
    window_seed,
)
from runnel.types import PeerId

PEERS = [PeerId(bytes([number]) * 38) for number in range(6)]
BEACON = b"beacon"
SEED = window_seed(BEACON, PEERS[2], 1)
GOLDEN_SEED = "1b05961572023021"
GOLDEN_STARTS = [93, 107, 210]


def test_the_draws_of_a_known_window_stay_as_they_are() -> None:
    """Auditors replay windows: a change of the draw is a change of the protocol."""
    assert window_seed(BEACON, PEERS[1], 7).hex()[:16] == GOLDEN_SEED
    rows = next(batches([bytes(range(256))], window_seed(BEACON, PEERS[1], 7), 3, 4))
    assert rows[:, 0].tolist() == GOLDEN_STARTS


def test_peer_window_and_beacon_all_change_the_draw() -> None:
    seeds = {
        window_seed(beacon, peer, window)
        for beacon in (b"", b"a", b"ab")
        for peer in PEERS
        for window in range(4)
    }
    assert len(seeds) == 3 * len(PEERS) * 4


@given(st.integers(1, 40), st.integers(0, 100))
def test_no_item_comes_twice_before_all_came_once(dataset_len: int, count: int) -> None:
    indices = tuple(islice(endless_indices(SEED, dataset_len), count))
    for start in range(0, count, dataset_len):
        epoch = indices[start : start + dataset_len]
        assert len(set(epoch)) == len(epoch)


def test_a_huge_dataset_is_drawn_from_without_listing_it() -> None:
    indices = tuple(islice(endless_indices(SEED, 10**12), 100))
    assert len(set(indices)) == 100
    assert max(indices) > 10**11


def test_an_empty_dataset_is_a_config_error() -> None:
    with pytest.raises(ConfigError, match="0 items"):
        next(endless_indices(SEED, 0))


def test_batches_are_stretches_of_the_chunks() -> None:
    chunks = [bytes(range(100)), bytes(range(100, 256))]
    source = batches(chunks, window_seed(BEACON, PEERS[0], 0), 64, 9)
    for batch in islice(source, 5):
        assert batch.shape == (64, 10)
        assert batch.dtype == torch.int64
        assert all(bytes(row) in chunks[0] or bytes(row) in chunks[1] for row in batch.tolist())


def test_all_stretches_can_be_drawn_and_are_equally_likely() -> None:
    source = batches([b"abc", b"defgh"], window_seed(BEACON, PEERS[0], 0), 600, 1)
    counts = Counter(bytes(row) for row in next(source).tolist())
    assert set(counts) == {b"ab", b"bc", b"de", b"ef", b"fg", b"gh"}
    assert all(60 < count < 140 for count in counts.values())


def test_batches_follow_from_the_seed() -> None:
    def first(seed: bytes) -> torch.Tensor:
        return next(batches([bytes(range(256))], seed, 8, 4))

    assert torch.equal(first(b"one"), first(b"one"))
    assert not torch.equal(first(b"one"), first(b"two"))
    several = islice(batches([bytes(range(256))], b"one", 8, 4), 3)
    assert len({tuple(batch.flatten().tolist()) for batch in several}) == 3


def test_more_rows_than_one_block_of_numbers_are_drawn() -> None:
    batch = next(batches([bytes(range(256))], b"one", 2000, 4))
    assert len(set(batch[:, 0].tolist())) == 252


@pytest.mark.parametrize("chunks", [[], [b"abcd"], [bytes(100), b"abcd"]])
def test_a_chunk_too_short_for_the_context_is_a_config_error(chunks: list[bytes]) -> None:
    with pytest.raises(ConfigError, match="smaller context"):
        next(batches(chunks, b"seed", 2, 4))


def test_validation_rows_cover_the_text_once() -> None:
    text = bytes(range(53))
    rows = [row for batch in validation_batches(text, 3, 10) for row in batch.tolist()]
    targets = [value for row in rows for value in row[1:]]
    assert targets == list(range(1, 51))
    with pytest.raises(ConfigError, match="validation text"):
        next(validation_batches(b"short", 3, 10))


class Seeds:
    """A seed that can be changed, as a session's does from window to window."""

    def __init__(self) -> None:
        self.current = b"first"

    def __call__(self) -> bytes:
        return self.current


def test_a_map_style_dataset_is_read_in_the_windows_order() -> None:
    dataset = TensorDataset(torch.arange(10.0), torch.arange(10))
    seed = Seeds()
    source = dataset_batches(dataset, 5, seed)
    first, second = next(source), next(source)
    assert sorted([*first[1].tolist(), *second[1].tolist()]) == list(range(10))
    again = dataset_batches(dataset, 5, Seeds())
    assert torch.equal(next(again)[1], first[1])
    seed.current = b"second"
    fresh = dataset_batches(dataset, 5, seed)
    assert torch.equal(next(source)[1], next(fresh)[1])


def test_a_list_is_a_dataset() -> None:
    batch = next(dataset_batches([1.0, 2.0, 3.0], 3, Seeds()))
    assert sorted(batch.tolist()) == [1.0, 2.0, 3.0]


class Stream:
    """An iterable that starts again each time."""

    def __init__(self, size: int) -> None:
        self.size = size

    def __iter__(self) -> Iterator[int]:
        return iter(range(self.size))


def test_an_iterable_is_shuffled_and_repeated_without_loss() -> None:
    source = dataset_batches(Stream(3000), 50, Seeds())
    seen = [value for batch in islice(source, 120) for value in batch.tolist()]
    counts = Counter(seen)
    assert seen[:50] != list(range(50))
    assert len(counts) == 3000 or len(counts) > 2900
    assert max(counts.values()) <= 4


@pytest.mark.parametrize("dataset", [Stream(0), (value for value in range(3))])
def test_an_iterable_that_runs_dry_is_a_config_error(dataset: object) -> None:
    with pytest.raises(ConfigError, match="starts again"):
        next(dataset_batches(dataset, 2, Seeds()))


@pytest.mark.parametrize(
    ("dataset", "batch_size", "message"),
    [
        (DataLoader([1, 2]), 2, "pass its .dataset"),  # type: ignore[arg-type]
        (5, 2, "got a int"),
        ([1], 0, "batch_size is 0"),
    ],
)
def test_what_is_no_dataset_is_a_config_error(
    dataset: object, batch_size: int, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        dataset_batches(dataset, batch_size, Seeds())


def test_choosing_chunks_loads_no_torch() -> None:
    code = "import sys, runnel.node.sampling; raise SystemExit(int('torch' in sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("dataset", [None, 3, "text", b"text", {"a": 1}], ids=repr)
def test_what_is_no_dataset_is_refused_before_the_first_batch(dataset: object) -> None:
    with pytest.raises(ConfigError, match="expected a dataset"):
        dataset_batches(dataset, 2, lambda: b"seed")


@pytest.mark.parametrize("size", [0, -1, 2.0, "2", True], ids=repr)
def test_a_batch_size_that_is_no_count_is_refused_before_the_first_batch(size: object) -> None:
    with pytest.raises(ConfigError, match="batch_size"):
        dataset_batches([1, 2], size, lambda: b"seed")  # type: ignore[arg-type]


def test_batches_are_made_by_the_callers_collate() -> None:
    items = [torch.zeros(length) for length in range(1, 9)]  # torch's own refuses to stack these
    made = next(dataset_batches(items, 4, lambda: b"seed", collate=len))
    assert made == 4
