"""What the round protocol wants done: data, carried out in order by a driver or a simulation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from runnel.node.archive import Block
from runnel.node.chain import Fork
from runnel.node.events import Event
from runnel.node.messages import Message
from runnel.node.records import Commitment, Share, SliceResult
from runnel.node.window_facts import WindowFacts
from runnel.optim.exchange import Merge
from runnel.types import Digest, PeerId


@dataclass(frozen=True, slots=True)
class Store:
    """Keys to write (None deletes), durable in one step before any later action is carried out."""

    updates: Mapping[str, bytes | None]


@dataclass(frozen=True, slots=True)
class Send:
    """A control message to one peer, or to all whom it may concern."""

    message: Message
    to: PeerId | None = None


@dataclass(frozen=True, slots=True)
class RoundKey:
    """A round as it derives from one record: its number and that record's hash."""

    number: int
    base: Digest


@dataclass(frozen=True, slots=True)
class WantHandover:
    """Asks the trainer for its share of a round; `urgent` means with whatever it has by now.

    `seat` is this peer's place in the round's view.
    """

    key: RoundKey
    fragment: int
    num_slices: int
    urgent: bool
    seat: int = 0


@dataclass(frozen=True, slots=True)
class Scatter:
    """Sends this peer's payload of one slice to a reducer."""

    key: RoundKey
    slice_index: int
    commitment: Digest
    to: PeerId


@dataclass(frozen=True, slots=True)
class Reduce:
    """Aggregates the payloads of `senders`, a part of the decided set, in its order.

    `included` are their places in the set; `reducer` is whom the result names; `seats` are the senders'
    places in the round's view; `progress` is that of the record the round derives from, in millionths.
    """

    key: RoundKey
    slice_index: int
    senders: tuple[Commitment, ...]
    included: tuple[int, ...]
    reducer: PeerId
    seats: tuple[int, ...]
    progress: int


@dataclass(frozen=True, slots=True)
class Fetch:
    """Gets a result's bytes from the first of `holders` that has them."""

    root: Digest
    size_bytes: int
    holders: tuple[PeerId, ...]


@dataclass(frozen=True, slots=True)
class Prepare:
    """Computes the state of a round's fragment after these results, without adopting it."""

    key: RoundKey
    slices: tuple[SliceResult, ...]
    shares: tuple[Share, ...]
    final: bool


@dataclass(frozen=True, slots=True)
class Adopt:
    """The chain moved to `path`: give up and adopt records, and write state, `updates` and head in one step.

    `blocks` of old records are written before it: the `updates` name them.
    """

    fork: Fork
    path: Sequence[Digest]
    updates: Mapping[str, bytes | None]
    blocks: tuple[Block, ...] = ()


@dataclass(frozen=True, slots=True)
class Recall:
    """Sends a peer old records, which are read from disk: those after the newest one of `locator`."""

    locator: tuple[Digest, ...]
    to: PeerId


@dataclass(frozen=True, slots=True)
class Note:
    """A fact for the journal."""

    event: Event


@dataclass(frozen=True, slots=True)
class Blame:
    """Lowers the standing of a peer, for a reason."""

    peer: PeerId
    reason: str


Action = (
    Store | Send | WantHandover | Scatter | Reduce | Fetch | Prepare | Adopt | Recall | Note | Blame
)


@dataclass(frozen=True, slots=True)
class Handover:
    """What the codec thread says of a handed-over and encoded contribution.

    `carried` is the payload itself where it travels in the commitment; `start` what the trainer is to add
    to its values, which then are public ones; `window` is what the commitment names of the window behind it.
    """

    key: RoundKey
    payload_root: Digest
    slice_norms: tuple[float, ...]
    tokens: int
    steps: int
    loss: float
    payload_bytes: int
    updates: Mapping[str, bytes | None]
    carried: bytes = b""
    start: Merge | None = None
    window: WindowFacts | None = None
