"""Between the trainer's thread and the I/O thread: what is wanted, what was handed over, what to merge.

The trainer polls at its step boundaries; nothing here ever writes parameters or runs user code.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from runnel.node.actions import RoundKey, WantHandover
from runnel.node.records import FULL_PROGRESS, Record
from runnel.node.spot_rounds import SpotRound
from runnel.node.window_trace import WindowEnd
from runnel.optim.store import Array, Merge
from runnel.types import PeerId, short

_MANY = 8
"""Merges that wait before those of a fragment are summed up; a trainer that steps leaves fewer."""


@dataclass(frozen=True, slots=True)
class DecidedMerge:
    """What a decided record changes for the trainer.

    `number` is the round's: where several are taken up at once, that of the state they lead to; where
    rounds are given up, the newest of them. `mean_norm` is the Euclidean norm of the pseudo-gradient
    that was decided. `tokens` are those behind this peer's shares that are taken up; they count
    negative where they are given up. `contributions` are the round's, where scalars are looked at again.
    `starts`: nothing is decided, this peer's own share is what it moves the trainer by. `plain`: it is of one
    round, which followed the fragment's one before. `progress` is that of the newest record, in millionths.
    """

    number: int
    merge: Merge
    included: bool
    mean_norm: float = 0.0
    tokens: int = 0
    contributions: SpotRound | None = None
    starts: bool = False
    plain: bool = False
    progress: int = 0


@dataclass(frozen=True, slots=True)
class HandedOver:
    """The trainer's share of a round, taken over by the codec thread, and what is behind it.

    `snapshot` are its values, or the bytes of a contribution where its commitment carries it; `version`
    names the state that they are of. `end` tells of the public window behind it, where it ends one.
    """

    want: WantHandover
    snapshot: Array
    version: int
    tokens: int
    steps: int
    loss: float
    end: WindowEnd | None = None


@dataclass(frozen=True, slots=True)
class ChainView:
    """What the trainer may know of the run; replaced as a whole."""

    number: int = -1
    tokens: int = 0
    progress: float = 0.0
    members: tuple[str, ...] = ()
    beacon: bytes = b""
    is_over: bool = False
    is_member: bool = False

    @staticmethod
    def at(head: Record, me: PeerId, *, fragments: int) -> ChainView:
        """As of a record, for a peer, of a run of so many fragments."""
        return ChainView(
            number=head.number,
            tokens=head.tokens // fragments,  # each counts once per fragment
            progress=head.progress / FULL_PROGRESS,
            members=tuple(short(peer) for peer in head.view),
            beacon=head.hash,
            is_over=len(head.finished) == fragments,
            is_member=me in head.view,
        )


@dataclass(slots=True)
class _Contents:
    wants: dict[RoundKey, WantHandover] = field(default_factory=dict)
    merges: list[DecidedMerge] = field(default_factory=list)
    chain: ChainView = field(default_factory=ChainView)
    failure: BaseException | None = None


class Mailbox:
    """Thread-safe; bounded by the open rounds (wants), and by the fragments where a trainer takes no merges."""

    def __init__(
        self, hand_over: Callable[[HandedOver], None], owed_tokens: Sequence[int] = ()
    ) -> None:
        """`hand_over` takes a contribution to the I/O thread; called in the trainer's thread.

        `owed_tokens` are those of steps before a restart that no record holds yet, by fragment.
        """
        self._hand_over = hand_over
        self.owed_tokens = tuple(owed_tokens)
        self._changed = threading.Condition(threading.RLock())
        self._contents = _Contents()

    # -- the I/O thread's side

    def want(self, request: WantHandover) -> None:
        """Asks for a hand-over, or makes an earlier request urgent."""
        with self._changed:
            known = self._contents.wants.get(request.key)
            if known is None or request.urgent:
                self._contents.wants[request.key] = request
                self._changed.notify_all()

    def withdraw(self, is_open: Callable[[RoundKey], bool]) -> None:
        """Drops requests of rounds that are no longer open."""
        with self._changed:
            wants = self._contents.wants
            self._contents.wants = {key: want for key, want in wants.items() if is_open(key)}

    def deliver(self, merge: DecidedMerge) -> None:
        """Leaves a merge for the trainer."""
        with self._changed:
            merges = self._contents.merges
            earlier = _place_of_fragment(merges, merge.merge.fragment)
            if len(merges) < _MANY or earlier is None or merge.included:
                merges.append(merge)
            else:
                merges[earlier] = _summed(merges[earlier], merge)
            self._changed.notify_all()

    def tell(self, chain: ChainView) -> None:
        """Leaves the newest view of the run."""
        with self._changed:
            self._contents.chain = chain
            self._changed.notify_all()

    def fail(self, error: BaseException) -> None:
        """Hands the trainer what ended the runtime; the first reason stays."""
        with self._changed:
            self._contents.failure = self._contents.failure or error
            self._changed.notify_all()

    # -- the trainer's side

    @property
    def chain(self) -> ChainView:
        """The newest view of the run."""
        with self._changed:
            return self._contents.chain

    @property
    def failure(self) -> BaseException | None:
        """What ended the runtime, if anything did."""
        with self._changed:
            return self._contents.failure

    def wants(self) -> tuple[WantHandover, ...]:
        """Open requests, lowest round first."""
        with self._changed:
            return tuple(sorted(self._contents.wants.values(), key=lambda want: want.key.number))

    def take_merges(self, ready: Callable[[DecidedMerge], bool]) -> tuple[DecidedMerge, ...]:
        """Removes and returns the leading merges that are `ready`; order is kept."""
        with self._changed:
            merges = self._contents.merges
            count = next((i for i, merge in enumerate(merges) if not ready(merge)), len(merges))
            self._contents.merges = merges[count:]
            return tuple(merges[:count])

    def hand_over(self, contribution: HandedOver) -> None:
        """Answers a request."""
        with self._changed:
            self._contents.wants.pop(contribution.want.key, None)
        self._hand_over(contribution)

    def wait(self, until: Callable[[], bool], timeout_s: float) -> bool:
        """Blocks until `until` holds, something failed or the time is over; whether it holds."""
        with self._changed:
            self._changed.wait_for(lambda: self._contents.failure is not None or until(), timeout_s)
            return until()

    def check(self) -> None:
        """Raises, in the trainer's thread, what ended the runtime."""
        with self._changed:
            failure = self._contents.failure
        if failure is not None:
            raise failure


def _place_of_fragment(merges: Sequence[DecidedMerge], fragment: int) -> int | None:
    places = [i for i, waiting in enumerate(merges) if waiting.merge.fragment == fragment]
    return places[-1] if places else None


def _summed(earlier: DecidedMerge, later: DecidedMerge) -> DecidedMerge:
    """Both as one; the later one holds nothing of the trainer's, so that only its change counts."""
    delta = earlier.merge.delta + later.merge.delta
    tokens = earlier.tokens + later.tokens
    starts = earlier.starts and later.starts  # or what is decided would go for nothing
    merge, progress = replace(later.merge, delta=delta), max(earlier.progress, later.progress)
    return replace(
        earlier, merge=merge, tokens=tokens, starts=starts, plain=False, progress=progress
    )
