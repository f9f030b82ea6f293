"""Loss against bytes of the shared-seed methods: JustOneByte, FedKSeed and Ferret, eight peers each.

All peers are simulated in one process with the parts of a swarm: fixed-point weights, directions, the
bytes that would travel, the steps that follow from them; network and faults are missing. Streaming outer
steps of 4 bits stand beside them, as a swarm that exchanges values takes them. Every method
starts from one pretrained model and gets about 1,600 forward passes per peer, of 8 sequences each (a
backward pass counts as two). What a peer uploads is counted in bytes of payload.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import load_file, save_file
from torch import Tensor

from benchmarks.report_line import Say, benchmark_parser, report
from benchmarks.spsa_outer import Beginning, OuterRun
from benchmarks.spsa_task import (
    PRETRAIN_STEPS,
    Halves,
    batch_of,
    cosine,
    losses,
    pretrained,
    read_halves,
    validation_loss,
)
from runnel.node.wording import size_text
from runnel.optim.fedkseed import LocalStep, SeedPool, pack_steps, pool_probe
from runnel.optim.ferret import BlockScalars, Sketch, round_updates
from runnel.optim.fixed_point import MasterWeights, Probe
from runnel.optim.just_one_byte import ByteState, pack_codes, probes_of, take_step
from runnel.optim.seed_log import LogHead, encode_log
from runnel.optim.seed_updates import SeedUpdate
from runnel.optim.spsa_loss import epsilon_amount
from runnel.tools.svg import COLOURS, Axis, Series, line_chart

PEERS, BATCH = 8, 8
KEY = (5, 6)
AMOUNT = epsilon_amount(1e-3)
QUICK_SHARE = 10
LOOKS = 12
"""Points of a method's curve."""


@dataclass(slots=True)
class Swarm:
    """What all peers of one run share, in one place, since they hold the same bits.

    Attributes:
        text: what they train on.
        weights: theirs.
        seed: of their batches.
        uploaded: bytes of payload that a peer has sent.
        updates: the run's log.
        curve: bytes uploaded and the loss then, a few times in the run.
    """

    text: Halves
    weights: MasterWeights
    seed: int
    uploaded: int = 0
    updates: list[SeedUpdate] = field(default_factory=list)
    curve: list[tuple[int, float]] = field(default_factory=list)

    def move(self, updates: Sequence[SeedUpdate]) -> None:
        """All peers apply a step, and the log gets it."""
        self.updates += updates
        self.weights.apply(updates)

    def look(self, done: int, steps: int) -> None:
        """Notes the loss, if another part of the steps is done."""
        if done * LOOKS // steps > (done - 1) * LOOKS // steps:
            self.curve.append((self.uploaded, round(self.loss(), 4)))

    def batches(self, step: int) -> Tensor:
        """Each peer's own: [peers, B, T + 1]."""
        rows = [batch_of(self.text.second, BATCH, self.seed, peer, step) for peer in range(PEERS)]
        return torch.stack(rows)

    def stacked(self, points: Sequence[tuple[MasterWeights, Probe | None]]) -> dict[str, Tensor]:
        """Weights at several points: [points, ...] by name."""
        found = {}
        for number, tensor in enumerate(self.weights.tensors):
            rows = torch.empty(len(points), *tensor.shape)
            for row, (weights, probe) in zip(rows, points, strict=True):
                weights.materialise(number, row.view(-1).numpy(), probe)
            found[tensor.name] = rows
        return found

    @torch.no_grad()
    def slopes(self, points: Sequence[tuple[MasterWeights, Probe]], batches: Tensor) -> list[float]:
        """The scalar of each point, on its own batch."""
        both = [*points, *((weights, probe.mirror) for weights, probe in points)]
        found = losses(self.stacked(both), torch.cat([batches, batches]))
        plus, minus = found.view(2, -1)
        return [float(g) for g in (plus - minus) / (2 * AMOUNT * 2.0**-28)]

    def loss(self) -> float:
        """Of the weights, on the validation text."""
        return validation_loss(self.weights.arrays(), self.text)


def just_one_byte(swarm: Swarm, *, probes: int, lr: float, steps: int) -> None:
    """Each peer sends a byte per probe and step."""
    state = ByteState()
    for step in range(steps):
        batches = swarm.batches(step).repeat_interleave(probes, 0)
        points = [p for peer in range(PEERS) for p in probes_of(state, peer, probes, AMOUNT)]
        slopes = swarm.slopes([(swarm.weights, point) for point in points], batches)
        codes = [state.scale.code_of(slope) for slope in slopes]
        swarm.uploaded += len(pack_codes(codes[:probes]))
        arrived = {
            point.slot: code for point, code in zip(points, codes, strict=True) if code is not None
        }
        update, state = take_step(state, arrived, lr=cosine(lr, step, steps))
        swarm.move([update])
        swarm.look(step + 1, steps)


def exact(swarm: Swarm, *, probes: int, lr: float, steps: int) -> None:
    """The same with scalars of 32 bits: what the byte is compared with."""
    for step in range(steps):
        batches = swarm.batches(step).repeat_interleave(probes, 0)
        state = ByteState(step)
        points = [p for peer in range(PEERS) for p in probes_of(state, peer, probes, AMOUNT)]
        found = swarm.slopes([(swarm.weights, point) for point in points], batches)
        slopes = np.array(found, np.float32)
        swarm.uploaded += 4 * probes
        moves = slopes.astype(np.float64) * (cosine(lr, step, steps) / len(points) * 2**28)
        swarm.move(
            [
                SeedUpdate(
                    step=step,
                    counter=step,
                    unit=1,
                    slots=np.array([point.slot for point in points], np.uint32),
                    codes=np.rint(moves).astype(np.int32),
                )
            ]
        )
        swarm.look(step + 1, steps)


def fedkseed(swarm: Swarm, *, pro: bool, size: int, local: int, lr: float, steps: int) -> None:
    """Local walks along a pool's seeds; each peer sends three bytes per local step."""
    pool, rounds = SeedPool.empty(size), steps // local
    for round_number in range(rounds):
        rate = cosine(lr, round_number, rounds)
        own = [swarm.weights.copy() for _ in range(PEERS)]
        drawn = [
            pool.draw(
                bytes([swarm.seed, peer]) + round_number.to_bytes(4, "little"), local, pro=pro
            )
            for peer in range(PEERS)
        ]
        walks: dict[int, list[LocalStep]] = {peer: [] for peer in range(PEERS)}
        for step in range(local):
            points = [
                (own[peer], pool_probe(int(drawn[peer][step]), AMOUNT)) for peer in range(PEERS)
            ]
            slopes = swarm.slopes(points, swarm.batches(round_number * local + step))
            for peer, slope in enumerate(slopes):
                taken = LocalStep(int(drawn[peer][step]), pool.scale.code_of(slope) or 0)
                own[peer].apply([pool.local_update(taken, lr=rate)])
                walks[peer].append(taken)
        swarm.uploaded += len(pack_steps(walks[0]))
        updates, pool = pool.take_round(walks, lr=rate)
        swarm.move(updates)
        swarm.look(round_number + 1, rounds)


def ferret(swarm: Swarm, *, directions: int, inner: int, lr: float, steps: int) -> None:
    """Local steps of Adam, then a byte per direction and block."""
    rounds = steps // inner
    for round_number in range(rounds):
        stacked = swarm.stacked([(swarm.weights, None)] * PEERS)
        start = {name: value[0].clone() for name, value in stacked.items()}
        for value in stacked.values():
            value.requires_grad_()
        optimizer = torch.optim.Adam(stacked.values(), lr=1e-3, betas=(0.9, 0.95))
        for step in range(inner):
            loss = losses(stacked, swarm.batches(round_number * inner + step)).sum()
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        contributions: dict[int, tuple[BlockScalars, ...]] = {}
        for peer in range(PEERS):
            deltas = [
                (number, (start[one.name] - stacked[one.name].detach()[peer]).flatten().numpy())
                for number, one in enumerate(swarm.weights.tensors)
            ]
            sketch = Sketch(round_number, peer, KEY, directions)
            contributions[peer] = sketch.contribution(deltas)
        swarm.uploaded += sum(2 + len(block.codes) for block in contributions[0])
        rate = cosine(lr, round_number, rounds)
        swarm.move(round_updates(contributions, round_number=round_number, lr=rate))
        swarm.look(round_number + 1, rounds)


METHODS: Mapping[str, tuple[Callable[..., None], dict[str, Any]]] = {
    "just_one_byte": (just_one_byte, {"probes": 2, "lr": 2e-3, "steps": 400}),
    "exact": (exact, {"probes": 2, "lr": 2e-3, "steps": 400}),
    "fedkseed": (fedkseed, {"pro": False, "size": 1024, "local": 8, "lr": 5e-4, "steps": 800}),
    "fedkseed_pro": (fedkseed, {"pro": True, "size": 1024, "local": 8, "lr": 5e-4, "steps": 800}),
    "ferret": (ferret, {"directions": 128, "inner": 8, "lr": 0.15, "steps": 536}),
}
STREAMING = "streaming_e3m0"
"""What they stand beside: outer steps of all values."""
EVERY_STEPS, OUTER_LR, STEPS = 40, 1e-3, 533


def measure(
    text: Halves, names: Sequence[str], options: Mapping[str, Any], say: Say
) -> dict[str, Any]:
    """Loss and bytes of each method, from one pretrained model."""
    share, seed, kept = options["share"], options["seed"], options["base"]
    if kept is not None and kept.exists():
        base = dict(load_file(kept))
    else:
        base = pretrained(text, seed, PRETRAIN_STEPS // share)
    if kept is not None:
        save_file(base, kept)
    found: dict[str, Any] = {"start_loss": round(validation_loss(base, text), 4)}
    say(
        f"{text.name}: {sum(v.size for v in base.values())} parameters, {found['start_loss']} at first"
    )
    begin = Beginning(base, text, seed, share)
    for name in names:
        found[name] = _outer(begin) if name == STREAMING else _shared_seeds(name, begin)
        say(f"{name:15} {found[name]}")
    if "just_one_byte" in found and "exact" in found:
        ratio = found["just_one_byte"]["loss"] / found["exact"]["loss"] - 1
        found["byte_gap_to_exact"] = round(ratio, 5)
    return found


def _shared_seeds(name: str, begin: Beginning) -> dict[str, Any]:
    work, settings = METHODS[name]
    weights = MasterWeights.from_arrays(begin.base, KEY)
    swarm = Swarm(begin.text, weights, begin.seed)
    head = LogHead.of(weights)
    work(swarm, **{**settings, "steps": settings["steps"] // begin.share})
    late = MasterWeights.from_arrays(begin.base, KEY)
    late.apply(reversed(swarm.updates))
    return {
        "loss": round(swarm.loss(), 4),
        "upload_bytes": swarm.uploaded,
        "log_bytes": sum(len(part) for part in encode_log(head, swarm.updates)),
        "late_joiner_identical": late.digest() == weights.digest(),
        "curve": swarm.curve,
        **settings,
    }


def _outer(begin: Beginning) -> dict[str, Any]:
    run = OuterRun(begin, PEERS, BATCH, STEPS // begin.share)
    curve = list(run.curve(EVERY_STEPS, OUTER_LR))
    settings = {"every": EVERY_STEPS, "lr": OUTER_LR, "steps": STEPS}
    return {"loss": curve[-1][1], "upload_bytes": curve[-1][0], "curve": curve, **settings}


def picture(found: Mapping[str, Any]) -> str:
    """Loss against bytes, as SVG."""
    names = [name for name in (*METHODS, STREAMING) if name in found]
    series = [
        Series(label=name, points=found[name]["curve"], colour=colour, dashed=name == STREAMING)
        for name, colour in zip(names, COLOURS, strict=False)
    ]
    x_axis = Axis(label="bytes uploaded per peer (logarithmic)", tick=size_text, is_log=True)
    y_axis = Axis(label="loss, nats per character")
    title = f"Tuning from a loss of {found['start_loss']}: loss against bytes"
    return line_chart(title, series, x_axis, y_axis)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; gives the exit code."""
    parser = benchmark_parser("spsa", "Loss against bytes of JustOneByte, FedKSeed and Ferret.")
    parser.add_argument("--text", type=Path, help="a text file")
    parser.add_argument("--seed", type=int, default=0, help="of the model and the batches")
    parser.add_argument("--base", type=Path, help="keeps the pretrained model here for other calls")
    known = [*METHODS, STREAMING]
    parser.add_argument("--methods", nargs="*", choices=known, default=known)
    parser.add_argument("--picture", type=Path, help="draws loss against bytes into this SVG file")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)

    def run(say: Say) -> dict[str, Any]:
        text = read_halves(options.text)
        share = QUICK_SHARE if options.quick else 1
        settings = {"share": share, "seed": options.seed, "base": options.base}
        found = measure(text, options.methods, settings, say)
        if options.picture is not None:
            options.picture.write_text(picture(found), encoding="utf-8")
        return {"benchmark": "spsa", "quick": options.quick, "text": text.name, **found}

    return report(run, json_only=options.json)


if __name__ == "__main__":
    raise SystemExit(main())
