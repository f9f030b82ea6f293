"""How much of a swarm's bytes is control: everything but payloads and state.

Sixteen peers run in virtual time (`runnel.tools.simulate`): all of their code, messages and encodings is
real, with signatures that are as long as real ones. What is played is the size of the model: 262,144
values stand for 10 or 100 million, cut into the same 4 fragments of 16 slices, and each byte of a slice or
result takes the links (20 Mbit/s up, 100 down) as long as all the bytes it stands for. So rounds take as
long as they would, and whatever is said once a second is said as often.

Counted, at every peer over the same whole rounds: all bytes sent, by purpose, with frames and
acknowledgements; of slices and results, how many payloads went out. Arithmetic is the rest: a payload's
bytes are what the codec makes of a slice of the large model, and what came with it (headers, proofs,
requests) is what was counted beyond the small payload. State (blobs) is left out on both sides.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.report_line import Say, benchmark_parser, report
from runnel.dht.memory import MemoryNetwork
from runnel.dht.wire import unpack
from runnel.errors import RunnelError
from runnel.node.bulk import RESULT_PROTOCOL, SLICE_PROTOCOL
from runnel.node.links import CONTROL_PROTOCOL
from runnel.node.manifest import RunSpec, make_spec, parse_overrides
from runnel.node.rounds import SLICE_ALIGNMENT
from runnel.optim.codecs import codec_named
from runnel.tools.sim_faults import Faults
from runnel.tools.sim_peer import Ground, temporary_folder
from runnel.tools.sim_runtime import SimLoop
from runnel.tools.sim_world import World

if TYPE_CHECKING:
    from typing_extensions import Buffer

    from runnel.dht.memory import MemoryTransport
    from runnel.protocols import Stream, StreamHandler, Traffic
    from runnel.types import PeerId

PEERS, FRAGMENTS = 16, 4
SMALL_VALUES = FRAGMENTS * PEERS * SLICE_ALIGNMENT
BULK = (SLICE_PROTOCOL, RESULT_PROTOCOL)
_WARM_ROUNDS = 1
_MESSAGES = {
    1: "Hello",
    2: "Commit",
    3: "ProposeSet",
    4: "ProposeOutcome",
    5: "Cast",
    6: "SetDecided",
    7: "ResultReady",
    8: "WantRecords",
    9: "Records",
    10: "Join",
    11: "Leave",
    12: "BranchCall",
    13: "BranchSign",
}


@dataclass(frozen=True, slots=True)
class Case:
    """A model of so many values, its codec both ways, and seconds of an inner step."""

    key: str
    values: int
    codec: str
    step_s: float
    target: float

    @property
    def spec(self) -> RunSpec:
        """The run: the defaults of run.toml but for the codec."""
        settings = [f"outer.codec={self.codec}", f"outer.result_codec={self.codec}"]
        tables = parse_overrides(["run.name=control", "model.kind=custom", *settings])
        return make_spec(tables, source="control")

    def payload_bytes(self, values: int) -> int:
        """Of one slice of a model of `values`."""
        return codec_named(self.codec).max_bytes(values // (FRAGMENTS * PEERS))


CASES = (
    Case("share_100m_8bit", 100_000_000, "int8", 6.0, 0.01),
    Case("share_10m_4bit", 10_000_000, "e3m0", 1.0, 0.03),
)
KEYS = tuple(case.key for case in CASES)


@dataclass(slots=True)
class Ledger:
    """What all peers have sent: payloads of slices and results, and control messages by their kind in bytes."""

    small_bytes: int
    payloads: int = 0
    messages: Counter[str] = field(default_factory=Counter)

    def take(self, protocol: str, parts: Sequence[Buffer]) -> None:
        """Notes a message that is sent."""
        if protocol in BULK:
            self.payloads += sum(memoryview(part).nbytes == self.small_bytes for part in parts)
        elif protocol == CONTROL_PROTOCOL:
            for message in unpack(b"".join(parts), max_bytes=1 << 22):
                kind = unpack(message, max_bytes=1 << 22)[1]
                self.messages[_MESSAGES.get(kind, str(kind))] += len(message)


class _Noted:
    """A stream whose messages are noted as they are sent."""

    def __init__(self, stream: Stream, protocol: str, ledger: Ledger) -> None:
        self._stream, self._protocol, self._ledger = stream, protocol, ledger

    @property
    def remote(self) -> PeerId:
        return self._stream.remote

    @property
    def received_bytes(self) -> int:
        return self._stream.received_bytes

    async def send(self, *parts: Buffer, deadline: float) -> None:
        self._ledger.take(self._protocol, parts)
        await self._stream.send(*parts, deadline=deadline)

    async def receive(self, *, max_bytes: int, deadline: float) -> memoryview:
        return await self._stream.receive(max_bytes=max_bytes, deadline=deadline)

    async def aclose(self) -> None:
        await self._stream.aclose()


class _NotedTransport:
    """A transport whose streams are noted."""

    def __init__(self, transport: MemoryTransport, ledger: Ledger) -> None:
        self._transport, self._ledger = transport, ledger

    @property
    def local_id(self) -> PeerId:
        return self._transport.local_id

    @property
    def traffic(self) -> Traffic:
        return self._transport.traffic

    async def open(self, peer: PeerId, protocol: str, *, deadline: float) -> Stream:
        stream = await self._transport.open(peer, protocol, deadline=deadline)
        return _Noted(stream, protocol, self._ledger)

    async def serve(self, protocol: str, handler: StreamHandler) -> None:
        await self._transport.serve(
            protocol, lambda stream: handler(_Noted(stream, protocol, self._ledger))
        )

    async def aclose(self) -> None:
        await self._transport.aclose()


@dataclass(frozen=True, slots=True)
class Count:
    """What had been sent by the time of a round."""

    round: int
    second: float
    sent: Counter[str]
    payloads: int
    messages: Counter[str]


def measure_case(case: Case, rounds: int, seed: int) -> tuple[Count, Count]:
    """Counts at the beginning and the end of so many rounds.

    Raises:
        RunnelError: rounds failed, so that there is nothing to count.
    """
    small = case.payload_bytes(SMALL_VALUES)
    weight = case.payload_bytes(case.values) / small
    ledger, counts = Ledger(small), list[Count]()
    usual_s = 40 / FRAGMENTS * case.step_s

    async def run(ground: Ground) -> World:
        world = World(ground, case.spec, Faults())
        try:
            await world.begin()
            async with asyncio.timeout(3 * usual_s * (_WARM_ROUNDS + rounds)):
                await _count(world, ledger, counts, rounds)
        except TimeoutError:
            raise RunnelError("the simulated rounds take much too long") from None
        finally:
            await world.end()
        return world

    with temporary_folder() as folder, asyncio.Runner(loop_factory=SimLoop) as runner:
        ground = Ground(
            loop=runner.get_loop(),  # type: ignore[arg-type]  # the factory's
            network=MemoryNetwork(seed, weights=dict.fromkeys(BULK, weight)),
            folder=Path(folder),
            seed=seed,
            cells=PEERS,
            values=SMALL_VALUES - PEERS,
            step_s=case.step_s,
            wrap=lambda transport: _NotedTransport(transport, ledger),
        )
        world = runner.run(run(ground))
    odd = [kind for _, _, kind in world.course.decisions if kind != "record"]
    if world.course.problems or odd:
        raise RunnelError(f"rounds failed: {world.course.problems or odd[0]}")
    return counts[0], counts[1]


async def _count(world: World, ledger: Ledger, counts: list[Count], rounds: int) -> None:
    for number in (_WARM_ROUNDS, _WARM_ROUNDS + rounds):
        while _newest(world) < number:  # noqa: ASYNC110 - several peers
            await asyncio.sleep(0.05)
        sent: Counter[str] = Counter()
        for peer in world.peers.values():
            traffic = peer.traffic
            sent.update({purpose: traffic.sent(purpose) for purpose in traffic.purposes()})
        now = asyncio.get_running_loop().time()
        counts.append(Count(_newest(world), now, sent, ledger.payloads, Counter(ledger.messages)))


def _newest(world: World) -> int:
    peers: Iterable[Any] = world.peers.values()
    return max((p.node.mailbox.chain.number for p in peers if p.node is not None), default=-1)


def shares(case: Case, before: Count, after: Count) -> dict[str, Any]:
    """The figures of a case, per peer and round."""
    rounds, each = after.round - before.round, PEERS * (after.round - before.round)
    sent = Counter(after.sent)
    sent.subtract(before.sent)
    payloads = after.payloads - before.payloads
    state = sent.pop("blob", 0)
    bulk_overhead = sum(sent[p] for p in BULK) - payloads * case.payload_bytes(SMALL_VALUES)
    control = sum(n for purpose, n in sent.items() if purpose not in BULK) + bulk_overhead
    payload = payloads * case.payload_bytes(case.values)
    messages = Counter(after.messages)
    messages.subtract(before.messages)
    return {
        "share": control / (control + payload),
        "control_bytes": control / each,
        "payload_bytes": payload / each,
        "beside_payloads_bytes": bulk_overhead / each,
        "state_bytes": state / each,
        "round_s": (after.second - before.second) / rounds,
        "messages_bytes": {name: n / each for name, n in messages.most_common() if n},
    }


def measure(rounds: int, seed: int, say: Say, keys: Sequence[str] = KEYS) -> dict[str, Any]:
    """Everything, or the cases of these keys, as JSON has it."""
    result: dict[str, Any] = {"benchmark": "control", "peers": PEERS, "rounds": rounds}
    details: dict[str, Any] = {}
    for case in CASES:
        if case.key not in keys:
            continue
        before, after = measure_case(case, rounds, seed)
        found = shares(case, before, after)
        result[case.key], details[case.key] = found["share"], found
        say(
            f"{case.key}: {found['share']:.2%} (wanted: at most {case.target:.0%});"
            f" {found['control_bytes'] / 1e3:.1f} kB of control beside"
            f" {found['payload_bytes'] / 1e6:.2f} MB of payloads per peer and round"
            f" of {found['round_s']:.1f} s"
        )
        for name, size in found["messages_bytes"].items():
            say(f"    {name:<16} {size / 1e3:8.2f} kB")
        say(f"    {'beside payloads':<16} {found['beside_payloads_bytes'] / 1e3:8.2f} kB")
    return {**result, "details": details}


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; gives the exit code."""
    parser = benchmark_parser("control", "The share of control traffic at 16 peers.")
    parser.add_argument("--seed", type=int, default=0, help="of links, arrivals and trainers")
    parser.add_argument("--only", choices=KEYS, help="one of the two cases")
    options = parser.parse_args(arguments)

    def run(say: Say) -> dict[str, Any]:
        rounds = 2 if options.quick else 6
        keys = [options.only] if options.only else KEYS
        return {"quick": options.quick, **measure(rounds, options.seed, say, keys)}

    return report(run, json_only=options.json)


if __name__ == "__main__":
    raise SystemExit(main())
