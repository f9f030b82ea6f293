"""Bits where they matter: which codec each layer of a fragment, or piece of one, gets, by dynamic programming over measured errors.

Who contributes measures what each codec of the ladder would lose of each cell of what it is about to
send, and takes the choice of the fewest bytes whose errors, squared and summed over the fragment, are no
more than those of the reference for everything, to a hundredth. Payloads say what was chosen, so nobody
else has to choose alike. Who reduces a slice sees a part of a fragment only, which may be the loud or the
quiet one. It learns from its contributors' choices what a slice like this may lose: as much as the choice
of the median one of them would lose of the result. Then it takes the fewest bytes, too.

Source: *L-GreCo: Layerwise-Adaptive Gradient Compression for Efficient and Accurate Deep Learning*
(Alimohammadi et al. 2022), as its authors' code has it: errors in steps of a part of the allowed one, rounded
up, and a table of the fewest bytes by error. There one worker chooses for all, from gradients added up over
some steps, and norms of errors are summed; squares are here, as they add up to that of the whole.
"""

from __future__ import annotations

from collections import Counter
from itertools import accumulate, islice
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from runnel.kernels import Float32, first_non_finite, sum_of_squares
from runnel.optim.codec_layers import LEAST, Cell, LayersCodec
from runnel.optim.parts import Bounds, parts_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from runnel.optim.exchange import Array, Payload
    from runnel.protocols import Codec

Integers = npt.NDArray[np.int64]

SPARE = 1.01
"""What may be lost, over what the reference for everything loses: without any, nothing could be saved on quiet
layers beside one that takes all there is."""

STEPS = 1 << 14
"""Into which the allowed error is cut; a cell's error is rounded up to them."""

_PIECE = 4096
"""Values of a piece of a layer, or a multiple in a large fragment."""

FEWEST_PIECES = 7
"""Of a fragment, with which bytes were seen to be saved: 9 % and more off e3m0's, with two of them 1 %."""

_EXPECTED_PARTS = {"l-greco+e3m0": 0.91}
"""Of the uniform choice's bytes, that contributions of small models took: with AdamW inside, and fewer with Muon
(benchmarks/README.md). Beside other references all of them, or nearly so."""

PIECES = 256
"""Of a fragment, at most: large layers are cut into pieces, as they are quiet here and loud there."""

MOST_GROUPS = 512
"""Of a fragment, or as many as it has layers and slices if these are more: each gets one choice."""

_NO_BYTES = np.iinfo(np.int64).max // 2
"""More than any payload."""


def chosen(
    codec: Codec,
    known: tuple[Array, Array, Array],
    out: Array,
    bounds: Bounds,
    edges: Sequence[int],
) -> Sequence[Codec]:
    """The codec of each slice of a contribution; `codec` itself if it has nothing to choose.

    Args:
        codec: of contributions.
        known: outer parameters theta, the trainer's values w and the residual e of a fragment, [values].
        out: [values], to be overwritten.
        bounds: the slices.
        edges: where the fragment's layers begin, ascending.
    """
    if not isinstance(codec, LayersCodec):
        return [codec] * len(bounds)
    theta, snapshot, residual = known
    with np.errstate(over="ignore", invalid="ignore", under="ignore"):
        np.add(np.subtract(theta, snapshot, out=out), residual, out=out)
    return fitted(codec, out, bounds, edges)


def fitted(
    codec: LayersCodec, values: Float32, bounds: Bounds, edges: Sequence[int]
) -> list[LayersCodec]:
    """The codec of each slice with which `values`, a whole fragment, take the fewest bytes.

    The squared error of all slices together is at most `SPARE` times that of `codec` as it is, which is given
    back where nothing is cheaper, and for values that it will refuse as they are not finite. Encodes
    everything once by each codec of the ladder.
    """
    plain = [codec] * len(bounds)
    if first_non_finite(values) >= 0:
        return plain
    edges = pieces_of(values.size, edges)
    cells = [cells_of(low, high, edges) for low, high in bounds]
    spans = [span for each in cells for span in each]
    errors = _measured(codec, values, spans)
    allowed = SPARE * float(errors[:, codec.reference].sum())
    choices = _cheapest_of(codec, spans, errors, groups_of(cells, edges), allowed)
    if choices is None:
        return plain
    found = iter([Cell(c, stop - start) for c, (start, stop) in zip(choices, spans, strict=True)])
    uniform = sum(codec.uniform_bytes(high - low) for low, high in bounds)
    cuts = [list(islice(found, len(each))) for each in cells]
    if sum(map(codec.size_of, cuts)) >= uniform:
        return plain
    return [codec.cut(each) for each in cuts]


def fitted_like(codec: Codec, sent: Codec, payloads: Sequence[Payload], values: Float32) -> Codec:
    """The codec of a slice's result: the fewest bytes at the error that its contributors' choices allow.

    Each of them would lose something of `values`; the lower median of that is allowed, so that a few who lie
    about their choice sway it no further than the others' choices go. Cells that most payloads have count,
    and so do those payloads only.

    Args:
        codec: of results; given back if it has nothing to choose, or contributions say nothing of layers.
        sent: of contributions.
        payloads: of the slice, in the order of the decided set.
        values: of the slice, aggregated.

    Raises:
        PeerError: a payload is not an encoding of so many values.
    """
    if not (isinstance(codec, LayersCodec) and isinstance(sent, LayersCodec) and payloads):
        return codec
    votes = [sent.cells_in(payload, values.size) for payload in payloads]
    layouts = Counter(tuple(cell.numel for cell in cells) for cells in votes)
    numels = layouts.most_common(1)[0][0]
    counted = [c for c in votes if tuple(cell.numel for cell in c) == numels]
    stops = accumulate(numels)
    spans = [(stop - numel, stop) for stop, numel in zip(stops, numels, strict=True)]
    errors = _measured(codec, values, spans)
    rows = np.arange(len(spans))
    lost = sorted(
        (errors[rows, [c.choice for c in cells]].sum(), i) for i, cells in enumerate(counted)
    )
    allowed, like = lost[(len(lost) - 1) // 2]
    choices = _cheapest_of(codec, spans, errors, groups_of([spans], ()), SPARE * float(allowed))
    if choices is None:
        return codec.cut(counted[like])
    return codec.cut(map(Cell, choices, numels))


def cheapest(errors: Integers, sizes: Integers, allowed: int) -> list[int] | None:
    """A choice for each row with the fewest bytes whose errors add up to `allowed` at most; None if there is none.

    Exact. Among choices of equal bytes one of the smallest error.

    Args:
        errors: [rows, choices], at least 0.
        sizes: in bytes, [rows, choices], at least 0.
        allowed: at least 0; time and memory grow with it.
    """
    best = np.full(allowed + 1, _NO_BYTES)
    best[0] = 0
    taken = np.zeros((len(errors), allowed + 1), np.int8)
    for row, (row_errors, row_sizes) in enumerate(zip(errors, sizes, strict=True)):
        before, best = best, np.full(allowed + 1, _NO_BYTES)
        for choice, (error, size) in enumerate(zip(row_errors, row_sizes, strict=True)):
            if error > allowed:
                continue
            offered = before[: allowed + 1 - error] + size
            better = offered < best[error:]
            best[error:][better] = offered[better]
            taken[row, error:][better] = choice
    spent = int(np.argmin(best))
    if best[spent] >= _NO_BYTES:
        return None
    choices = []
    for row in range(len(errors) - 1, -1, -1):
        choices.append(int(taken[row, spent]))
        spent -= int(errors[row, choices[-1]])
    return choices[::-1]


def num_pieces(numel: int) -> int:
    """How many pieces a fragment is cut into at least."""
    return len(pieces_of(numel, ()))


def expected_part(codec: str, numel: int) -> float:
    """Of the uniform choice's bytes, what a contribution of a fragment by the codec called so was seen to take.

    A hint: it may take all of them, and no more. 1 where nothing else was measured.
    """
    return _EXPECTED_PARTS.get(codec, 1.0) if num_pieces(numel) >= FEWEST_PIECES else 1.0


def choosing_s(numel: int) -> float:
    """Seconds of one processor that `fitted` takes for a fragment: twice what was seen, as processors differ.

    The table grows with the pieces until there are as many as may be; encoding goes on growing.
    """
    return 0.02 + 2.2e-7 * min(numel, _PIECE * PIECES) + 6e-9 * numel


def pieces_of(numel: int, edges: Iterable[int]) -> list[int]:
    """Where the layers of a fragment begin, and the pieces that large ones are cut into; ascending."""
    every = _PIECE * max(1, -(-numel // (_PIECE * PIECES)))
    return sorted({*edges, *range(0, numel, every)})


def cells_of(low: int, high: int, edges: Iterable[int]) -> list[tuple[int, int]]:
    """The cells of a slice: cut where layers begin, to the nearest multiple of `LEAST`, and at its parts.

    So blocks are those of a slice that is not cut, and the reference loses as much either way. A layer of
    few values is in a cell with its neighbours.
    """
    cells, inside = list[tuple[int, int]](), [edge for edge in edges if low < edge < high]
    for part in parts_of(low, high):
        last = part.start
        for edge in inside:
            border = _border(low, edge)
            if last < border < part.stop:
                cells.append((last, border))
                last = border
        cells.append((last, part.stop))
    return cells


def groups_of(cells: Sequence[Sequence[tuple[int, int]]], edges: Iterable[int]) -> list[int]:
    """The first cell of each group that gets one choice: neighbours in a layer and slice, alone if cells are few."""
    together = -(-sum(map(len, cells)) // MOST_GROUPS)
    starts, index, layers = list[int](), 0, tuple(edges)
    for each in cells:
        borders = {_border(each[0][0], edge) for edge in layers} if each else set()
        for place, (start, _) in enumerate(each):
            if not place or start in borders or index - starts[-1] >= together:
                starts.append(index)
            index += 1
    return starts


def _border(low: int, edge: int) -> int:
    """Where cells of a slice that begins at `low` are told apart for the sake of a layer's edge."""
    return low + (edge - low + LEAST // 2) // LEAST * LEAST


def _cheapest_of(
    codec: LayersCodec,
    spans: Sequence[tuple[int, int]],
    errors: npt.NDArray[np.float64],
    starts: Sequence[int],
    allowed: float,
) -> list[int] | None:
    """The choice of each span for the fewest bytes at this error, one for each group; None if there is none."""
    if not allowed:
        return None
    with np.errstate(over="ignore"):
        parts = np.minimum(np.add.reduceat(errors, starts, axis=0) / allowed, 2.0)
    sizes = np.add.reduceat(_sizes(codec, spans), starts, axis=0)
    found = cheapest(np.ceil(parts * STEPS).astype(np.int64), sizes, STEPS)
    return None if found is None else np.repeat(found, np.diff([*starts, len(spans)])).tolist()


def _measured(
    codec: LayersCodec, values: Float32, spans: Sequence[tuple[int, int]]
) -> npt.NDArray[np.float64]:
    """What each codec of the ladder loses of each span: squares summed, [spans, codecs]."""
    errors = np.zeros((len(spans), len(codec.ladder)))
    lost = np.empty(max((stop - start for start, stop in spans), default=0), np.float32)
    for row, (start, stop) in enumerate(spans):
        left = lost[: stop - start]
        for choice, each in enumerate(codec.ladder):
            each.encode(values[start:stop], left)
            errors[row, choice] = sum_of_squares(left)
    return errors


def _sizes(codec: LayersCodec, spans: Sequence[tuple[int, int]]) -> Integers:
    """Bytes of each span by each codec of the ladder, [spans, codecs]."""
    choices = range(len(codec.ladder))
    rows = [[codec.size_of([Cell(c, stop - start)]) for c in choices] for start, stop in spans]
    return np.array(rows, np.int64)
