"""Learning while peers come and go: the loss of a run with churn against that of the run without.

Six peers train a character GPT (`benchmarks.chars`). The run stands for ten hours: a peer that is
there leaves with a rate of 30 % per hour, by a crash or in order, and comes back to its folder after
three to sixty minutes. Its model and optimizer are gone then: it starts from the run's state as its
disk and the others have it.

Runs are in virtual time (`runnel.tools.simulate`): entrance, assembly, node, trainer, codecs and files
are those of any peer, so that they decide who is a member, which rounds fail and what counts; but steps
per second are fixed, and a busy machine changes nothing. Processes of real peers would measure the
machine: who is slow there is left out of rounds.

Runs are compared twice: both end at the same number of decided tokens, or both at the same round; by
the run's own rule, which learning rates follow, too. At equal tokens a run with churn takes longer and
has more rounds, with less in each; at equal rounds it has learned from less. Steps that a peer took
after its last hand-over before it left are lost in both. The loss is that of the final outer state on
the whole held-out text. How far two runs without churn are apart that differ in nothing but chance
(jitter of steps and of the network, who reduces what) is measured beside it: a gap below that says
nothing.
"""

from __future__ import annotations

import asyncio
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
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
from benchmarks.report_line import Say, benchmark_parser, report
from runnel.clock import SystemClock
from runnel.dht.memory import MemoryNetwork
from runnel.errors import BugError
from runnel.node.events import RoundDecided
from runnel.node.manifest import RunSpec, make_spec, parse_overrides
from runnel.optim.binding import ModelBinding
from runnel.tools.sim_faults import Crash, Fault, Faults, Leave, Restart
from runnel.tools.sim_peer import Ground, temporary_folder
from runnel.tools.sim_runtime import SimLoop
from runnel.tools.sim_world import Course, World

PEERS = 6
HOURS = 10.0
RATE_PER_HOUR = 0.3
AWAY_HOURS = (0.05, 1.0)
STEP_S = 0.6
"""Virtual seconds of an inner step; as many steps as a run without churn takes stand for the hours."""
STEPS, QUICK_STEPS = 600, 100
EVERY_STEPS, FRAGMENTS = 20, 4
ENDS = ("tokens", "rounds")
SEEDS, QUICK_SEEDS = 3, 1

_LONGEST = 3.0
_TAIL_S = 300.0


def draw_churn(seed: int, peers: int, *, hours: float, hour_s: float) -> Faults:
    """Who goes and returns when, in the order of times; equal arguments, equal faults.

    While a peer is there it goes at a constant rate, every second time by a crash on average, and it
    stays away for a part of an hour drawn evenly.

    Args:
        seed: of the draws; each peer has its own, so that more hours change nothing in those before.
        hours: the last ones go before so many are over.
        hour_s: virtual seconds of an hour.
    """
    found = list[Fault]()
    for peer in range(peers):
        rng, now_h = Random(f"churn {seed} {peer}"), 0.0
        while True:
            now_h += rng.expovariate(RATE_PER_HOUR)
            if now_h >= hours:
                break
            goes: Crash | Leave = Crash() if rng.random() < 0.5 else Leave()
            found.append(Fault(do=goes, peer=peer, second=now_h * hour_s))
            now_h += rng.uniform(*AWAY_HOURS)
            found.append(Fault(do=Restart(), peer=peer, second=now_h * hour_s))
    return Faults(sorted(found, key=lambda fault: (fault.second, fault.peer)))


@dataclass(frozen=True, slots=True)
class Trial:
    """One run.

    Attributes:
        task: what is trained.
        text: on what.
        end: what ends the run, "tokens" or "rounds".
        chance: seed of jitter in steps and network, and of the draws of reducers.
        faults: who goes and comes back.
    """

    task: Task
    text: Text
    end: str
    chance: int = 0
    faults: Faults = field(default_factory=Faults)

    @property
    def rounds(self) -> int:
        """At which the run ends, if rounds end it."""
        return self.task.steps // EVERY_STEPS * FRAGMENTS

    @property
    def tokens(self) -> int:
        """At which the run ends, if tokens end it."""
        return self.task.peers * self.task.steps * self.step_tokens

    @property
    def step_tokens(self) -> int:
        """Of one inner step."""
        return self.task.batch_size * self.task.context

    @property
    def run_s(self) -> float:
        """Virtual seconds that stand for the hours."""
        return STEP_S * self.task.steps

    @property
    def spec(self) -> RunSpec:
        """The run's settings: the defaults of run.toml, and its end."""
        settings = [
            f"end.{self.end}={getattr(self, self.end)}",
            f"outer.every_steps={EVERY_STEPS}",
            f"outer.fragments={FRAGMENTS}",
        ]
        tables = parse_overrides(["run.name=churn", "model.kind=custom", *settings])
        return make_spec(tables, source="churn")


@dataclass(frozen=True, slots=True)
class Outcome:
    """A finished run.

    Attributes:
        val_loss: of the final outer state, nats per character.
        tokens: decided.
        steps: taken by all peers.
        virtual_s: from the first to the last step, within two seconds.
        struck: how often a peer crashed, left, or came back, by the fault's name.
        kinds: decided rounds by kind.
        peers: that were there at the end.
    """

    val_loss: float
    tokens: int
    steps: int
    virtual_s: float
    struck: Mapping[str, int]
    kinds: Mapping[str, int]
    peers: int


class CharLearner:
    """Trains the character GPT from one start of a peer to its end; implements `Learner`."""

    def __init__(self, trial: Trial, index: int, steps: list[int]) -> None:
        """`steps` counts by peer over all of their lives: nobody trains on the same batch twice."""
        self.model = CharGpt(trial.task, trial.text.vocab)
        self.optimizer = inner_optimizer_of(self.model, trial.task)
        self._trial, self._index, self._steps = trial, index, steps

    def step(self, progress: float) -> tuple[float, int]:
        """See `Learner.step`."""
        task = self._trial.task
        self._steps[self._index] += 1
        batch = batch_of(self._trial.text, task, peer=self._index, step=self._steps[self._index])
        at = max(1, round(progress * task.steps))
        loss = train_step([self.model], [self.optimizer], batch.unsqueeze(0), task, step=at)
        return float(loss[0]), self._trial.step_tokens


def run_trial(trial: Trial) -> Outcome:
    """One run from its beginning to its end.

    Raises:
        BugError: a peer failed, the peers' bits differ, or the run did not end.
    """
    steps = [0] * trial.task.peers
    with temporary_folder() as folder, asyncio.Runner(loop_factory=SimLoop) as runner:
        ground = Ground(
            loop=runner.get_loop(),  # type: ignore[arg-type]  # the factory's
            network=MemoryNetwork(trial.chance),
            folder=Path(folder),
            seed=trial.chance,
            cells=trial.task.peers,
            values=0,
            step_s=STEP_S,
            learner=lambda index: CharLearner(trial, index, steps),
        )
        world = World(ground, trial.spec, trial.faults)
        last: dict[str, Any] = {}

        def look(seen: World) -> None:
            if seen.course.settled_s:
                last.update(_last_state(seen, trial))

        course = runner.run(world.run(_LONGEST * trial.run_s + _TAIL_S, look))
    if course.problems or not last.pop("is_over", False):
        raise BugError("; ".join(course.problems) or "the run did not come to its end")
    return Outcome(
        **last,
        steps=sum(steps),
        virtual_s=course.lasted_s,
        struck=Counter(type(struck.fault.do).__name__.lower() for struck in course.struck),
        kinds=_kinds(course),
        peers=len(course.heads),
    )


def _last_state(world: World, trial: Trial) -> dict[str, Any]:
    """What the first peer that is there holds."""
    node = next(peer.node for peer in world.peers.values() if peer.node is not None)
    model = CharGpt(trial.task, trial.text.vocab)
    binding = ModelBinding(model, node.plan)
    for fragment, values in enumerate(node.outer_parameters()):
        binding.write(fragment, values)
    chain = node.mailbox.chain
    loss = validation_loss(model, trial.text, trial.task)
    return {"val_loss": loss, "tokens": chain.tokens, "is_over": chain.is_over}


def _kinds(course: Course) -> Counter[str]:
    """Decided rounds by kind."""
    decided = {e.round: e.kind for _, e in course.events if isinstance(e, RoundDecided)}
    return Counter(decided.values())


def measure(
    steps: int, seeds: Sequence[int], text: Text, say: Say, *, ends: Sequence[str], noise: bool
) -> dict[str, Any]:
    """Runs with and without churn for each seed; as JSON has it.

    Args:
        steps: of each peer without churn.
        seeds: of initial parameters, data and churn.
        text: trained on.
        say: takes lines for people.
        ends: what ends the runs that are compared, of `ENDS`.
        noise: whether the run without churn runs again with another chance.

    Raises:
        BugError: see `run_trial`.
    """
    rows = []
    say(f"{text.name}: {PEERS} peers, {steps} steps each without churn, {HOURS:g} hours")
    for seed in seeds:
        task = Task(peers=PEERS, steps=steps, seed=seed)
        hour_s = STEP_S * steps / HOURS
        churn = draw_churn(seed, PEERS, hours=HOURS * _LONGEST, hour_s=hour_s)
        row: dict[str, Any] = {"seed": seed}
        for end in ends:
            name, chance = f"seed {seed}, equal {end}", 2 * seed
            calm = _told(f"{name}, calm", Trial(task, text, end, chance), say)
            rough = _told(f"{name}, churn", Trial(task, text, end, chance, churn), say)
            row[f"equal_{end}"] = _row(calm, rough)
            if noise:
                again = _told(f"{name}, calm again", Trial(task, text, end, chance + 1), say)
                row[f"equal_{end}"]["noise"] = _gap(again, calm)
        rows.append(row)
    return {
        "benchmark": "churn",
        "text": text.name,
        "peers": PEERS,
        "hours": HOURS,
        "steps": steps,
        **summary(rows, ends),
        "runs": rows,
    }


def summary(rows: Sequence[Mapping[str, Any]], ends: Sequence[str]) -> dict[str, Any]:
    """The figures of all seeds together."""
    gaps = {end: [row[f"equal_{end}"]["loss_gap"] for row in rows] for end in ends}
    means = {f"loss_gap_equal_{end}": round(statistics.mean(gaps[end]), 5) for end in ends}
    apart = [
        abs(row[f"equal_{end}"]["noise"])
        for row in rows
        for end in ends
        if "noise" in row[f"equal_{end}"]
    ]
    return {
        "loss_gap": max(means.values()),
        **means,
        "loss_gap_worst": max(max(one) for one in gaps.values()),
        "noise": round(statistics.mean(apart), 5) if apart else None,
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; gives the exit code."""
    parser = benchmark_parser("churn", "The loss of a run whose peers come and go.")
    parser.add_argument("--seeds", type=int, default=0, help="how many, from 0 on")
    parser.add_argument("--steps", type=int, default=0, help="of each peer without churn")
    parser.add_argument("--end", choices=ENDS, help="compare at this end only")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    steps = options.steps or (QUICK_STEPS if options.quick else STEPS)
    seeds = range(options.seeds or (QUICK_SEEDS if options.quick else SEEDS))
    ends = (options.end,) if options.end else ENDS[-1:] if options.quick else ENDS

    def run(say: Say) -> dict[str, Any]:
        measured = measure(steps, seeds, read_text(None), say, ends=ends, noise=not options.quick)
        return {"quick": options.quick, **measured}

    return report(run, json_only=options.json)


def _told(name: str, trial: Trial, say: Say) -> Outcome:
    began_s = SystemClock().monotonic_s()
    done = run_trial(trial)
    struck, kinds = done.struck, done.kinds
    say(
        f"{name:<28} val_loss {done.val_loss:.4f} after {done.tokens:,} tokens in {done.virtual_s:.0f} s"
        f" of the run, {done.steps} steps; {struck.get('leave', 0)} left, {struck.get('crash', 0)} crashed,"
        f" {struck.get('restart', 0)} came back; {kinds.get('record', 0)} rounds,"
        f" {kinds.get('abort', 0)} aborts, {kinds.get('branch', 0)} branches;"
        f" {SystemClock().monotonic_s() - began_s:.0f} s"
    )
    return done


def _gap(run: Outcome, calm: Outcome) -> float:
    return round(run.val_loss / calm.val_loss - 1, 5)


def _row(calm: Outcome, churn: Outcome) -> dict[str, Any]:
    return {
        "val_loss": round(calm.val_loss, 4),
        "val_loss_with_churn": round(churn.val_loss, 4),
        "loss_gap": _gap(churn, calm),
        "tokens": [calm.tokens, churn.tokens],
        "steps": [calm.steps, churn.steps],
        "virtual_s": [round(calm.virtual_s, 1), round(churn.virtual_s, 1)],
        "struck": dict(churn.struck),
        "kinds": [dict(calm.kinds), dict(churn.kinds)],
        "peers_at_end": [calm.peers, churn.peers],
    }


if __name__ == "__main__":
    raise SystemExit(main())
