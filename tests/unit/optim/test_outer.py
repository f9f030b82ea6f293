"""The outer step: the same bits from both implementations, against a plain reference, and for all time."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from runnel.errors import ConfigError
from runnel.hashing import digest
from runnel.kernels import Float32
from runnel.optim.outer import OUTER_OPTIMIZERS, Adam, Momentum, Sgd, optimizer_named

EVERY = pytest.mark.parametrize("name", OUTER_OPTIMIZERS)
BOTH = pytest.mark.parametrize("by", ["numba", "reference"])


@pytest.fixture
def use(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    return lambda by: monkeypatch.setenv("RUNNEL_KERNELS", by)


def numbers(size: int, seed: int) -> Float32:
    state = (np.arange(size, dtype=np.uint64) + np.uint64(seed * 7919 + 1)) * np.uint64(
        0x9E3779B97F4A7C15
    )
    state ^= state >> np.uint64(31)
    unit = (state >> np.uint64(40)).astype(np.float32) / np.float32(1 << 23) - np.float32(1)
    cubed: Float32 = unit * unit * unit
    return cubed


def kept(name: str, values: Float32) -> Float32:
    """Those as what an optimizer keeps; mean squares are never negative."""
    slots = optimizer_named(name, lr=1, momentum=0).slots
    rows = [values, np.abs(values[::-1])][:slots]
    return values.copy() if slots == 1 else np.array(rows, np.float32).reshape(slots, values.size)


@BOTH
def test_results_never_change(use: Callable[[str], None], by: str) -> None:
    use(by)
    outer = Momentum(0.7, 0.8)
    theta, momentum = numbers(10_007, 1), np.zeros(10_007, np.float32)
    for step in range(5):
        outer.step(theta, momentum, numbers(10_007, 2 + step) * np.float32(1e-2), final=step == 4)
    assert (digest(theta.tobytes()).hex()[:32], digest(momentum.tobytes()).hex()[:32]) == (
        "8bfe7673b47d5757070d2c85c76ea4c4",
        "fa6cd8f5c927ec6b263bf04dbeda52e4",
    )


@BOTH
def test_a_step_is_nesterovs_formula_value_by_value(use: Callable[[str], None], by: str) -> None:
    use(by)
    lr, mu, f = np.float32(0.7), np.float32(0.9), np.float32
    theta, b, d = numbers(50, 1), numbers(50, 2), numbers(50, 3)
    expected_theta, expected_b = [], []
    for i in range(50):
        new_b = f(f(mu * b[i]) + d[i])
        expected_b.append(new_b)
        expected_theta.append(f(theta[i] - f(lr * f(d[i] + f(mu * new_b)))))
    Momentum(0.7, 0.9).step(theta, b, d, final=False)
    assert theta.tobytes() == np.array(expected_theta, f).tobytes()
    assert b.tobytes() == np.array(expected_b, f).tobytes()


@BOTH
def test_a_heavy_ball_moves_by_the_new_momentum_alone(use: Callable[[str], None], by: str) -> None:
    use(by)
    lr, mu, f = np.float32(0.7), np.float32(0.9), np.float32
    theta, b, d = numbers(50, 1), numbers(50, 2), numbers(50, 3)
    new_b = [f(f(mu * b[i]) + d[i]) for i in range(50)]
    expected = [f(theta[i] - f(lr * new_b[i])) for i in range(50)]
    Momentum(0.7, 0.9, ahead=False).step(theta, b, d, final=False)
    assert theta.tobytes() == np.array(expected, f).tobytes()
    assert b.tobytes() == np.array(new_b, f).tobytes()


@BOTH
def test_a_step_of_adam_is_fedadams_formula_value_by_value(
    use: Callable[[str], None], by: str
) -> None:
    use(by)
    f = np.float32
    lr, b1, c1, b2, c2, eps = map(f, (0.02, 0.9, 1 - 0.9, 0.99, 1 - 0.99, 1e-3))
    theta, d = numbers(50, 1), numbers(50, 3)
    b, wanted = kept("adam", numbers(50, 2)), []
    for x, m, v, g in zip(theta, *b, d, strict=True):
        new_m = f(f(b1 * m) + f(c1 * g))
        new_v = f(f(b2 * v) + f(c2 * f(g * g)))
        moved = f(x - f(lr * f(new_m / f(f(np.sqrt(new_v)) + eps))))
        wanted.append((moved, new_m, new_v))
    Adam(0.02, 0.9, 0.99, 1e-3).step(theta, b, d, final=False)
    assert [theta.tolist(), *b.tolist()] == np.array(wanted, f).T.tolist()


@BOTH
def test_mean_squares_of_one_bit_adam_stay_after_a_fragments_first_rounds(
    use: Callable[[str], None], by: str
) -> None:
    use(by)
    outer = optimizer_named("one-bit-adam", lr=0.02, momentum=0.9, beta2=0.75)
    plain = Adam(0.02, 0.9, 0.75, 1e-3)
    theta, other = numbers(2_000, 1), numbers(2_000, 1)
    b, b_other = np.zeros((2, theta.size), np.float32), np.zeros((2, theta.size), np.float32)
    for turn in range(4):
        d = numbers(theta.size, 5 + turn)
        outer.at(turn).step(theta, b, d, final=False)
        plain.at(turn).step(other, b_other, d, final=False)
        assert (theta.tobytes(), b.tobytes()) == (other.tobytes(), b_other.tobytes())
    stays, d = b[1].copy(), numbers(theta.size, 9)
    d[:2] = 3e38, -3e38  # whose square is infinite
    for turn in (4, 5, 1_000):
        mean, before = b[0].copy(), theta.copy()
        outer.at(turn).step(theta, b, d, final=False)
        assert b[1].tobytes() == stays.tobytes()
        assert np.allclose(b[0], 0.9 * mean + 0.1 * d, rtol=1e-5)
        assert np.allclose(theta, before - 0.02 * b[0] / (np.sqrt(stays) + 1e-3), rtol=1e-5)
    assert np.isfinite(theta).all()
    outer.at(2).step(theta, b, numbers(theta.size, 9), final=False)
    assert b[1].tobytes() != stays.tobytes()


def test_one_bit_adam_waits_until_its_mean_squares_have_forgotten_their_beginning() -> None:
    for beta2, warmup in ((0.0, 1), (0.5, 2), (0.9, 10), (0.99, 100), (0.999, 1_000)):
        assert Adam(0.02, 0.9, beta2, 1e-3, freezes=True).warmup == warmup


@BOTH
def test_results_of_adam_never_change(use: Callable[[str], None], by: str) -> None:
    use(by)
    outer, theta = Adam(0.02, 0.9, 0.99, 1e-3), numbers(10_007, 1)
    b = np.zeros((2, theta.size), np.float32)
    for step in range(5):
        outer.step(theta, b, numbers(10_007, 2 + step) * np.float32(1e-2), final=step == 4)
    assert (digest(theta.tobytes()).hex()[:32], digest(b.tobytes()).hex()[:32]) == (
        "367ccc80351ee6c51502f1dff6242c83",
        "deb37f6f50863f80c729eec8f67fc4f6",
    )


@BOTH
def test_pseudo_gradients_of_any_size_leave_adam_finite(
    use: Callable[[str], None], by: str
) -> None:
    use(by)
    d = np.array([3e38, -3e38, 1e19, 1e-19, -1e-38, 1e-45, 0], np.float32)
    theta, b = np.zeros(d.size, np.float32), np.zeros((2, d.size), np.float32)
    for _ in range(40):
        Adam(0.5, 0.9, 0.99, 1e-3).step(theta, b, d, final=False)
    assert np.isfinite(theta).all()
    assert np.isfinite(b).all()
    assert theta[-3:].tolist() == b[:, -3:].ravel().tolist()[:3] == [0, 0, 0]


@pytest.mark.parametrize(("beta2", "epsilon"), [(1, 1e-3), (-0.1, 1e-3), (0.9, 0), (0.9, np.nan)])
def test_numbers_that_adam_cannot_have_are_config_errors(beta2: float, epsilon: float) -> None:
    with pytest.raises(ConfigError, match="expected"):
        Adam(0.02, 0.9, beta2, epsilon)


@BOTH
def test_without_momentum_a_step_is_a_product_and_a_difference(
    use: Callable[[str], None], by: str
) -> None:
    use(by)
    theta, nothing, d = numbers(50, 1), np.zeros((0, 50), np.float32), numbers(50, 3)
    expected = theta - np.float32(0.7) * d
    new = (np.empty_like(theta), np.empty_like(nothing))
    Sgd(0.7).step(theta, nothing, d, final=False, out=new)
    assert new[0].tobytes() == expected.tobytes()


@EVERY
def test_each_method_ends_with_a_plain_averaging(name: str) -> None:
    theta, b, d = numbers(99, 1), kept(name, numbers(99, 2)), numbers(99, 3)
    expected, before = theta - d, b.copy()
    optimizer_named(name, lr=0.3, momentum=0.9).step(theta, b, d, final=True)
    assert theta.tobytes() == expected.tobytes()
    assert b.tobytes() == before.tobytes()


@given(
    st.lists(
        st.tuples(*[st.floats(width=32, allow_nan=False, allow_infinity=False)] * 3), max_size=70
    ),
    st.floats(0.01, 2),
    st.floats(0, 0.99),
    st.booleans(),
    st.sampled_from(sorted(OUTER_OPTIMIZERS)),
)
def test_both_implementations_give_the_same_bits(
    rows: list[tuple[float, ...]], lr: float, mu: float, final: bool, name: str
) -> None:
    results = []
    for by in ("numba", "reference"):
        theta, b, d = (np.array([row[i] for row in rows], np.float32) for i in range(3))
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("RUNNEL_KERNELS", by)
            b = kept(name, b)
            optimizer_named(name, lr=lr, momentum=mu).step(theta, b, d, final=final)
        results.append((theta.tobytes(), b.tobytes()))
    assert results[0] == results[1]


@BOTH
def test_momentum_below_two_to_the_minus_hundred_becomes_plus_zero(
    use: Callable[[str], None], by: str
) -> None:
    use(by)
    tiny = np.float32(2.0**-100)
    theta = np.ones(4, np.float32)
    b = np.zeros(4, np.float32)
    d = np.array([tiny, np.nextafter(tiny, np.float32(0)), -tiny / 2, -0.0], np.float32)
    Momentum(0.5, 0.5).step(theta, b, d, final=False)
    assert b.tobytes() == np.array([tiny, 0, 0, 0], np.float32).tobytes()


@BOTH
@pytest.mark.parametrize("final", [False, True])
def test_subnormal_pseudo_gradients_move_nothing_so_flushing_them_changes_no_bit(
    use: Callable[[str], None], by: str, final: bool
) -> None:
    use(by)
    subnormal = np.array([1e-41, -1e-45, 1.1e-38, -1.1e-38], np.float32)
    with_them, without = [np.array([0, 1, -1e-29, 0], np.float32) for _ in range(2)]
    b_with, b_without = [np.array([0, 1e-30, 0, 1], np.float32) for _ in range(2)]
    outer = Momentum(1.0, 0.9)
    outer.step(with_them, b_with, subnormal, final=final)
    outer.step(without, b_without, np.zeros(4, np.float32), final=final)
    assert with_them.tobytes() == without.tobytes()
    assert b_with.tobytes() == b_without.tobytes()


@EVERY
@pytest.mark.parametrize("final", [False, True])
def test_a_thread_that_flushes_subnormal_numbers_finds_the_same_bits(
    name: str, final: bool
) -> None:
    def result() -> bytes:
        theta, b, d = theta0.copy(), b0.copy(), d0.copy()
        for _ in range(3):
            outer.step(theta, b, d, final=final)
        return theta.tobytes() + b.tobytes()

    outer = optimizer_named(name, lr=0.7, momentum=0.8)
    scale = np.float32(2.0) ** (-(np.arange(5_000) % 150)).astype(np.float32)
    theta0, d0 = numbers(5_000, 1) * scale, numbers(5_000, 2) * scale[::-1].copy()
    theta0[::7] = 0
    b0 = kept(name, numbers(5_000, 3) * scale)
    plain = result()
    if not torch.set_flush_denormal(True):
        pytest.skip("this processor does not flush")
    try:
        flushed = result()
    finally:
        torch.set_flush_denormal(False)
    assert flushed == plain


@BOTH
def test_a_final_step_is_plain_averaging_and_leaves_the_momentum(
    use: Callable[[str], None], by: str
) -> None:
    use(by)
    theta, b, d = numbers(99, 1), numbers(99, 2), numbers(99, 3)
    expected, before = theta - d, b.copy()
    Momentum(0.1, 0.9).step(theta, b, d, final=True)
    assert theta.tobytes() == expected.tobytes()
    assert b.tobytes() == before.tobytes()


def test_without_momentum_and_with_lr_one_a_step_is_averaging() -> None:
    theta, b, d = numbers(99, 1), np.zeros(99, np.float32), numbers(99, 3)
    expected = theta - d
    Momentum(1.0, 0.0).step(theta, b, d, final=False)
    assert np.array_equal(theta, expected)


@pytest.mark.parametrize("final", [False, True])
def test_arrays_of_different_sizes_are_refused(final: bool) -> None:
    a, b = np.zeros(5, np.float32), np.zeros(6, np.float32)
    with pytest.raises(ValueError, match="expected 5"):
        Momentum(0.7, 0.8).step(a, a.copy(), b, final=final)
    frozen = np.frombuffer(bytes(20), np.float32)
    with pytest.raises(ValueError, match="read-only"):
        Momentum(0.7, 0.8).step(frozen, a, a, final=final)


def test_optimizers_are_found_by_name() -> None:
    outer = optimizer_named("nesterov", lr=0.7, momentum=0.8)
    assert outer == Momentum(0.7, 0.8)
    assert [optimizer_named(name, lr=1, momentum=0).name for name in OUTER_OPTIMIZERS] == list(
        OUTER_OPTIMIZERS
    )
    with pytest.raises(ConfigError, match=r"'lion'.*nesterov"):
        optimizer_named("lion", lr=0.7, momentum=0.8)


@pytest.mark.parametrize(
    ("lr", "momentum"),
    [
        (0, 0.8),
        (-1, 0.8),
        (float("nan"), 0.8),
        (float("inf"), 0.8),
        (0.7, 1),
        (0.7, -0.1),
        (0.7, float("nan")),
    ],
)
def test_numbers_out_of_range_are_config_errors(lr: float, momentum: float) -> None:
    with pytest.raises(ConfigError, match="expected"):
        Momentum(lr, momentum)
