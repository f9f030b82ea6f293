"""Perturbations from a seed: how fast, against memcpy and against MeZO's way, and whether all bits agree.

One thread, `VALUES` values. Each round takes every operation in turn, memcpy among them; what counts
is the least processor time of each over all rounds, so that what else the machine does matters
little. MeZO's way (*Fine-Tuning Language Models with Just Forward Passes*, algorithm 1) draws a
Gaussian from a seed and adds it, four times in a step: +epsilon, -2 epsilon, +epsilon, the update.
Ours materialises twice from fixed-point weights and applies once.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch

from benchmarks.report_line import Say, benchmark_parser, report
from runnel.kernels import perturb_torch, perturbation
from runnel.kernels.perturbation import FixedStep, direction

VALUES, QUICK_VALUES = 1 << 24, 1 << 22
SEEDS = 64
ROUNDS = 9
EPSILON = 1e-3
AMOUNT = round(EPSILON * 2**28)
KEY = (0xDEADBEEF, 0x12345678)
CHECKED_VALUES = (1 << 20) + 77

Work = Callable[[], object]


def least_seconds(works: Mapping[str, Work], rounds: int) -> dict[str, float]:
    """Processor seconds of this thread: the least over all rounds, in each of which all take turns."""
    least = dict.fromkeys(works, float("inf"))
    for _ in range(rounds):
        for name, work in works.items():
            before = time.thread_time()
            work()
            least[name] = min(least[name], time.thread_time() - before)
    return least


def operations(values: int) -> dict[str, Work]:
    """What is timed, all of it on arrays that exist already."""
    generator = np.random.default_rng(0)
    x = generator.standard_normal(values, dtype=np.float32)
    y, tensor = np.zeros_like(x), torch.zeros(values)
    master = (x * np.float32(2**24)).astype(np.int32)
    where = direction(7, 12345, 3, KEY)
    many = np.stack([direction(7, 12345, slot, KEY) for slot in range(SEEDS)])
    codes = generator.integers(-(2**20), 2**20, SEEDS, dtype=np.int32)

    def mezo() -> None:
        torch.manual_seed(5)
        tensor.add_(torch.normal(mean=0.0, std=1.0, size=(values,)), alpha=EPSILON)

    def materialise(amount: int, by: str | None = None) -> None:
        perturbation.materialise(master, y, where, step=FixedStep(amount), by=by)

    def step() -> None:
        materialise(AMOUNT)
        materialise(-AMOUNT)
        perturbation.apply(master, codes[:1], many[:1])

    return {
        "memcpy": lambda: np.copyto(y, x),
        "perturb": lambda: perturbation.perturb(x, EPSILON, where),
        "materialise": lambda: materialise(AMOUNT),
        "catch_up": lambda: perturbation.apply(master, codes, many),
        "step": step,
        "mezo": mezo,
        "fallback": lambda: perturbation.perturb(x, EPSILON, where, by="reference"),
        "fallback_materialise": lambda: materialise(AMOUNT, "reference"),
    }


def bits_agree() -> bool:
    """Whether compiled code on one and two threads, numpy and torch give one result everywhere."""
    generator = np.random.default_rng(1)
    x = generator.standard_normal(CHECKED_VALUES, dtype=np.float32)
    base = generator.integers(-(2**30), 2**30, CHECKED_VALUES, dtype=np.int32)
    where = np.stack([direction(7, step, slot, KEY) for step in range(3) for slot in range(3)])
    codes = generator.integers(-(2**31), 2**31, len(where), dtype=np.int32)

    def by_threads(threads: int, by: str | None) -> bytes:
        values, master, out = x.copy(), base.copy(), np.zeros_like(x)

        def work(part: slice, tile: int) -> None:
            perturbation.perturb(values[part], EPSILON, where[0], first_tile=tile, by=by)
            perturbation.apply(master[part], codes, where, first_tile=tile, by=by)
            here, step = (master[part], out[part], where[1]), FixedStep(AMOUNT)
            perturbation.materialise(*here, step=step, first_tile=tile, by=by)

        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(lambda cut: work(*cut), perturbation.slices(x.size, threads)))
        return values.tobytes() + master.tobytes() + out.tobytes()

    values, master = torch.from_numpy(x.copy()), torch.from_numpy(base.copy())
    out = torch.zeros_like(values)
    perturb_torch.perturb(values, EPSILON, where[0])
    perturb_torch.apply(master, codes, where)
    perturb_torch.materialise(master, out, where[1], step=FixedStep(AMOUNT))
    found = {b"".join(array.numpy().tobytes() for array in (values, master, out))}
    found |= {by_threads(threads, by) for threads in (1, 2) for by in (None, "reference")}
    return len(found) == 1


def measure(values: int, rounds: int, say: Say) -> dict[str, Any]:
    """The ratios that the issue of speed turns on."""
    torch.set_num_threads(1)
    works = operations(values)
    for work in works.values():
        work()
    least = least_seconds(works, rounds)
    copy = least["memcpy"]
    say(f"{values:,} values, memcpy {8 * values / copy / 1e9:.1f} GB/s (read and written)")
    for name, seconds in least.items():
        say(f"{name:22} {seconds * 1e3:9.2f} ms {copy / seconds:7.2f} x memcpy")
    return {
        "values": values,
        "memcpy_gb_s": round(8 * values / copy / 1e9, 2),
        "perturb_of_memcpy": round(copy / least["perturb"], 3),
        "materialise_of_memcpy": round(copy / least["materialise"], 3),
        "speedup_over_mezo": round(least["mezo"] / max(least["perturb"], least["materialise"]), 2),
        "step_speedup_over_mezo": round(4 * least["mezo"] / least["step"], 2),
        "catch_up_of_memcpy": round(copy * SEEDS / least["catch_up"], 3),
        "catch_up_ns": round(least["catch_up"] / values / SEEDS * 1e9, 4),
        "joiner_of_perturbations": round(least["catch_up"] / SEEDS / (2 * least["materialise"]), 3),
        "fallback_of_memcpy": round(copy / least["fallback"], 3),
        "fallback_materialise_of_memcpy": round(copy / least["fallback_materialise"], 3),
        "identical_bits": bits_agree(),
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; gives the exit code."""
    parser = benchmark_parser("perturb", "Perturbations from a seed against memcpy and MeZO's way.")
    options = parser.parse_args(arguments)
    values = QUICK_VALUES if options.quick else VALUES

    def run(say: Say) -> dict[str, Any]:
        rounds = ROUNDS // 3 if options.quick else ROUNDS
        return {"benchmark": "perturb", "quick": options.quick, **measure(values, rounds, say)}

    return report(run, json_only=options.json)


if __name__ == "__main__":
    raise SystemExit(main())
