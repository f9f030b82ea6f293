"""Codecs on one thread against a plain copy of the same values, and against hivemind's 8-bit compressions.

What is timed is processor time of the whole process, in turns: a copy, an encoding with error feedback
(add to what is owed, encode, keep what that lost: one call of `Codec.encode_parts`), and a decoding that
adds to a sum. Other work on the machine only adds to such times, so the least of each counts.

    python -m benchmarks.codecs [--quick] [--json] [--codecs ...]
"""

from __future__ import annotations

import statistics
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from time import perf_counter, process_time
from typing import Any

import numpy as np
import torch
from hivemind.compression import CompressionInfo, Quantile8BitQuantization, Uniform8BitQuantization

from benchmarks.report_line import Say, benchmark_parser, report
from runnel.kernels import Float32
from runnel.optim.codecs import codec_named
from runnel.optim.parts import parts_of
from runnel.protocols import Codec

NUMEL = 2**24
CHECKED = 2**19 + 1_234
CODECS: Mapping[str, str] = {
    "fp16": "fp16",
    "bf16": "bf16",
    "int8": "int8",
    "int4": "int4",
    "e3m0": "e3m0",
    "two-bit": "two_bit",
    "sign": "sign",
    "top-k": "topk",
    "random-k": "randomk",
    "hadamard+int4": "hadamard_int4",
    "count-sketch": "count_sketch",
}
"""What is measured, and how the keys of the result begin."""

FULL_TURNS, QUICK_TURNS = 15, 4
FULL_PAIRS, QUICK_PAIRS = 7, 3
_WINDOW_S = 1.0


@dataclass(slots=True)
class Bench:
    """One codec at work on the same values in each turn, and the least times it took, in seconds."""

    codec: Codec
    values: Float32
    owed: Float32
    room: memoryview
    encode_s: float = float("inf")
    decode_s: float = float("inf")
    payload: memoryview = field(default_factory=lambda: memoryview(b""))

    def encode(self) -> None:
        """With error feedback: what is lost stays in `owed`."""
        pairs = ((self.owed[part], self.values[part]) for part in parts_of(0, self.values.size))
        self.payload = self.codec.encode_parts(pairs, self.values.size, self.room)

    def turn(self, total: Float32) -> None:
        """Encodes and adds to `total` once."""
        self.encode_s = min(self.encode_s, seconds_of(self.encode))
        self.decode_s = min(
            self.decode_s, seconds_of(lambda: self.codec.accumulate(self.payload, 0.25, total))
        )


def seconds_of(work: Callable[[], object]) -> float:
    """Processor time of one call."""
    start = process_time()
    work()
    return process_time() - start


def values_of(numel: int, seed: int = 0) -> Float32:
    """Numbers like a pseudo-gradient's: normal ones whose size varies from row to row."""
    random = np.random.default_rng(seed)
    rows = np.exp(random.standard_normal(-(-numel // 1024)).astype(np.float32))
    values = random.standard_normal(numel, dtype=np.float32)
    values *= np.repeat(rows, 1024)[:numel] * np.float32(1e-3)
    return values


def bench_of(name: str, values: Float32) -> Bench:
    """A codec with memory for its payload that has been touched before."""
    codec = codec_named(name)
    room = memoryview(bytearray(b"\1" * codec.max_bytes(values.size)))
    bench = Bench(codec, values, np.zeros_like(values), room)
    bench.encode()
    return bench


def compare(names: Sequence[str], numel: int, turns: int) -> tuple[float, dict[str, Bench]]:
    """The least time of a copy, and of each codec."""
    values, total = values_of(numel), np.ones(numel, np.float32)
    copied = np.ones_like(values)
    copy_s = float("inf")
    benches = {}
    for name in names:
        bench = bench_of(name, values)
        for _ in range(turns):
            copy_s = min(copy_s, seconds_of(lambda: np.copyto(copied, values)))
            bench.turn(total)
        benches[name] = bench
    return copy_s, benches


def hivemind_s(numel: int, turns: int) -> dict[str, float]:
    """The least time of hivemind's compressions of the same values; QUANTILE_8BIT runs once."""
    tensor = torch.from_numpy(values_of(numel))
    info = CompressionInfo.from_tensor(tensor)
    found = {}
    for name, kind, times in (
        ("uniform", Uniform8BitQuantization, turns),
        ("quantile", Quantile8BitQuantization, 1),
    ):
        work = partial(kind().compress, tensor, info)
        found[name] = min(seconds_of(work) for _ in range(times))
    return found


def fallback_equal(names: Sequence[str]) -> bool:
    """Whether plain numpy gives the same payloads and the same rest."""
    values = values_of(CHECKED, seed=1)
    for name in names:
        rests = np.empty_like(values), np.empty_like(values)
        payloads = [
            codec_named(name, by=by).encode(values, rest)
            for by, rest in zip(("numba", "reference"), rests, strict=True)
        ]
        if payloads[0] != payloads[1] or rests[0].tobytes() != rests[1].tobytes():
            return False
    return True


def trainer_speed_beside(bench: Bench, pairs: int) -> float:
    """Steps of a training thread beside a thread that encodes, over those it takes alone; the median.

    One thread of torch for each. Wall time, so that it says something only with a second core at hand.
    """
    ratios = []
    for _ in range(pairs):
        alone = _steps()
        ended = threading.Event()
        encoder = threading.Thread(target=_encode_until, args=(bench, ended))
        encoder.start()
        try:
            beside = _steps()
        finally:
            ended.set()
            encoder.join()
        ratios.append(beside / alone)
    return statistics.median(ratios)


def _encode_until(bench: Bench, ended: threading.Event) -> None:
    while not ended.is_set():
        bench.encode()


def _steps() -> int:
    """Steps of a small model in a second."""
    model = torch.nn.Sequential(
        torch.nn.Linear(256, 512), torch.nn.GELU(), torch.nn.Linear(512, 256)
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    batch = torch.ones(32, 256)
    taken, end = 0, perf_counter() + _WINDOW_S
    while perf_counter() < end:
        loss = model(batch).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        taken += 1
    return taken


def measure(names: Sequence[str], say: Say, *, quick: bool) -> dict[str, Any]:
    """All figures."""
    torch.set_num_threads(1)
    turns = QUICK_TURNS if quick else FULL_TURNS
    copy_s, benches = compare(names, NUMEL, turns)
    result: dict[str, Any] = {
        "benchmark": "codecs",
        "quick": quick,
        "values": NUMEL,
        "memcpy_gb_per_s": round(4e-9 * NUMEL / copy_s, 2),
    }
    say(
        f"{NUMEL * 4 >> 20} MiB of float32 on one thread; copied at {result['memcpy_gb_per_s']} GB/s"
    )
    for name, bench in benches.items():
        result[f"{CODECS[name]}_encode_of_memcpy"] = round(copy_s / bench.encode_s, 3)
        result[f"{CODECS[name]}_decode_of_memcpy"] = round(copy_s / bench.decode_s, 3)
        say(
            f"{name:>8}: encoded with error feedback at {copy_s / bench.encode_s:.2f},"
            f" added up at {copy_s / bench.decode_s:.2f} times a copy's speed"
        )
    if "int8" in benches:
        theirs = hivemind_s(NUMEL, 2 if quick else 5)
        for key, kind in (("", "uniform"), ("_quantile", "quantile")):
            ratio = theirs[kind] / benches["int8"].encode_s
            result[f"int8_encode_over_hivemind{key}"] = round(ratio, 1)
            say(f"int8 encodes {ratio:.1f} times as fast as hivemind's {kind} 8 bits")
        speed = trainer_speed_beside(benches["int8"], QUICK_PAIRS if quick else FULL_PAIRS)
        result["trainer_speed_beside_encoding"] = round(speed, 3)
        say(f"a training thread beside an encoding one takes {speed:.0%} of its steps")
    result["fallback_same_bytes"] = fallback_equal(names)
    return result


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; gives the exit code."""
    parser = benchmark_parser("codecs", "Codecs against a copy, and against hivemind's.")
    parser.add_argument("--codecs", nargs="+", choices=CODECS, default=list(CODECS))
    options = parser.parse_args(arguments)
    return report(
        lambda say: measure(options.codecs, say, quick=options.quick), json_only=options.json
    )


if __name__ == "__main__":
    sys.exit(main())
