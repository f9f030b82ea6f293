"""A budget of bytes: ``codec = "auto"`` becomes a codec, windows and fragments that keep to it. Pure.

What a choice costs in loss is read from measured runs, see `expected_cost`; what it costs in bytes is
worked out by `runnel.node.forecast`, control traffic included. Where e3m0 is chosen and it pays, contributions
give each layer bits of its own, see `_by_layer` and docs/decisions/0016.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import pairwise

from runnel.errors import ConfigError
from runnel.node.forecast import LINKS, Crowd, Forecast, forecast
from runnel.node.link_rate import parse_rate, rate_text
from runnel.node.manifest_patterns import AUTO, BUDGET_WORDS
from runnel.node.manifest_sections import MAX_MEMBERS
from runnel.node.manifest_spec import RunSpec
from runnel.node.wording import count_text
from runnel.optim.layer_bits import FEWEST_PIECES, choosing_s, num_pieces

MEMBERS = 8
"""Peers that a budget is meant for unless it says how many."""

_FORM = re.compile(
    r"(?:1/(?P<fewer>\d+) of data parallel|(?P<rate>.+?bit/s))(?: for (?P<peers>\d+) peers)?"
)

Codecs = tuple[str, str]
"""Of contributions and of results."""

_LEAST_STEPS, _MOST_STEPS = 10, 100_000
"""Of a window: with fewer, more bytes buy nothing that was measured."""

_LOSS_AT_100_STEPS, _GROWTH = 0.8, 1.8
"""Percent over data parallel with windows of 100 steps at 4 bits, and the power of their length by
which it grows: +0.2, +0.8 and +2.5 % were seen at 50, 100 and 200 steps."""

_FAR = 5.0
"""Percent beyond which nothing was measured."""

_WORTH = 0.1
"""What more fragments, and with them lower peaks, may add to the cost, as a part of it."""

_CODEC_COST = {"int8": 0.0, "e3m0": 0.05, "two-bit": 0.8}
"""Percent of loss that a codec both ways adds at windows of 100 steps."""

_BY_LAYER, _UNIFORM = "l-greco+e3m0", "e3m0"
"""The only codec off which bits by layer took bytes that are worth anything, and for contributions alone: of
those who sends knows that they are no more than the uniform choice's, which results may be."""

_MOST_OF_WINDOW = 0.02
"""Of a processor's time during a window, that choosing bits by layer may take."""


@dataclass(frozen=True, slots=True)
class Budget:
    """What a member may send, in bits a second or as a part of data parallel's bytes; and among how many.

    One of `bits_s` and `fewer` is 0.
    """

    bits_s: float
    fewer: float
    members: int

    @classmethod
    def parse(cls, text: str) -> Budget:
        """The budget that a text such as "1/1000 of data parallel for 16 peers" names.

        Raises:
            ConfigError: another form, or numbers out of range.
        """
        found = _FORM.fullmatch(text)
        members = int(found["peers"] or MEMBERS) if found else 0
        if found is None or not 2 <= members <= MAX_MEMBERS:
            raise ConfigError(
                f"outer.budget is {text!r}, expected {BUDGET_WORDS}, for 2 to {MAX_MEMBERS} peers"
            )
        if found["fewer"]:
            return cls(0.0, float(found["fewer"]), members)
        return cls(parse_rate("outer.budget", found["rate"], least_bits_s=1.0), 0.0, members)

    def holds(self, found: Forecast) -> bool:
        """Whether a run with that forecast keeps to it."""
        if self.fewer:
            return found.fewer >= self.fewer
        return 8 * found.sent_bytes / found.round_s <= self.bits_s


@dataclass(frozen=True, slots=True)
class Settled:
    """A spec without anything left open, what it will cost, and by how many percent it may raise the loss.

    `layers` says why all of them have the same bits; it is empty if they have bits of their own.
    """

    spec: RunSpec
    forecast: Forecast
    cost: float
    layers: str = ""

    def line(self) -> str:
        """What was chosen, why, and what is expected, for whoever asked."""
        outer, found = self.spec.outer, self.forecast
        loss = f"{self.cost:.1f} %" if self.cost < _FAR else "far"
        rate = rate_text(float(f"{8 * found.sent_bytes / found.round_s:.3g}"))
        pace = f" ({rate} at {found.step_s:.3g} s a step)" if _budget_of(self.spec).bits_s else ""
        codecs, least = f"{outer.codec} both ways", ""
        if not self.layers:
            codecs = f"{outer.codec} for contributions, {outer.result_codec} for results"
            least = "at least "
        return (
            f"budget {outer.budget!r}: {codecs},"
            f" {count_text(outer.fragments, 'fragment')}, each every {outer.every_steps} steps; with"
            f" {found.members} peers each sends {least}{found.fewer:,.0f} times less than data"
            f" parallel{pace}; {self._layers_text()};"
            f" runs of small models ended {loss} above its loss with such settings"
        )

    def _layers_text(self) -> str:
        if self.layers:
            return f"all layers have the same bits, as {self.layers}"
        found = self.forecast
        saved = 1 - found.expected_share_bytes / found.share_bytes
        return (
            "bits are by layer, more where the model changes more: that took"
            f" {100 * saved:.0f} % off contributions of small models, which would make"
            f" {found.expected_fewer:,.0f} times less, and never takes more than was counted, at the same error"
        )


def expected_cost(codec: str, every_steps: int) -> float:
    """Percent by which the loss ends above data parallel's, as runs of a model of 0.1 M parameters had it.

    8,000 steps of 4 peers, error feedback both ways: the table of long runs in benchmarks/README.md
    and the measurements it was designed by. Bits by layer keep to the error of the codec behind the plus.
    """
    window = math.pow(every_steps / 100, _GROWTH)
    cost = _CODEC_COST[_UNIFORM if codec == _BY_LAYER else codec]
    return _LOSS_AT_100_STEPS * window + cost * math.sqrt(window)


def settle(spec: RunSpec, numel: int, step_s: float | None) -> Settled:
    """Chooses codec, windows and fragments so that the budget holds and the loss suffers least.

    Args:
        spec: with `outer.codec` "auto".
        numel: exchanged values.
        step_s: of an inner step, if it is known; a budget in bits a second needs it.

    Raises:
        ConfigError: a budget that nothing keeps to, or one that needs `step_s`.
    """
    budget = _budget_of(spec)
    if budget.bits_s and step_s is None:
        raise ConfigError(
            f"outer.budget is {spec.outer.budget!r} and the speed of this model is not known, expected"
            ' a part of data parallel\'s bytes, such as "1/500 of data parallel": change it'
        )
    found = [
        shortest
        for codec in _CODEC_COST
        for fragments in _fragment_counts(spec, numel)
        if (shortest := _shortest(spec, budget, numel, step_s or 1.0, ((codec, codec), fragments)))
    ]
    if not found:
        raise ConfigError(
            f"outer.budget is {spec.outer.budget!r}, which nothing keeps to with {numel:,} parameters"
            f" and {budget.members} peers: raise it, or name fewer peers"
        )
    least = min(each.cost for each in found)
    near = [each for each in found if each.cost <= least * (1 + _WORTH)]
    best = max(near, key=lambda each: (each.spec.outer.fragments, -each.cost))
    return _by_layer(best, spec, numel, step_s)


def _by_layer(found: Settled, spec: RunSpec, numel: int, step_s: float | None) -> Settled:
    """`found` with bits by layer in contributions where they pay; else with the reason why not.

    Its windows may be a little longer, for what payloads say of their cells.
    """
    outer = found.spec.outer
    size = numel // outer.fragments
    if outer.codec != _UNIFORM:
        return replace(found, layers=f"bits by layer save next to nothing beside {outer.codec}")
    if num_pieces(size) < FEWEST_PIECES:
        return replace(
            found, layers=f"fragments of {size:,} values are too small for bits by layer"
        )
    if step_s is None:
        return replace(
            found,
            layers="the speed of this model is not known, and choosing bits by layer takes time",
        )
    part = outer.fragments * choosing_s(size) / (outer.every_steps * step_s)
    if part > _MOST_OF_WINDOW:
        busy = f"choosing bits by layer would take {100 * part:.3g} % of a processor's time"
        return replace(found, layers=f"{busy}, more than {100 * _MOST_OF_WINDOW:.0f} %")
    choice = (_BY_LAYER, _UNIFORM), outer.fragments
    chosen = _shortest(spec, _budget_of(spec), numel, step_s, choice)
    if chosen is None or chosen.cost > found.cost * (1 + _WORTH):
        return replace(found, layers="windows would be longer with bits by layer")
    return chosen


def _budget_of(spec: RunSpec) -> Budget:
    return Budget.parse(spec.outer.budget)


def _fragment_counts(spec: RunSpec, numel: int) -> Iterator[int]:
    count = min(spec.outer.fragments, numel)
    while count:
        yield count
        count //= 2


def _shortest(
    spec: RunSpec, budget: Budget, numel: int, step_s: float, choice: tuple[Codecs, int]
) -> Settled | None:
    """The shortest windows that keep to the budget with codecs and a number of fragments."""
    codecs, fragments = choice
    edges = [numel * i // fragments for i in range(fragments + 1)]
    sizes = [high - low for low, high in pairwise(edges)]
    crowds = (Crowd(LINKS["lab"], budget.members),)

    def at(steps: int) -> Settled:
        chosen = _with(spec, codecs, fragments, steps)
        expected = forecast(chosen, sizes, crowds, step_s)
        return Settled(chosen, expected, expected_cost(codecs[0], steps))

    low = max(_LEAST_STEPS, fragments, spec.outer.overlap_steps + 1)
    high = _MOST_STEPS
    if not budget.holds(at(high).forecast):
        return None
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if budget.holds(at(middle).forecast) else (middle + 1, high)
    return at(low)


def _with(spec: RunSpec, codecs: Codecs, fragments: int, steps: int) -> RunSpec:
    outer = {
        "codec": codecs[0],
        "result_codec": codecs[1],
        "fragments": fragments,
        "every_steps": steps,
    }
    opened = {"open": min(spec.rounds.open, max(1, fragments - 1))}
    return spec.model_copy(
        update={
            "outer": spec.outer.model_copy(update=outer),
            "rounds": spec.rounds.model_copy(update=opened),
        }
    )


def settled_like(spec: RunSpec, found: RunSpec) -> RunSpec:
    """`spec` with what `found` has settled: by the same budget, or where `spec` leaves the learning rate open."""
    if spec.seeds.is_on and spec.seeds.lr == 0:
        rates = {"lr": found.seeds.lr, "lr_per": found.seeds.lr_per}
        spec = spec.model_copy(update={"seeds": spec.seeds.model_copy(update=rates)})
    if spec.outer.codec != AUTO or spec.outer.budget != found.outer.budget:
        return spec
    outer = found.outer
    return _with(spec, outer.codecs, outer.fragments, outer.every_steps)
