"""The bandwidth benchmark: what it calls a peak."""

from __future__ import annotations

from benchmarks.bandwidth import bytes_per_round, peak_bytes


def test_a_peak_is_the_most_within_any_time_of_that_length() -> None:
    bursts = {1.0: 40, 1.2: 40, 2.0: 40, 2.2: 40, 3.2: 40, 3.4: 40}
    samples, sent = [(0.0, 0)], 0
    for tenth in range(1, 50):
        sent += bursts.get(tenth / 10, 0)
        samples.append((tenth / 10, sent))
    assert peak_bytes(samples, 0.15) == 40
    assert peak_bytes(samples, 0.55) == 80  # one round
    assert peak_bytes(samples, 1.25) == 120  # and the beginning of another one that came early
    assert peak_bytes(samples, 9.0) == 240


def test_bytes_of_a_round_are_the_mean_of_all_that_were_seen() -> None:
    assert bytes_per_round([(0.0, 5), (1.0, 15), (2.5, 35)]) == 15
