"""Loss against bytes: outer steps of a few peers against data parallel training with the same data.

Four peers train a character GPT (`benchmarks.chars`). Data parallel averages their gradients in each
step; the other methods exchange pseudo-gradients every 50 steps. All see the same characters.

Bytes are payloads that a peer sends, in both directions; message headers, commitments and votes
(a fixed size each round) are not counted. They are compared with a ring all-reduce of bf16
gradients in each step, which sends 2 * (K - 1) / K * 2 bytes for each parameter.

The methods are simulated in one process; one of them then runs again with a process for each peer
and a network between them (`benchmarks.real_peers`), which must learn as much.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.chars import (
    CharGpt,
    Task,
    Text,
    batch_of,
    inner_optimizer_of,
    read_text,
    train_step,
    validation_loss,
)
from benchmarks.real_peers import Job, run_real_peers
from benchmarks.report_line import Say, benchmark_parser, report
from benchmarks.simulated_rounds import Draw, SimulatedRounds
from runnel.clock import SystemClock
from runnel.errors import ConfigError
from runnel.node.manifest_sections import InnerSection, OuterSection
from runnel.optim import ScheduleFreeAdamW, plan_model
from runnel.optim.inner import forget
from runnel.types import Digest, short

STEPS = 2_000
QUICK_STEPS = 200
LONG_STEPS = 8_000
"""With a longer context and a smaller learning rate: see `task_of`."""

DATA_PARALLEL = "data_parallel"


@dataclass(frozen=True, slots=True)
class Method:
    """What is exchanged and how, by an `OuterSection` (None: gradients, every step), and what trains.

    `late` is how many steps after its hand-over each fragment is merged, where they differ.
    """

    outer: OuterSection | None
    inner: str = "adamw"
    late: tuple[int, ...] = ()

    def applied_to(self, task: Task) -> Task:
        """The task with this method's inner optimizer, and its rates."""
        chosen: dict[str, Any] = {"optimizer": self.inner}
        if self.inner == "schedule-free":
            chosen["final_lr_share"] = 1.0
        return replace(task, inner=task.inner.model_copy(update=chosen))


def _both(codec: str, every_steps: int, fragments: int = 4, **more: Any) -> OuterSection:
    return OuterSection(
        every_steps=every_steps, fragments=fragments, codec=codec, result_codec=codec, **more
    )


_LATE = (2, 5, 7, 10)
"""Four pieces of a whole model are merged within a fifth of the next window."""

METHODS: Mapping[str, Method] = {
    "streaming_e3m0": Method(_both("e3m0", 50)),
    "streaming_fp32": Method(_both("fp32", 50)),
    "whole_e3m0": Method(_both("e3m0", 50, 1)),
    "public_e3m0": Method(_both("e3m0", 50, windows="public"), late=_LATE),
    "public_fresh_e3m0": Method(
        _both("e3m0", 50, windows="public", inner_state="fresh"), late=_LATE
    ),
    "streaming_two_bit": Method(_both("two-bit", 50)),
    "streaming_sign": Method(_both("sign", 50)),
    "h100_e3m0": Method(_both("e3m0", 100)),
    "h100_two_bit": Method(_both("two-bit", 100)),
    "heavy_ball_e3m0": Method(_both("e3m0", 50, optimizer="heavy-ball")),
    "adam_e3m0": Method(_both("e3m0", 50, optimizer="adam", lr=0.02, momentum=0.9)),
    "one_bit_adam": Method(
        _both("sign", 50, optimizer="one-bit-adam", lr=0.02, momentum=0.9, beta2=0.9)
    ),
    "averaging_e3m0": Method(_both("e3m0", 50, optimizer="sgd", lr=1.0)),
    "sparseloco": Method(
        OuterSection(
            every_steps=30,
            fragments=1,
            codec="top-k",
            result_codec="top-k:256",
            optimizer="sgd",
            lr=1.0,
            residual_decay=0.95,
        )
    ),
    "bf16": Method(_both("bf16", 50)),
    "random_k": Method(_both("random-k:1024", 30, 1, optimizer="sgd", lr=1.0)),
    "count_sketch": Method(_both("count-sketch", 30, 1, optimizer="sgd", lr=1.0)),
    "hadamard_two_bit": Method(_both("hadamard+two-bit", 50)),
    "hadamard_sign": Method(_both("hadamard+sign", 50)),
    "l_greco_e3m0": Method(_both("l-greco+e3m0", 50)),
    "data_parallel_schedule_free": Method(None, "schedule-free"),
    "schedule_free_e3m0": Method(_both("e3m0", 50), "schedule-free"),
    "data_parallel_muon": Method(None, "muon"),
    "muon_e3m0": Method(_both("e3m0", 50), "muon"),
    "muon_h100_two_bit": Method(_both("two-bit", 100), "muon"),
    "muon_h150_two_bit": Method(_both("two-bit", 150, lr=0.9, momentum=0.6), "muon"),
}
"""Error feedback in both directions in all of them. The first three run where none is named."""

USUAL = 3
REAL = "streaming_e3m0"
"""The method that real peers run, too."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """A finished run.

    Attributes:
        val_loss: of the outer parameters, in nats per character.
        sent_bytes: by an average peer.
        states: digest of the outer state of each peer; empty where there is none.
    """

    val_loss: float
    sent_bytes: float
    states: tuple[Digest, ...]


def data_parallel(task: Task, text: Text) -> Outcome:
    """One model, each step on the batches of all peers at once."""
    model = CharGpt(task, text.vocab)
    optimizer = inner_optimizer_of(model, task)
    for step in range(1, task.steps + 1):
        batch = torch.cat([batch_of(text, task, peer=p, step=step) for p in range(task.peers)])
        train_step([model], [optimizer], batch.unsqueeze(0), task, step=step)
    numel = sum(parameter.numel() for parameter in model.parameters())
    per_step_bytes = 2 * (task.peers - 1) / task.peers * 2 * numel
    averaged = optimizer.averaged() if isinstance(optimizer, ScheduleFreeAdamW) else nullcontext()
    with averaged:
        loss = validation_loss(model, text, task)
    return Outcome(loss, per_step_bytes * task.steps, ())


def simulate(
    task: Task,
    text: Text,
    outer: OuterSection,
    draws: Sequence[Draw] = (),
    late: Sequence[int] = (),
) -> Outcome:
    """All peers of a swarm, one step after the other, in this process.

    Args:
        task: what they train.
        text: on what.
        outer: what they exchange.
        draws: of each round of a run of real peers. Models then go through their steps one by one
            as in processes of their own, so that all bits are those of the real peers.
        late: steps from hand-over to merge, by fragment; `outer.overlap_steps` if not given.

    Raises:
        ConfigError: the task is shorter than a window.
        BugError: the peers' outer states differ after a round.
    """
    if task.steps < outer.every_steps:
        raise ConfigError(
            f"the task has {task.steps} steps, expected at least every_steps {outer.every_steps}"
        )
    models = [CharGpt(task, text.vocab) for _ in range(task.peers)]
    optimizers = [inner_optimizer_of(model, task) for model in models]
    plan = plan_model(models[0], outer.fragments)
    num_rounds = task.steps // outer.every_steps * outer.fragments
    rounds = SimulatedRounds(models, plan, outer, num_rounds, draws, late)
    groups = [slice(p, p + 1) for p in range(task.peers)] if draws else [slice(None)]
    window_tokens = outer.every_steps * task.batch_size * task.context
    for step in range(1, task.steps + 1):
        batches = [batch_of(text, task, peer=peer, step=step) for peer in range(task.peers)]
        for group in groups:
            chosen = torch.stack(batches[group])
            train_step(models[group], optimizers[group], chosen, task, step=step)
        rounds.after_step(step, tokens=window_tokens)
        if outer.inner_state == "fresh" and step % outer.every_steps == 0:
            for optimizer in optimizers:
                forget(optimizer)
    states = tuple(rounds.finish())
    rounds.write_outer(0)
    sent_bytes = sum(rounds.sent_bytes) / task.peers
    return Outcome(validation_loss(models[0], text, task), sent_bytes, states)


def measure(task: Task, text: Text, methods: Mapping[str, Method], say: Say) -> dict[str, Any]:
    """Runs data parallel and then `methods`; the result as JSON has it.

    Raises:
        ConfigError: the task is shorter than a method's window.
        BugError: the peers' outer states differ after a round.
    """
    shape = f"{task.batch_size} x {task.context}"
    say(f"{text.name}: {task.peers} peers, {task.steps} steps of {shape} characters")
    say(f"{'method':<16} {'val_loss':>9} {'loss_gap':>9} {'bytes_ratio':>12} {'seconds':>8}")
    clock = SystemClock()
    rows: dict[str, dict[str, Any]] = {}
    baseline: Outcome | None = None
    identical = True
    for name, method in ((DATA_PARALLEL, Method(None)), *methods.items()):
        start_s, given, outer = clock.monotonic_s(), method.applied_to(task), method.outer
        if outer is None:
            done = data_parallel(given, text)
        else:
            done = simulate(given, text, outer, late=method.late)
        baseline = baseline or done
        identical &= len(set(done.states)) <= 1
        rows[name] = row = _row(done, baseline)
        duration_s = clock.monotonic_s() - start_s
        say(
            f"{name:<16} {row['val_loss']:>9.4f} {row['loss_gap']:>+9.2%}"
            f" {row['bytes_ratio']:>11.1f}x {duration_s:>8.1f}"
        )
    return {
        "benchmark": "learning",
        "text": text.name,
        "peers": task.peers,
        "steps": task.steps,
        "seed": task.seed,
        "identical_bits": identical,
        "methods": rows,
    }


def compare(job: Job, text: Text, simulated_loss: float, say: Say) -> dict[str, Any]:
    """Real peers against a simulation that draws as they drew; as JSON has it.

    The real peers' folder is deleted if none of them failed.

    Args:
        job: what they do.
        text: what they train on.
        simulated_loss: of a simulation with draws of its own, for comparison.
        say: takes a line for people.

    Raises:
        ChildError: a real peer failed.
    """
    clock = SystemClock()
    start_s = clock.monotonic_s()
    folder = Path(tempfile.mkdtemp(prefix="real-peers-"))
    real = run_real_peers(job, folder)
    shutil.rmtree(folder)
    duration_s = clock.monotonic_s() - start_s
    gap, same_bits = None, False
    if real.draws:
        replayed = simulate(job.task, text, job.outer, real.draws)
        gap = _gap(real.val_loss, replayed.val_loss)
        same_bits = set(real.states) == {state.hex() for state in replayed.states}
    row = {
        "val_loss": round(real.val_loss, 4),
        "gap_to_simulation": gap,
        "bits_of_simulation": same_bits,
        "gap_with_other_draws": _gap(real.val_loss, simulated_loss),
        **real.facts(),
    }
    say(
        f"real peers: val_loss {row['val_loss']:.4f}, {row['gap_with_other_draws']:+.2%} against"
        f" {REAL}; {'the' if same_bits else 'not the'} bits of a simulation with their draws;"
        f" {row['rounds_of_all']} of {row['rounds']} rounds with all peers;"
        f" {row['sent_bytes_per_peer'] / 1e6:.2f} MB sent by each,"
        f" {row['payload_bytes_per_peer'] / 1e6:.2f} MB of it payloads; {duration_s:.1f} s"
    )
    return row


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; gives the exit code."""
    parser = benchmark_parser("learning", "Loss against bytes, against data parallel training.")
    parser.add_argument(
        "--methods", metavar="A,B", help=f"some of {', '.join(METHODS)}; with --quick the first"
    )
    parser.add_argument("--text", type=Path, metavar="FILE", help="train on this file")
    parser.add_argument("--seed", type=int, default=0, help="of initial parameters and data")
    parser.add_argument(
        "--long", action="store_true", help="four times the steps, twice the context"
    )
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    task = task_of(quick=options.quick, long=options.long, seed=options.seed)
    usual = ",".join(tuple(METHODS)[: 1 if options.quick else USUAL])

    def run(say: Say) -> dict[str, Any]:
        methods = methods_named(options.methods or usual)
        left_out = [name for name in METHODS if name not in methods]
        text = read_text(options.text)
        result = measure(task, text, methods, say)
        real = None
        method = None if options.long else methods.get(REAL)
        if method is not None and method.outer is not None:
            job = Job(task, method.outer, options.text)
            real = compare(job, text, result["methods"][REAL]["val_loss"], say)
        return {
            "quick": options.quick,
            **result,
            "methods_left_out": left_out,
            "real_peers": real,
        }

    return report(run, json_only=options.json)


def task_of(*, quick: bool, long: bool, seed: int) -> Task:
    """What is trained: 2,000 steps; 200 quick ones; or 8,000 with context 64, where methods can be told apart."""
    if long:
        inner = InnerSection(lr=4e-3, warmup_share=100 / LONG_STEPS)
        return Task(seed=seed, steps=QUICK_STEPS if quick else LONG_STEPS, context=64, inner=inner)
    return Task(seed=seed, steps=QUICK_STEPS if quick else STEPS)


def methods_named(text: str) -> dict[str, Method]:
    """The methods that ``a,b`` names, in that order.

    Raises:
        ConfigError: one that does not exist.
    """
    names = [name for name in text.replace(" ", ",").split(",") if name]
    unknown = [name for name in names if name not in METHODS]
    if unknown or not names:
        raise ConfigError(
            f"--methods has {unknown[0] if unknown else text!r}, expected some of {', '.join(METHODS)}"
        )
    return {name: METHODS[name] for name in names}


def _gap(val_loss: float, other: float) -> float:
    return round(val_loss / other - 1, 5)


def _row(done: Outcome, baseline: Outcome) -> dict[str, Any]:
    return {
        "val_loss": round(done.val_loss, 4),
        "loss_gap": _gap(done.val_loss, baseline.val_loss),
        "bytes_ratio": round(baseline.sent_bytes / done.sent_bytes, 1),
        "sent_bytes": round(done.sent_bytes),
        "state": short(done.states[0]) if done.states else None,
    }


if __name__ == "__main__":
    raise SystemExit(main())
