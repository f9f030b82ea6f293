"""Payload slices waiting to be reduced: checked against their commitments, bounded by the open rounds."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from runnel.errors import PeerError
from runnel.hashing import digest, merkle_verify
from runnel.node.actions import RoundKey
from runnel.node.bulk import PayloadSlice
from runnel.node.events import ContributionRefused, Event
from runnel.node.protocol_state import ProtocolState
from runnel.node.records import Commitment
from runnel.node.rounds import slice_bounds
from runnel.types import Digest, PeerId, Verdict, short

_OUT_OF_STEP = ("round", "commitment")
"""Why a slice of an honest peer may be refused: one of the two is ahead of the other."""


class Parcels:
    """Slices by round, place and commitment."""

    def __init__(self, state: ProtocolState) -> None:
        self._state = state
        self._kept: dict[tuple[RoundKey, int, Digest], bytes | memoryview] = {}

    def check(self, sender: PeerId, piece: PayloadSlice) -> tuple[Commitment, int]:
        """The commitment a slice belongs to and the slice's number of values.

        Raises:
            PeerError: the round is not open, the commitment unknown or another's, or the payload is
                not what was committed to.
        """
        place = self._state.rounds.get(piece.key)
        if place is None:
            raise PeerError("round", "a slice of a round that is not open here")
        commitment = place.commitment(piece.commitment)
        if commitment is None or commitment.peer != sender:
            raise PeerError("commitment", "a slice without a commitment of its sender")
        count = len(place.slices)
        if piece.index >= count:
            raise PeerError("malformed", f"slice {piece.index} of {count}")
        if not merkle_verify(
            commitment.payload_root, digest(piece.payload), piece.index, count, piece.path
        ):
            raise PeerError("proof", "a payload that is not the one committed to")
        size = self._state.settings.fragment_sizes[place.fragment]
        low, high = slice_bounds(size, count)[piece.index]
        return commitment, high - low

    def keep(self, piece: PayloadSlice) -> None:
        """Keeps a checked slice."""
        self._kept[piece.key, piece.index, piece.commitment] = piece.payload

    def payload(self, key: RoundKey, index: int, commitment: Digest) -> bytes | memoryview:
        """A kept slice's payload."""
        return self._kept[key, index, commitment]

    def trim(self) -> None:
        """Drops what belongs to rounds that are no longer open."""
        rounds = self._state.rounds
        for place in [place for place in self._kept if place[0] not in rounds]:
            del self._kept[place]


Judge = Callable[[bytes | memoryview, int, float], Awaitable[Verdict]]


class Desk:
    """Where slices arrive: checked, judged, then kept.

    Args:
        parcels: where they are kept.
        judge: says of a payload of so many values whether it is finite and has the norm it claims.
        blame: is told whose slice was refused for what no honest peer sends, and why.
        note: takes events.
    """

    def __init__(
        self,
        parcels: Parcels,
        *,
        judge: Judge,
        blame: Callable[[PeerId, str], None],
        note: Callable[[Event], None],
    ) -> None:
        self.parcels, self._judge, self._blame, self._note = parcels, judge, blame, note

    async def take(self, sender: PeerId, piece: PayloadSlice) -> None:
        """Takes in a slice for us to reduce.

        Raises:
            PeerError: it is refused.
        """
        try:
            commitment, numel = self.parcels.check(sender, piece)
        except PeerError as error:
            if error.reason not in _OUT_OF_STEP:
                self._blame(sender, error.reason)
            raise
        norm = commitment.slice_norms[piece.index]
        verdict = await self._judge(piece.payload, numel, norm)
        if not verdict.accepted:
            refused = ContributionRefused(
                unix_s=0.0,
                round=piece.key.number,
                peer=short(commitment.peer),
                check=verdict.check,
                reason=verdict.reason,
            )
            self._note(refused)
            self._blame(sender, verdict.check)
            raise PeerError(verdict.check, verdict.reason)
        self.parcels.keep(piece)
