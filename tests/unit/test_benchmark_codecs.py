"""The codecs' benchmark: what it times is what a peer does, and its comparison with plain numpy can fail."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks import codecs
from benchmarks.codecs import CODECS, bench_of, fallback_equal, values_of
from runnel.optim.codecs import codec_named


@pytest.mark.parametrize("name", ["int8", "top-k"])
def test_error_feedback_is_what_is_timed(name: str) -> None:
    values = values_of(5_000)
    bench, codec, owed = bench_of(name, values), codec_named(name), np.zeros(5_000, np.float32)
    codec.encode(owed + values, owed)
    assert np.array_equal(bench.owed, owed)
    bench.encode()
    assert bytes(bench.payload) == codec.encode(owed + values)


def test_other_bytes_of_the_fallback_would_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(codecs, "CHECKED", 5_000)
    assert fallback_equal(list(CODECS))
    monkeypatch.setattr(
        codecs, "codec_named", lambda name, by: codec_named("int8" if by == "numba" else "int4")
    )
    assert not fallback_equal(["int8"])
