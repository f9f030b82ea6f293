"""Cells with codecs of their own: any borders come back, the bytes are fixed, and what no encoder makes is refused."""

from __future__ import annotations

from itertools import accumulate, pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runnel.errors import BugError, PeerError
from runnel.hashing import digest
from runnel.kernels import Float32
from runnel.optim.codec_layers import LEAST, Cell, LayersCodec
from runnel.optim.codecs import LADDER, codec_named
from runnel.optim.layer_bits import cells_of
from runnel.optim.parts import PART, parts_of
from tests.support.codecs import BLOCKS, bits, decoded, mixed, values_of

NAMES = [layout.name for layout in LADDER]


def codec_of(by: str | None = None) -> LayersCodec:
    codec = codec_named("l-greco+e3m0", by=by)
    assert isinstance(codec, LayersCodec)
    return codec


@st.composite
def cuts(draw: st.DrawFn) -> tuple[Cell, ...]:
    """Cells of a slice with layers that begin anywhere, near its parts' ends too, and any codec for each."""
    numel = draw(
        st.integers(0, 3 * LEAST)
        | st.integers(PART - 3, PART + 2 * LEAST)
        | st.integers(0, PART + 9_000)
    )
    near = st.integers(-2 * LEAST, 2 * LEAST)
    edges = draw(st.lists(st.integers(0, PART + 9_000) | near.map(lambda x: x + PART), max_size=12))
    spans = cells_of(0, numel, sorted(set(edges)))
    return tuple(Cell(draw(st.integers(0, 4)), stop - start) for start, stop in spans)


def numel_of(cells: tuple[Cell, ...]) -> int:
    return sum(cell.numel for cell in cells)


@given(cells=cuts())
@settings(max_examples=25, deadline=None)
def test_any_cells_come_back_as_their_own_codecs_have_them(cells: tuple[Cell, ...]) -> None:
    numel = numel_of(cells)
    x, codec = mixed(numel), codec_of()
    left = np.empty_like(x)
    payload = codec.cut(cells).encode(x, left)
    assert codec.cells_in(payload, numel) == cells
    assert len(payload) == codec.size_of(cells) <= codec.max_bytes(numel)
    alone, end = [], 3 * len(cells)
    stops = list(accumulate((cell.numel for cell in cells), initial=0))
    for cell, (start, stop) in zip(cells, pairwise(stops), strict=True):
        one = codec_named(NAMES[cell.choice])
        sent = one.encode(x[start:stop])
        assert payload[end : end + len(sent)] == sent
        end += len(sent)
        alone.append(decoded(one, sent, cell.numel))
    whole = np.concatenate(alone) if alone else x
    assert bits(decoded(codec, payload, numel)) == bits(whole)
    assert bits(left) == bits(x - whole)
    parts = [part.copy() for part in codec.decode_parts(payload, numel)]
    assert [part.size for part in parts] == [p.stop - p.start for p in parts_of(0, numel)]
    assert b"".join(map(bits, parts)) == bits(whole)


@given(cells=cuts(), seed=st.integers(0, 99))
@settings(max_examples=30, deadline=None)
def test_what_was_owed_is_sent_or_owed_again(cells: tuple[Cell, ...], seed: int) -> None:
    numel = numel_of(cells)
    x, e = values_of(numel, seed), values_of(numel, seed + 1, scale=0.1)
    codec, fed = codec_of(), x.copy()
    room = memoryview(bytearray(codec.max_bytes(numel)))
    pairs = ((fed[part], e[part]) for part in parts_of(0, numel))
    payload = codec.cut(cells).encode_parts(pairs, numel, room)
    back, owed = decoded(codec, bytes(payload), numel), x + e
    assert bits(fed) == bits(owed - back)
    start = 0
    for cell in cells:  # with fewer bits the sum is rounded
        own = slice(start, start + cell.numel)
        assert cell.choice < 2 or np.array_equal((fed + back)[own], owed[own])
        start += cell.numel
    out = values_of(numel, seed + 2)
    wanted = out + np.float32(0.3) * back
    codec.accumulate(payload, 0.3, out)
    assert bits(out) == bits(wanted)


def test_both_implementations_write_the_same_mixed_payload_for_all_time() -> None:
    sizes = [512, 700, 5_001, 4_096, PART - 10_309, 300]
    cells = tuple(
        Cell(choice, size) for choice, size in zip((4, 0, 3, 1, 2, 3), sizes, strict=True)
    )
    x = values_of(sum(sizes), seed=1, scale=1e-3)
    payloads = [codec_of(by).cut(cells).encode(x) for by in ("numba", "reference")]
    assert payloads[0] == payloads[1]
    assert payloads[0][:18].hex() == "04ff0100bb0203881301ff0f02bad7032b01"
    assert digest(payloads[0]).hex()[:32] == GOLDEN
    assert codec_of("numba").norm(payloads[0], x.size) == codec_of("reference").norm(
        payloads[0], x.size
    )


GOLDEN = "a309db37ae567427519dfeeccae15b76"


def payload_of(head: bytes, numel: int) -> bytes:
    """A payload with this head, all else as long as it says, of zeros in the smallest scales."""
    cells = [(head[i], head[i + 1] + 256 * head[i + 2] + 1) for i in range(0, len(head), 3)]
    body = b""
    for choice, size in cells:
        layout = BLOCKS[NAMES[choice]] if choice < len(NAMES) else BLOCKS["sign"]
        scale = layout.smallest_scale.to_bytes(layout.scale_bytes, "little")
        body += scale * layout.count_scales(size) + bytes(layout.code_bytes(size))
    return head + body


def head_of(*cells: tuple[int, int]) -> bytes:
    return b"".join(bytes([choice]) + (size - 1).to_bytes(2, "little") for choice, size in cells)


@pytest.mark.parametrize(
    ("cells", "numel"),
    [
        ([(2, 700)], 700),
        ([(2, 512), (3, 700), (0, 188)], 1_400),
        ([(4, 512), (1, 1)], 513),
        ([(2, PART), (0, 1)], PART + 1),
        ([(2, PART - 3), (4, 3), (0, 512)], PART + 512),
    ],
)
def test_cells_that_an_encoder_may_make_are_read(cells: list[tuple[int, int]], numel: int) -> None:
    payload = payload_of(head_of(*cells), numel)
    assert codec_of().cells_in(payload, numel) == tuple(Cell(*cell) for cell in cells)
    assert np.isfinite(decoded(codec_of(), payload, numel)).all()


@pytest.mark.parametrize(
    ("cells", "numel"),
    [
        ([(5, 700)], 700),
        ([(2, 511), (2, 189)], 700),
        ([(2, 544), (2, 100), (2, 156)], 800),
        ([(2, 701)], 700),
        ([(2, 699)], 700),
        ([(2, 700), (2, 512)], 700),
        ([(2, PART - 512), (2, 1_024)], PART + 512),
    ],
)
def test_other_cells_are_refused(cells: list[tuple[int, int]], numel: int) -> None:
    payload, out = payload_of(head_of(*cells), numel), np.ones(numel, np.float32)
    for use in (
        lambda: codec_of().decode(payload, out),
        lambda: codec_of().accumulate(payload, 1.0, out),
        lambda: codec_of().norm(payload, numel),
        lambda: next(codec_of().decode_parts(payload, numel)),
    ):
        with pytest.raises(PeerError, match="expected cells of") as caught:
            use()
        assert caught.value.reason == "malformed"
    assert np.all(out == 1)


def test_a_bad_cell_behind_good_ones_changes_nothing() -> None:
    x, cells = values_of(1_100), (Cell(2, 600), Cell(4, 500))
    payload = bytearray(codec_of().cut(cells).encode(x))
    payload[-500:] = b"\x80" * 500
    out = np.ones(1_100, np.float32)
    with pytest.raises(PeerError, match="int8: a code that no encoder writes"):
        codec_of().decode(bytes(payload), out)
    with pytest.raises(PeerError, match="int8: a code that no encoder writes"):
        codec_of().accumulate(bytes(payload), 1.0, out)
    assert np.all(out == 1)


def test_a_codec_that_was_cut_encodes_as_many_values_and_no_others() -> None:
    cut = codec_of().cut((Cell(2, 500),))
    with pytest.raises(BugError, match="other than 501 values"):
        cut.encode(np.zeros(501, np.float32))


def test_without_a_choice_all_is_as_the_reference_has_it() -> None:
    x: Float32 = values_of(PART + 300)
    for name in ("int8", "int4", "e3m0", "two-bit"):
        payload, plain = codec_named(f"l-greco+{name}").encode(x), codec_named(name)
        back = decoded(codec_named(f"l-greco+{name}"), payload, x.size)
        assert bits(back) == bits(decoded(plain, plain.encode(x), x.size))
        assert len(payload) == plain.max_bytes(PART) + plain.max_bytes(300) + 6
