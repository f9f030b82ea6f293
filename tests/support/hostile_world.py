"""A world in which strangers send damaged copies of the peers' own traffic to everybody, all the time.

Every message that a peer sends is a sample; its bytes are damaged, cut, padded, nested, spliced with
those of another one, or sent again as they are, by one of very many identities that are no members.
What the peers do must stay what it was: all checks of `World` hold.
"""

from __future__ import annotations

from collections import Counter, defaultdict, deque
from dataclasses import replace
from random import Random
from typing import Any

import msgpack

from runnel.dht.identity import null_peer_id
from runnel.errors import PeerError
from runnel.node.messages import Join, Message, decode, encode
from runnel.types import PeerId
from tests.support.checks import Broken
from tests.support.sim_peer import RUN, SimPeer
from tests.support.wire_samples import damaged
from tests.support.world import World

_SAMPLES = 32
_FRAMES_A_TICK = 2
_STRANGERS = 1000


class HostileWorld(World):
    """See above. `frames` counts what was sent by the kind of message it was made from.

    Args:
        seed: of everything.
        share: of the frames that are sent at each tick, in all.
    """

    def __init__(self, seed: int, *, frames_a_tick: int = _FRAMES_A_TICK) -> None:
        self.frames: Counter[str] = Counter()
        self.refusals: Counter[str] = Counter()
        self._hostile = Random(-seed - 1)
        self._frames_a_tick = frames_a_tick
        self._samples: defaultdict[str, deque[bytes]] = defaultdict(lambda: deque(maxlen=_SAMPLES))
        super().__init__(seed)

    def _send(self, peer: SimPeer, message: Message, to: PeerId | None) -> None:
        self._samples[type(message).__name__].append(encode(RUN, message))
        super()._send(peer, message, to)

    def _on_tick(self, peer: SimPeer) -> None:
        alive: SimPeer | None = self.peers.get(peer.index)
        if alive is peer and self.frozen.get(peer.index, 0) <= self.now:
            for kind in list(self._samples):
                for _ in range(self._frames_a_tick):
                    self._attack(peer, kind)
        super()._on_tick(peer)

    def _attack(self, peer: SimPeer, kind: str) -> None:
        data = self._mutated(self._hostile.choice(self._samples[kind]))
        sender = null_peer_id(10_000 + self._hostile.randrange(_STRANGERS))
        self.frames[kind] += 1
        head = peer.chain.path[-1]
        try:
            message = decode(RUN, data)
            if isinstance(message, Join):  # whoever has the run's ticket is no stranger
                message = replace(message, ticket=b"forged")
            todo = peer.protocol.receive(sender, message, self.now)
        except PeerError as error:
            self.refusals[error.reason] += 1
            return
        except Exception as error:
            raise Broken(f"H  a frame of {kind} raised {error!r}: {data.hex()}") from error
        self.carry(peer, todo)
        if peer.chain.path[-1] != head:  # a true record that somebody passed on
            self.checks.conserved(peer)

    def _mutated(self, data: bytes) -> bytes:
        rng = self._hostile
        match rng.randrange(7):
            case 0:
                return data
            case 1:
                return data[: rng.randrange(len(data))]
            case 2:
                return data + rng.randbytes(rng.randrange(1, 64))
            case 3:
                other = rng.choice(rng.choice(list(self._samples.values())))
                return data[: rng.randrange(len(data))] + other[rng.randrange(len(other)) :]
            case 4:
                return _retyped(rng, data)
            case 5:
                return b"\x91" * rng.randrange(1, 4000) + data
        for _ in range(rng.randrange(1, 5)):
            data = (
                damaged(data, rng.randrange(1 << 16), rng.randrange(4), rng.randrange(256)) or b"\0"
            )
        return data


def _retyped(rng: Random, data: bytes) -> bytes:
    """The same message with one of its values replaced by one of another type or size."""
    values: list[Any] = [None, -1, 2**63, 0.5, float("nan"), "", b"", b"x" * 5000, [], [[[]]], True]
    try:
        message = msgpack.unpackb(data)
        place = message
        while isinstance(place, list) and place:
            index = rng.randrange(len(place))
            if not isinstance(place[index], list) or rng.random() < 0.3:
                place[index] = rng.choice(values)
                break
            place = place[index]
        packed: bytes = msgpack.packb(message)
    except (ValueError, TypeError, msgpack.exceptions.ExtraData):
        return data[::-1]
    return packed
