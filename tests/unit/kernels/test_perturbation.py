"""Signs from a seed: the definition's test vectors, and the same bits from every implementation."""

from __future__ import annotations

import hashlib
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from runnel.kernels import perturbation
from runnel.kernels.perturb_signatures import TILE, PerturbationKernels
from runnel.kernels.perturbation import FixedStep, direction, random_signs
from runnel.kernels.signatures import Float32

BOTH = pytest.mark.parametrize("by", ["numba", "reference"])
SIZES = [0, 1, 31, 32, 33, 1023, 1024, 4095, 4096, 4097, 3 * 4096, 33 * 4096 + 7]
WHERE = direction(7, 12345, 3, (0xDEADBEEF, 0x12345678))
WORD = st.integers(0, 2**32 - 1)


def packed(signs: Any) -> str:
    """Bit 1 = -1, little-endian."""
    return np.packbits(np.asarray(signs) < 0, bitorder="little").tobytes().hex()


def philox(block: int, c: tuple[int, int, int], key: tuple[int, int]) -> tuple[int, int, int, int]:
    """Philox4x32-10 with Python's integers."""
    mask, (c0, c1, c2, c3), (k0, k1) = 0xFFFFFFFF, (block, *c), key
    for _ in range(10):
        p0, p1 = 0xD2511F53 * c0, 0xCD9E8D57 * c2
        c0, c1, c2, c3 = (p1 >> 32) ^ c1 ^ k0, p1 & mask, (p0 >> 32) ^ c3 ^ k1, p0 & mask
        k0, k1 = (k0 + 0x9E3779B9) & mask, (k1 + 0xBB67AE85) & mask
    return c0, c1, c2, c3


def sign_of(i: int, c: tuple[int, int, int], key: tuple[int, int]) -> int:
    """The definition, one value at a time."""
    tile, r = divmod(i, 4096)
    bit, lane = divmod(r, 32)
    word = philox(32 * tile + lane, c, key)[bit >> 5]
    return -1 if (word >> (bit & 31)) & 1 else 1


def masters(size: int) -> Any:
    return np.random.default_rng(size).integers(-(2**30), 2**30, size, dtype=np.int32)


def floats(size: int) -> Float32:
    return np.random.default_rng(size).standard_normal(size).astype(np.float32)


def rows(count: int, seed: int = 0) -> Any:
    return np.random.default_rng(seed).integers(0, 2**32, (count, 5), dtype=np.uint32)


def coefficients(count: int, seed: int = 0) -> Any:
    return np.random.default_rng(seed).integers(-(2**31), 2**31, count, dtype=np.int32)


def test_philox_gives_the_published_words() -> None:
    assert philox(0, (0, 0, 0), (0, 0)) == (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)
    assert philox(0, (7, 12345, 3), (0xDEADBEEF, 0x12345678)) == (
        0xB437DA5C,
        0xABBD2A35,
        0x8BA1369A,
        0x59FFB75D,
    )


@BOTH
@pytest.mark.parametrize(
    ("where", "first", "second_tile", "digest"),
    [
        (direction(0, 0, 0, (0, 0)), "ada01b86202ca281", "bf846a190f9f09aa", "106b27a5cedb77fb"),
        (WHERE, "8400bb299c74aca3", "1630df18d17c81dc", "eb46419ba13c0f18"),
    ],
)
def test_signs_are_those_of_the_definitions_vectors(
    by: str, where: Any, first: str, second_tile: str, digest: str
) -> None:
    signs = random_signs(8192, where, by=by)
    assert packed(signs[:64]) == first
    assert packed(signs[4096:4160]) == second_tile
    assert hashlib.sha256(bytes.fromhex(packed(signs))).hexdigest().startswith(digest)


@BOTH
def test_an_update_is_that_of_the_definitions_vector(by: str) -> None:
    master = np.zeros(4096, np.int32)
    master[:16] = 1000 * (np.arange(16) - 8)
    entries = [(100, 7, 1, 0), (-3, 7, 2, 5), (12345, 9, 2, 1)]
    where = np.stack([direction(c1, c2, c3, (5, 6)) for _, c1, c2, c3 in entries])
    perturbation.apply(master, np.array([a for a, *_ in entries], np.int32), where, by=by)
    assert master[:8].tolist() == [4242, 5248, -18248, 7242, 8248, 9248, 10242, -13442]
    assert hashlib.sha256(master.tobytes()).hexdigest().startswith("6902c20a12e6cd9e")


@BOTH
@settings(max_examples=30, deadline=None)
@given(
    numel=st.integers(0, 9000),
    words=st.tuples(WORD, WORD, WORD, WORD, WORD),
    tile=st.sampled_from([0, 1, 5, 2**27 - 3]),
    data=st.data(),
)
def test_each_sign_is_that_of_the_definition(
    by: str, numel: int, words: tuple[int, ...], tile: int, data: st.DataObject
) -> None:
    signs = random_signs(numel, np.array(words, np.uint32), first_tile=tile, by=by)
    assert signs.dtype == np.int8
    assert signs.size == numel
    for i in data.draw(st.lists(st.integers(0, numel - 1), max_size=5) if numel else st.just([])):
        assert signs[i] == sign_of(tile * 4096 + i, words[:3], words[3:])  # type: ignore[arg-type]


@BOTH
@pytest.mark.parametrize("size", SIZES)
def test_floats_move_by_epsilon_times_the_sign(by: str, size: int) -> None:
    values = floats(size)
    expected = values + np.float32(1e-3) * random_signs(size, WHERE).astype(np.float32)
    perturbation.perturb(values, 1e-3, WHERE, by=by)
    assert values.tobytes() == expected.tobytes()


@BOTH
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("kind", [torch.float32, torch.float16, torch.bfloat16])
def test_weights_are_the_rounded_integers(by: str, size: int, kind: torch.dtype) -> None:
    master = masters(size)
    amount = 268435
    exact = master.astype(np.int64) + amount * random_signs(size, WHERE).astype(np.int64)
    for shift in (0, 20, 28, 60):
        wide = torch.from_numpy(exact.astype(np.float32) * np.float32(2.0**-shift))
        expected = wide.clamp(-65504, 65504).half() if kind == torch.float16 else wide.to(kind)
        out = torch.empty(size, dtype=kind)
        target = out.view(torch.uint16).numpy() if kind == torch.bfloat16 else out.numpy()
        perturbation.materialise(master, target, WHERE, step=FixedStep(amount, shift), by=by)
        assert torch.equal(out, expected), shift


@BOTH
def test_the_smallest_halves_and_ties_are_rounded_to_even(by: str) -> None:
    master = np.array([*range(-40, 41), 2**24 + 1, 2**24 + 3, -(2**24) - 1], np.int32)
    for shift in (26, 28):
        half = np.empty(master.size, np.float16)
        perturbation.materialise(master, half, WHERE, step=FixedStep(0, shift), by=by)
        exact = (master.astype(np.float32) * np.float32(2.0**-shift)).astype(np.float16)
        assert half.tobytes() == exact.tobytes()


@BOTH
@pytest.mark.parametrize("size", SIZES)
def test_many_directions_add_up_modulo_two_to_the_32(by: str, size: int) -> None:
    for count in (0, 1, 3, 4, 5, 9):
        master, where, factors = masters(size), rows(count), coefficients(count)
        exact = master.astype(np.int64)
        for factor, words in zip(factors.tolist(), where, strict=True):
            exact += factor * random_signs(size, words).astype(np.int64)
        perturbation.apply(master, factors, where, by=by)
        assert master.tobytes() == exact.astype(np.uint32).view(np.int32).tobytes(), count


def in_order(values: Float32, signs: Any) -> float:
    """The definition of a part's projection, one value at a time."""
    total = np.float64(0)
    for start in range(0, values.size, 4096):
        lanes = np.zeros(32, np.float32)
        x, z = values[start : start + 4096], signs[start : start + 4096]
        for r in range(x.size):
            lanes[r & 31] += x[r] if z[r] > 0 else -x[r]
        tile = np.float64(0)
        for lane in lanes:
            tile += np.float64(lane)
        total += tile
    return float(total)


@BOTH
@pytest.mark.parametrize("size", [0, 1, 4097, 3 * 4096 + 40])
def test_a_projection_adds_in_the_order_that_is_written(by: str, size: int) -> None:
    values, where = floats(size), rows(3)
    parts = perturbation.project_parts(values, where, by=by)
    assert parts.shape == (int(size > 0), 3)
    expected = [in_order(values, random_signs(size, words)) for words in where]
    assert perturbation.add_parts(parts).tolist() == expected


@BOTH
@pytest.mark.parametrize("threads", [1, 2, 3, 7])
def test_slices_of_a_tensor_get_the_bits_of_the_whole(by: str, threads: int) -> None:
    size = 11 * 4096 + 77
    where, factors = rows(6), coefficients(6)
    values, master = floats(size), masters(size)
    whole_values, whole_master, whole_out = values.copy(), master.copy(), np.empty_like(values)
    perturbation.perturb(whole_values, 1e-3, WHERE, by=by)
    perturbation.apply(whole_master, factors, where, by=by)
    perturbation.materialise(whole_master, whole_out, WHERE, step=FixedStep(-9), by=by)
    out = np.empty_like(values)

    def work(part: slice, tile: int) -> None:
        perturbation.perturb(values[part], 1e-3, WHERE, first_tile=tile, by=by)
        perturbation.apply(master[part], factors, where, first_tile=tile, by=by)
        here = (master[part], out[part], WHERE)
        perturbation.materialise(*here, step=FixedStep(-9), first_tile=tile, by=by)

    cuts = perturbation.slices(size, threads)
    assert len(cuts) == threads
    assert cuts[-1][0].stop == size
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(lambda cut: work(*cut), cuts))
    assert values.tobytes() == whole_values.tobytes()
    assert master.tobytes() == whole_master.tobytes()
    assert out.tobytes() == whole_out.tobytes()


def test_parts_of_a_projection_may_be_made_apart() -> None:
    size = 2 * 256 * 4096 + 5000
    values, where = floats(size), rows(2)
    parts = [
        perturbation.project_parts(values[part], where, first_tile=tile)
        for part, tile in perturbation.slices(size, 3, tiles=256)
    ]
    assert len(parts) == 3
    whole = perturbation.project_parts(values, where)
    assert np.concatenate(parts).tobytes() == whole.tobytes()
    assert whole.tobytes() == perturbation.project_parts(values, where, by="reference").tobytes()
    with pytest.raises(ValueError, match="multiple of 256"):
        perturbation.project_parts(values[4096:], where, first_tile=1)


def test_nothing_is_left_of_a_thousand_updates_that_are_taken_back_in_another_order() -> None:
    master, where, factors = masters(5000), rows(1000), coefficients(1000)
    before = master.copy()
    perturbation.apply(master, factors, where)
    assert not np.array_equal(master, before)
    order = np.random.default_rng(5).permutation(1000)
    for part in np.array_split(order, 7):
        back, rest = np.ascontiguousarray(-factors[part]), np.ascontiguousarray(where[part])
        perturbation.apply(master, back, rest, by=["numba", "reference"][part.size % 2])
    assert master.tobytes() == before.tobytes()


def test_compiled_code_lets_other_threads_run_and_is_not_fused() -> None:
    kernels = perturbation._load("numba")
    compiled = [getattr(kernels, field) for field in PerturbationKernels.__slots__]
    assert all(kernel.targetoptions["nogil"] for kernel in compiled)
    assert not any(
        kernel.targetoptions.get(option)
        for kernel in compiled
        for option in ("fastmath", "parallel")
    )
    assert all(len(kernel.signatures) == 1 for kernel in compiled)


def test_other_arrays_are_refused() -> None:
    master, out = masters(4), np.empty(4, np.float32)
    with pytest.raises(ValueError, match="below 2\\^32"):
        direction(0, 1 << 32, 0, (0, 0))
    with pytest.raises(ValueError, match="expected a contiguous one-dimensional uint32"):
        random_signs(4, np.zeros(5, np.int64))
    with pytest.raises(ValueError, match="holds 4 values, expected 5"):
        random_signs(4, np.zeros(4, np.uint32))
    with pytest.raises(ValueError, match="tiles"):
        random_signs(4097, WHERE, first_tile=perturbation.MAX_TILES - 1)
    with pytest.raises(ValueError, match="float32 array"):
        perturbation.perturb(np.zeros((2, 2), np.float32), 1.0, WHERE)
    with pytest.raises(ValueError, match="int32 array"):
        perturbation.materialise(master.astype(np.int64), out, WHERE, step=FixedStep(0))
    with pytest.raises(ValueError, match="float64"):
        perturbation.materialise(master, np.empty(4), WHERE, step=FixedStep(0))
    with pytest.raises(ValueError, match="holds 3 values"):
        perturbation.materialise(master, out[:3], WHERE, step=FixedStep(0))
    with pytest.raises(ValueError, match="shift 61"):
        perturbation.materialise(master, out, WHERE, step=FixedStep(0, 61))
    with pytest.raises(OverflowError):
        perturbation.materialise(master, out, WHERE, step=FixedStep(1 << 31))
    with pytest.raises(ValueError, match="directions"):
        perturbation.apply(master, coefficients(1), WHERE)
    with pytest.raises(ValueError, match="holds 2 values, expected 1"):
        perturbation.apply(master, coefficients(2), rows(1))
    master.flags.writeable = False
    with pytest.raises(ValueError, match="read-only"):
        perturbation.apply(master, coefficients(1), rows(1))


def test_threads_get_slices_that_begin_with_tiles() -> None:
    assert perturbation.slices(0, 4) == ((slice(0, 0), 0),)
    assert perturbation.slices(10, 4) == ((slice(0, 10), 0),)
    cuts = perturbation.slices(10 * TILE + 1, 3)
    assert [part.start for part, _ in cuts] == [tile * TILE for _, tile in cuts]
    assert [part.stop for part, _ in cuts] == [part.start for part, _ in cuts[1:]] + [10 * TILE + 1]
