"""Who trains on what: choices that follow from public values, so that nobody assigns them.

Everything is drawn from blake3 as a pseudo-random function of (beacon, peer, window): peers need no
coordinator, an auditor draws the same, and the draws depend on no library's random generator. The
draws of two peers are independent, so their data are identically distributed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import chain, islice
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from blake3 import blake3

from runnel.errors import ConfigError
from runnel.hashing import digest
from runnel.types import PeerId

if TYPE_CHECKING:
    from torch import Tensor

SHUFFLE_ITEMS = 1024
"""Items of an iterable dataset held in memory to shuffle it."""

_SEED_CONTEXT = b"runnel.window.1"
_STEP_CONTEXT = b"runnel.step.1"
_WORDS_AT_ONCE = 512


def window_seed(beacon: bytes, peer: PeerId, window: int) -> bytes:
    """32 bytes that decide all that `peer` draws in `window`.

    Args:
        beacon: public randomness of the record the window starts from; any bytes.
        peer: who trains.
        window: its number, 0 <= window < 2^64.
    """
    message = _SEED_CONTEXT + window.to_bytes(8, "little") + peer
    return blake3(message, key=digest(beacon)).digest()


def step_seed(seed: bytes, step: int) -> bytes:
    """32 bytes that decide one step of a window, whichever steps were taken before it.

    Args:
        seed: from `window_seed`.
        step: 0 for the first one, below 2^64.
    """
    return blake3(_STEP_CONTEXT + step.to_bytes(8, "little"), key=digest(seed)).digest()


def endless_indices(seed: bytes, dataset_len: int) -> Iterator[int]:
    """One permutation of the indices after the other, drawn as they are asked for.

    Raises:
        ConfigError: an empty dataset.
    """
    if dataset_len < 1:
        raise ConfigError("the dataset has 0 items, expected at least 1")
    epoch = 0
    while True:
        yield from _permutation(seed, b"items" + epoch.to_bytes(8, "little"), dataset_len)
        epoch += 1


def batches(
    chunks: Sequence[bytes], seed: bytes, batch_size: int, context: int
) -> Iterator[Tensor]:
    """Endless batches of text: int64 [batch_size, context + 1] of byte values on the CPU.

    Each row is a stretch of one chunk; all stretches of all chunks are equally likely. Batch k of a
    seed is always the same.

    Args:
        chunks: text, each longer than `context`.
        seed: from `window_seed`.
        batch_size: rows.
        context: positions that the model sees; a row has one more, the last target.

    Raises:
        ConfigError: a chunk is too short for the context.
    """
    from torch import from_numpy

    texts = [np.frombuffer(chunk, dtype=np.uint8) for chunk in chunks]
    shortest = min((text.size for text in texts), default=0)
    if shortest <= context:
        raise ConfigError(
            f"the shortest chunk has {shortest} bytes, expected more than the context of {context};"
            " give a longer text or a smaller context"
        )
    edges = np.cumsum([text.size - context for text in texts])
    words = _words(seed, b"batches")
    row = np.arange(context + 1)
    while True:
        out = np.empty((batch_size, context + 1), dtype=np.int64)
        for index, word in enumerate(islice(words, batch_size)):
            place = word % int(edges[-1])
            chosen = int(np.searchsorted(edges, place, side="right"))
            start = place - (int(edges[chosen - 1]) if chosen else 0)
            out[index] = texts[chosen][start + row]
        yield from_numpy(out)


def validation_batches(text: bytes, batch_size: int, context: int) -> Iterator[Tensor]:
    """All of `text` once, in rows that share no target: int64 [up to batch_size, context + 1].

    The last, incomplete row is left out.

    Raises:
        ConfigError: the text is not longer than the context.
    """
    from torch import from_numpy

    rows = (len(text) - 1) // context
    if rows < 1:
        raise ConfigError(f"{len(text)} bytes of validation text, expected more than {context}")
    values = np.frombuffer(text, dtype=np.uint8)
    for first in range(0, rows, batch_size):
        starts = np.arange(first, min(first + batch_size, rows)) * context
        yield from_numpy(values[starts[:, None] + np.arange(context + 1)].astype(np.int64))


def dataset_batches(
    dataset: Any,
    batch_size: int,
    seed: Callable[[], bytes],
    *,
    collate: Callable[[list[Any]], Any] | None = None,
) -> Iterator[Any]:
    """Endless batches of a user's dataset, collated as torch's DataLoader does.

    A dataset with ``__len__`` and ``__getitem__`` is drawn by index: whenever `seed` gives another
    value (a new window), from there on that seed decides. Any other iterable is read again and
    again, through a shuffle buffer of 1,024 items; how often peers meet the same item then depends
    on the iterable.

    Args:
        dataset: map-style or iterable.
        batch_size: items per batch, at least 1.
        seed: gives the current window's seed; asked once per batch.
        collate: makes a batch of a list of items; by default torch's `default_collate`.

    Raises:
        ConfigError: no dataset, an empty one, a DataLoader, or a batch size below 1.
    """
    from torch.utils.data import DataLoader, default_collate

    if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
        raise ConfigError(f"batch_size is {batch_size!r}, expected a whole number of at least 1")
    if isinstance(dataset, DataLoader):
        raise ConfigError(
            "got a DataLoader, which makes its own batches: pass its .dataset, and its collate_fn"
            " as collate"
        )
    by_key = isinstance(dataset, str | bytes | Mapping)
    if not by_key and hasattr(dataset, "__getitem__") and hasattr(dataset, "__len__"):
        if len(dataset) < 1:
            raise ConfigError("the dataset has 0 items, expected at least 1")
        batches_of_items = _mapped(dataset, batch_size, seed)
    elif not by_key and hasattr(dataset, "__iter__"):
        batches_of_items = _streamed(dataset, batch_size, seed())
    else:
        raise ConfigError(
            f"got a {type(dataset).__name__}, expected a dataset with __len__ and __getitem__ by"
            " number, or an iterable of items"
        )
    return map(collate or default_collate, batches_of_items)


def _mapped(dataset: Any, batch_size: int, seed: Callable[[], bytes]) -> Iterator[list[Any]]:
    current = seed()
    indices = endless_indices(current, len(dataset))
    while True:
        if seed() != current:
            current = seed()
            indices = endless_indices(current, len(dataset))
        yield [dataset[index] for index in islice(indices, batch_size)]


def _streamed(dataset: Iterable[Any], batch_size: int, seed: bytes) -> Iterator[list[Any]]:
    words = _words(seed, b"stream")
    items = _repeated(dataset)
    held = list(islice(items, SHUFFLE_ITEMS))
    while held:
        batch = []
        for _ in range(batch_size):
            place = next(words) % len(held)
            batch.append(held[place])
            held[place] = next(items)
        yield batch


def _repeated(dataset: Iterable[Any]) -> Iterator[Any]:
    while True:
        iterator = iter(dataset)
        first = list(islice(iterator, 1))
        if not first:
            raise ConfigError(
                "the dataset gives no items, or no more of them; expected an iterable that"
                " starts again each time it is iterated over (a generator does not)"
            )
        yield from chain(first, iterator)


def _permutation(seed: bytes, purpose: bytes, size: int) -> Iterator[int]:
    """0..size-1 in a drawn order (Fisher-Yates), holding only what was swapped so far."""
    words = _words(seed, purpose)
    moved: dict[int, int] = {}
    for position in range(size):
        # A word modulo a size below 2^40 is biased by less than 2^-24, which no training notices.
        chosen = position + next(words) % (size - position)
        value = moved.get(chosen, chosen)
        moved[chosen] = moved.pop(position, position)
        yield value


def _words(seed: bytes, purpose: bytes) -> Iterator[int]:
    """Endless 64-bit numbers: blake3's output stream under `seed`, little-endian."""
    hasher = blake3(purpose, key=digest(seed))
    position = 0
    while True:
        block = hasher.digest(length=8 * _WORDS_AT_ONCE, seek=position)
        words: npt.NDArray[np.uint64] = np.frombuffer(block, dtype="<u8")
        yield from words.tolist()
        position += len(block)
