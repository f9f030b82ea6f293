"""Rounds of several peers in one process, with the parts that real peers use and no network.

Each peer has its own model and its own outer store. Payloads are encoded, sent to the reducers of
their slices, aggregated, encoded once and decoded by everybody, as in a swarm in which nobody is
late; only time and transport are missing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from runnel.errors import BugError
from runnel.hashing import digest
from runnel.node.manifest_sections import OuterSection
from runnel.node.outer_parts import parts_of
from runnel.node.rounds import slice_bounds
from runnel.optim import FragmentPlan, ModelBinding, WindowSchedule
from runnel.optim.exchange import Payload
from runnel.optim.store import Array, Bounds, Encoded, Outcome, OuterStore
from runnel.types import Digest, short

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True, slots=True)
class Draw:
    """What chance decides of a round in which all peers take part.

    Attributes:
        senders: all peers, in the order in which their payloads are added up.
        reducers: by slice.
    """

    senders: tuple[int, ...]
    reducers: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class _Result:
    """The only encoding of one slice; `loss` is what it lost, owed by its reducer."""

    reducer: int
    payload: Payload
    loss: Array | None


@dataclass(frozen=True, slots=True)
class _Open:
    """A round between hand-over and merge: `payloads` of each peer by slice, `results` by slice."""

    number: int
    due_step: int
    bounds: Bounds
    payloads: tuple[tuple[Payload, ...], ...]
    results: tuple[_Result, ...]


class SimulatedRounds:
    """The outer half of a run: hand-overs, results and merges of all peers, by inner step.

    Attributes:
        sent_bytes: payloads and results that each peer has sent to others, [peers].
    """

    def __init__(
        self,
        models: Sequence[nn.Module],
        plan: FragmentPlan,
        outer: OuterSection,
        num_rounds: int,
        draws: Sequence[Draw] = (),
        late: Sequence[int] = (),
    ) -> None:
        """`models` start equal. The last round of each fragment, of `num_rounds`, averages plainly.

        `draws` are those of the first rounds; the others are drawn here. `late` is how many steps after
        its hand-over each fragment is merged, where that is not `overlap_steps`.
        """
        self._outer, self._num_rounds, self._draws = outer, num_rounds, draws
        together = outer.windows == "public"
        self._schedule = WindowSchedule(plan.num_fragments, outer.every_steps, together)
        self._late = late or (outer.overlap_steps,) * plan.num_fragments
        self._bindings = [ModelBinding(model, plan) for model in models]
        self._stores = [_store_of(binding, outer) for binding in self._bindings]
        self._started = 0
        self._open: list[_Open] = []
        self.sent_bytes = [0] * len(models)

    def after_step(self, step: int, *, tokens: int) -> None:
        """Does what is due after inner step `step`, from 1, of all peers.

        Args:
            step: steps taken.
            tokens: that one peer learned from in one window; its weight.

        Raises:
            BugError: the peers' states differ after a round.
        """
        while self._started < self._num_rounds and step == self._schedule.commit_step(
            self._started
        ):
            late = self._late[self._schedule.fragment(self._started)]
            self._open.append(self._exchange(self._started, step + late, tokens))
            self._started += 1
        while self._open and self._open[0].due_step <= step:
            self._merge(self._open.pop(0))

    def finish(self) -> list[Digest]:
        """Merges what is on its way; the digest of each peer's outer state, [peers].

        Raises:
            BugError: the peers' states differ.
        """
        while self._open:
            self._merge(self._open.pop(0))
        return [_state_digest(store) for store in self._stores]

    def write_outer(self, model_index: int) -> None:
        """Puts the outer parameters into one of the models."""
        binding, store = self._bindings[model_index], self._stores[model_index]
        for fragment in range(len(store.sizes)):
            binding.write(fragment, store.parameters(fragment))

    def _exchange(self, number: int, due_step: int, tokens: int) -> _Open:
        fragment = self._schedule.fragment(number)
        peers = len(self._stores)
        bounds = slice_bounds(self._stores[0].sizes[fragment], peers)
        sent = [self._hand_over(number, peer, bounds) for peer in range(peers)]
        draw = self._draw(number, len(bounds))
        norms = np.array(
            [np.hypot.reduce(sent[peer].norms) for peer in draw.senders], dtype=np.float32
        )
        weights = np.full(peers, min(tokens, self._outer.max_weight_tokens), dtype=np.float32)
        results = []
        for index, ((low, high), reducer) in enumerate(zip(bounds, draw.reducers, strict=True)):
            payloads = [sent[peer].payloads[index] for peer in draw.senders]
            reduced = self._stores[reducer].reduce(
                payloads,
                weights,
                norms,
                numel=high - low,
                own=draw.senders.index(reducer),
                key=number,
            )
            results.append(_Result(reducer, reduced.payload, reduced.loss))
            self._count(reducer, [one.payloads[index] for one in sent], reduced.payload)
        return _Open(number, due_step, bounds, tuple(one.payloads for one in sent), tuple(results))

    def _draw(self, number: int, slices: int) -> Draw:
        if number < len(self._draws):
            return self._draws[number]
        peers = len(self._stores)
        pool = _drawn_order(number, peers)
        return Draw(tuple(range(peers)), tuple(pool[index % peers] for index in range(slices)))

    def _hand_over(self, number: int, peer: int, bounds: Bounds) -> Encoded:
        fragment = self._schedule.fragment(number)
        binding, store = self._bindings[peer], self._stores[peer]
        snapshot = binding.new_buffer(fragment)
        binding.read(fragment, snapshot)
        encoded = store.encode(
            number, fragment, snapshot, version=store.version(fragment), bounds=bounds
        )
        if encoded is None:
            raise BugError(f"peer {peer} handed over twice for round {number}")
        start = store.start(number, bounds)
        if start is not None:
            binding.add(fragment, start.delta)
        return encoded

    def _count(self, reducer: int, payloads: Sequence[Payload], result: Payload) -> None:
        for peer, payload in enumerate(payloads):
            if peer == reducer:
                self.sent_bytes[peer] += (len(payloads) - 1) * len(result)
            else:
                self.sent_bytes[peer] += len(payload)

    def _merge(self, done: _Open) -> None:
        fragment = self._schedule.fragment(done.number)
        is_closing = done.number >= self._num_rounds - self._schedule.fragments
        final = is_closing and self._outer.final_averaging
        results = [result.payload for result in done.results]
        roots = []
        for peer, (store, binding) in enumerate(zip(self._stores, self._bindings, strict=True)):
            turn = done.number // self._schedule.fragments
            root = store.prepare(
                done.number, fragment, done.bounds, results, turn=turn, final=final
            )
            roots.append(root)
            outcome = Outcome(
                key=done.number,
                fragment=fragment,
                bounds=done.bounds,
                payloads=done.payloads[peer],
                included=(True,) * len(results),
                losses=tuple(r.loss if r.reducer == peer else None for r in done.results),
                final=final,
            )
            binding.add(fragment, store.adopt(done.number, outcome).delta)
        if len(set(roots)) != 1:
            seen = ", ".join(short(root) for root in roots)
            raise BugError(f"round {done.number} left states {seen}, expected one on all peers")


def _store_of(binding: ModelBinding, outer: OuterSection) -> OuterStore:
    """A store that starts at the model's parameters."""
    parameters = [binding.new_buffer(index) for index in range(binding.plan.num_fragments)]
    for index, buffer in enumerate(parameters):
        binding.read(index, buffer)
    return OuterStore(parameters, parts_of(outer, binding.plan))


def _drawn_order(number: int, peers: int) -> list[int]:
    """Peers in the order in which they reduce the slices of a round, drawn as a round draws them."""
    drawn = number.to_bytes(8, "big")
    return sorted(range(peers), key=lambda peer: digest(drawn, peer.to_bytes(8, "big")))


def _state_digest(store: OuterStore) -> Digest:
    """The name that a run's members give to their outer state."""
    return digest(*(store.root(fragment) for fragment in range(len(store.sizes))))
