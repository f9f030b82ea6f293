"""What a run will ask of its members' links, worked out before it begins. Pure.

Bytes of payloads follow from the codecs' layouts and are exact; where layers have bits of their own they are
those of the uniform choice, which a share as a whole keeps to, and results usually. (Which slice of it goes
nowhere, as its sender reduces it, is drawn: one round may send more of it than their mean, as it may where
slices differ in length.) What comes with them (frames, proofs,
acknowledgements) and control traffic (commitments, proposals, votes, greetings) are taken from what
`benchmarks.control` counts. Times assume that a link carries what it is said to, and nothing else.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from runnel.errors import ConfigError
from runnel.node.deadlines import BEHIND_SHARE
from runnel.node.manifest_sections import MAX_MEMBERS
from runnel.node.manifest_spec import RunSpec
from runnel.node.membership import greeting_s
from runnel.node.outer_parts import has_public_windows, optimizer_of
from runnel.node.pace import MARGIN
from runnel.node.rounds import slice_bounds
from runnel.optim.codecs import planned_bytes
from runnel.optim.layer_bits import expected_part

_BESIDE_PAYLOAD_BYTES = 211
"""With each slice or result that is sent: frames, proof, request and acknowledgement."""

_TOLD_BYTES = 4_060
"""A member tells each other one in a round: commitment, four votes, results, its part of proposals; with frames."""

_COMMITTED_SLICE_BYTES = 20
"""More of it for each slice of a share: its norm and its place in the Merkle tree."""

_GREETING_BYTES = 78
"""Of a greeting to one member."""

_SAID_AT_SLICES = 16
"""Slices at which `_TOLD_BYTES` was counted."""

_CROSSINGS = 5
"""Times a message crosses the network in a round: commitment, set and its votes, outcome and its votes."""

_DELAY_S = 0.05
"""Of one crossing."""

_WORD_BYTES = 4
"""Of a parameter, and of each value that the outer optimizer keeps of it."""

_DATA_PARALLEL_BYTES = 2
"""Of a gradient's value in data parallel training: bf16."""


@dataclass(frozen=True, slots=True)
class Link:
    """A kind of connection: what it carries, in bits a second."""

    name: str
    up_bits_s: float
    down_bits_s: float


LINKS: Mapping[str, Link] = {
    "phone": Link("phone", 5e6, 20e6),
    "home": Link("home", 20e6, 100e6),
    "fiber": Link("fiber", 200e6, 500e6),
    "lab": Link("lab", 1e9, 1e9),
}
"""Kinds that have a name."""


@dataclass(frozen=True, slots=True)
class Crowd:
    """Members behind links of one kind."""

    link: Link
    peers: int


@dataclass(frozen=True, slots=True)
class LinkForecast:
    """What the members behind one kind of link will see.

    Attributes:
        crowd: who.
        up_bits_s: sent by one of them, on average.
        down_bits_s: received.
        up_share: part of the link that sending takes; above 1 for more than it carries whole.
        exchange_s: from a round's decided set to all its results, as far as this link goes; of all rounds
            of a window where they come together.
        peak_bits_s: sent meanwhile, if it is spread over the time until results are merged.
        sent_slices: of a share, on average; fewer than all where the link is too slow.
        state_s: to fetch the run's state when joining.
    """

    crowd: Crowd
    up_bits_s: float
    down_bits_s: float
    up_share: float
    exchange_s: float
    peak_bits_s: float
    sent_slices: float
    state_s: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Forecast:
    """What a run will cost.

    Attributes:
        parameters: exchanged values.
        members: peers.
        slices: of a share, at most.
        round_s: between two rounds.
        step_s: of an inner step.
        share_bytes: of a contribution, the mean of the fragments; the most where layers have bits of their own.
        expected_share_bytes: what was seen of that where it was measured.
        result_bytes: of all results of a round.
        control_bytes: sent by a member in a round, beside payloads and what comes with them.
        sent_bytes: by a member in a round, everything.
        data_parallel_bytes: that a ring all-reduce of bf16 gradients would have each member send meanwhile.
        results_after_steps: inner steps from handing over to merging, for whoever waits for the slowest.
        links: by kind, in the order given.
    """

    parameters: int
    members: int
    slices: int
    round_s: float
    step_s: float
    share_bytes: float
    expected_share_bytes: float
    result_bytes: float
    control_bytes: float
    sent_bytes: float
    data_parallel_bytes: float
    results_after_steps: float
    links: tuple[LinkForecast, ...]

    @property
    def fewer(self) -> float:
        """How many times fewer bytes than data parallel training a member sends."""
        return self.data_parallel_bytes / self.sent_bytes if self.sent_bytes else math.inf

    @property
    def expected_fewer(self) -> float:
        """The same with `expected_share_bytes`, where all links carry whole shares."""
        others = (self.members - 1) / self.members
        saved = (self.share_bytes - self.expected_share_bytes) * others
        sent = self.sent_bytes - saved
        return self.data_parallel_bytes / sent if sent else math.inf


def parse_crowds(text: str) -> tuple[Crowd, ...]:
    """The members that ``home:18,lab:6`` describes; ``20/100:4`` are four with 20 Mbit/s up, 100 down.

    Raises:
        ConfigError: an unknown kind, a number out of range, or more members than a run has room for.
    """
    crowds = tuple(_crowd(part.strip()) for part in text.split(","))
    total = sum(crowd.peers for crowd in crowds)
    if total > MAX_MEMBERS:
        raise ConfigError(f"--links has {total} peers, expected at most {MAX_MEMBERS}")
    return crowds


def _crowd(part: str) -> Crowd:
    kind, _, count = part.rpartition(":")
    expected = f"expected KIND:PEERS with a kind of {', '.join(LINKS)} or UP/DOWN in Mbit/s"
    if not (count.isascii() and count.isdecimal()):
        raise ConfigError(f"--links has {part!r}, {expected}, such as home:18 or 20/100:4")
    # Python refuses to read some thousand digits.
    peers = int(count) if len(count) < 10 else math.inf
    if not 0 < peers <= MAX_MEMBERS:
        raise ConfigError(f"--links has {part!r}, expected 1 to {MAX_MEMBERS} peers, as a run has")
    link = LINKS.get(kind)
    if link is None:
        up, _, down = kind.partition("/")
        try:
            rates = float(up) * 1e6, float(down) * 1e6
        except ValueError:
            raise ConfigError(f"--links has {part!r}, {expected}") from None
        if not all(0 < rate < math.inf for rate in rates):
            raise ConfigError(f"--links has {part!r}, expected rates above 0")
        link = Link(kind, *rates)
    return Crowd(link, int(peers))


def forecast(
    spec: RunSpec, sizes: Sequence[int], crowds: Sequence[Crowd], step_s: float
) -> Forecast:
    """What the run costs members behind such links.

    Args:
        spec: of the run.
        sizes: values of each fragment.
        crowds: who takes part, all at the same speed of training.
        step_s: of an inner step, above 0.

    Raises:
        ConfigError: `step_s` is not a positive number.
    """
    if not 0 < step_s < math.inf:
        raise ConfigError(f"an inner step takes {step_s} s, expected more than 0")
    outer, members = spec.outer, sum(crowd.peers for crowd in crowds)
    bounds = [slice_bounds(size, members) for size in sizes]
    load = _Load(
        spec,
        members,
        slices=max(len(each) for each in bounds),
        share_bytes=_mean_bytes(outer.codec, bounds),
        result_bytes=_mean_bytes(outer.result_codec, bounds),
        round_s=step_s * outer.every_steps / outer.fragments,
        overlap_s=step_s * outer.overlap_steps,
    )
    whole = sum(crowd.peers for crowd in crowds if load.sent_slices(crowd.link) == load.slices)
    whole = whole or members  # somebody has to reduce
    state_bytes = _WORD_BYTES * (1 + optimizer_of(outer).slots) * sum(sizes)
    links = tuple(load.on_link(crowd, whole, state_bytes) for crowd in crowds)
    sent_bytes = load.round_s / 8 * sum(e.up_bits_s * e.crowd.peers for e in links) / members
    windows = outer.every_steps / outer.fragments
    parallel = 2 * (members - 1) / members * _DATA_PARALLEL_BYTES * sum(sizes) * windows
    return Forecast(
        parameters=sum(sizes),
        members=members,
        slices=load.slices,
        round_s=load.round_s,
        step_s=step_s,
        share_bytes=load.share_bytes,
        expected_share_bytes=_mean_bytes(outer.codec, bounds, expected_part),
        result_bytes=load.result_bytes,
        control_bytes=load.control_bytes,
        sent_bytes=sent_bytes,
        data_parallel_bytes=parallel,
        results_after_steps=max(
            float(outer.overlap_steps), max(each.exchange_s for each in links) / step_s
        ),
        links=links,
    )


@dataclass(frozen=True, slots=True)
class _Load:
    """What a round asks of everybody: bytes of a share and of all results, and how often it comes."""

    spec: RunSpec
    members: int
    slices: int
    share_bytes: float
    result_bytes: float
    round_s: float
    overlap_s: float

    @property
    def control_bytes(self) -> float:
        """Sent by a member in a round, beside payloads and what comes with them."""
        told = _TOLD_BYTES + _COMMITTED_SLICE_BYTES * (self.slices - _SAID_AT_SLICES)
        greetings = self.round_s / greeting_s(self.members)
        return (self.members - 1) * (told + _GREETING_BYTES * greetings)

    def sent_slices(self, link: Link) -> float:
        """Of a share over such a link, on average: `runnel.node.pace` decides so in the run."""
        rounds = self.spec.rounds
        time_s = min(BEHIND_SHARE * self.round_s, rounds.deadline_ceiling_s)
        time_s = max(time_s, rounds.deadline_floor_s)
        carried = link.up_bits_s * MARGIN * time_s * self.slices / (8 * self.share_bytes)
        return self.slices if carried >= max(1, self.slices - 1) else carried

    def on_link(self, crowd: Crowd, whole: int, state_bytes: int) -> LinkForecast:
        """What members behind one kind of link see, of whom `whole` in all send whole shares."""
        link, others = crowd.link, self.members - 1
        sent = self.sent_slices(link)
        reduces = sent == self.slices
        # who withholds reduces nothing; a reducer keeps its own slice and gives its result to all others
        share = self.share_bytes * (others / self.members if reduces else sent / self.slices)
        results = self.result_bytes * others / whole if reduces else 0.0
        payloads = sent * others / self.members + (self.slices * others / whole if reduces else 0)
        up = share + results + payloads * _BESIDE_PAYLOAD_BYTES + self.control_bytes
        shares_in = self.share_bytes * others / whole if reduces else 0.0
        down = shares_in + self.result_bytes + self.control_bytes
        scatter_s = 8 * max(share / link.up_bits_s, shares_in / link.down_bits_s)
        gather_s = 8 * max(results / link.up_bits_s, self.result_bytes / link.down_bits_s)
        together = self.spec.outer.fragments if has_public_windows(self.spec) else 1
        turns = math.ceil(together / self.spec.open_rounds)  # those that are open share the link
        up_bits_s = 8 * up / self.round_s
        exchange_s = turns * _CROSSINGS * _DELAY_S + together * (scatter_s + gather_s)
        burst_bits_s = 8 * together * up / max(exchange_s, self.overlap_s)
        return LinkForecast(
            crowd,
            up_bits_s=up_bits_s,
            down_bits_s=8 * down / self.round_s,
            up_share=up_bits_s / link.up_bits_s,
            exchange_s=exchange_s,
            peak_bits_s=max(up_bits_s, min(burst_bits_s, link.up_bits_s)),
            sent_slices=sent,
            state_s=8 * state_bytes / link.down_bits_s,
        )


def _mean_bytes(
    codec: str,
    bounds: Sequence[Sequence[tuple[int, int]]],
    part_of: Callable[[str, int], float] = lambda *_: 1.0,
) -> float:
    """Of a fragment's payloads, the mean of the fragments; of each the part that a codec and a size give."""
    sizes = (
        part_of(codec, each[-1][1]) * sum(planned_bytes(codec, high - low) for low, high in each)
        for each in bounds
    )
    return sum(sizes) / len(bounds)
