"""The trainer's side of spot checks: computes some of the others' scalars again, while it waits for them anyway.

Runs in the trainer's thread, which owns the model. Needs losses as functions of public seeds, see
`Peer.seeded_step`; without them nothing is checked.
"""

from __future__ import annotations

import logging
from collections import deque
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, NamedTuple

from runnel.errors import StorageError
from runnel.node.atomic import write_atomically
from runnel.node.events import ScalarRefuted
from runnel.node.sampling import step_seed, window_seed
from runnel.node.spot_rounds import RefutedScalar, SpotRound
from runnel.optim.seed_claims import Author, Claim, claim_of, count_scalars, scalars_per_round
from runnel.optim.seed_store import NotAtHandError
from runnel.optim.spsa_loss import epsilon_amount
from runnel.types import Decision, short
from runnel.verification.spot_checks import draw_scalars, judge_scalar, tolerance_codes

if TYPE_CHECKING:
    from runnel.node.peer import PeerNode
    from runnel.optim.seed_store import SeedStore
    from runnel.optim.seed_walks import ReplayingWalk
    from runnel.optim.spsa_loss import Loss, SeededLoss

logger = logging.getLogger(__name__)

FOLDER_NAME = "refuted"
"""In a run's folder: what was found to be false, a file each."""
MAX_KEPT = 128
_MOST_WAITING = 64


@dataclass(frozen=True, slots=True)
class _Place:
    """Scalar `number` of contribution `index` of a round."""

    taken: SpotRound
    index: int
    number: int


class _Finding(NamedTuple):
    """What speaks against a scalar, in units of codes."""

    recomputed: float
    tolerance: float
    reason: str


class SpotChecker:
    """Draws, computes again, judges, and keeps what is false.

    Attributes:
        losses: the loss for a public seed; None until the trainer has one.
        scalars: how many were computed again.
        refuted: how many of these were false.
        forwards: passes that it took.
    """

    def __init__(self, node: PeerNode, walk: ReplayingWalk, store: SeedStore) -> None:
        self.losses: SeededLoss | None = None
        self.scalars = self.refuted = self.forwards = 0
        self._node, self._walk, self._store = node, walk, store
        self._waiting: deque[_Place] = deque(maxlen=_MOST_WAITING)

    def offer(self, taken: SpotRound) -> None:
        """Draws which scalars of a decided round to compute again. Those that wait too long are let go."""
        if self.losses is None:
            return
        me, method = self._node.peer, self._store.method
        counts = [
            0 if one.peer == me else count_scalars(method, one.carried) for one in taken.commitments
        ]
        drawn = draw_scalars(
            taken.secret,
            counts,
            own=scalars_per_round(method),
            share=self._node.spec.seeds.spot_checks,
        )
        self._waiting += (_Place(taken, index, number) for index, number in drawn)

    def share_of(self, own_forwards: int) -> float:
        """The part of all forward passes that checks took, beside so many of the peer's own."""
        return self.forwards / max(1, self.forwards + own_forwards)

    def once(self) -> bool:
        """Computes one scalar again, if one waits; whether one did."""
        losses = self.losses
        if losses is None or not self._waiting:
            return False
        place = self._waiting.popleft()
        taken, author = place.taken, self._author(place)
        payload = taken.commitments[place.index].carried
        try:
            state = self._store.state_at(taken.version)
            claim = claim_of(self._store.method, state, payload, place.number, author)
            self._check(place, claim, losses(step_seed(author.seed, claim.step)))
        except NotAtHandError as error:
            logger.debug("round %d is not looked at again: %s", taken.number, error)
        return True

    def _author(self, place: _Place) -> Author:
        taken, seeds = place.taken, self._node.spec.seeds
        said = taken.commitments[place.index]
        return Author(
            seat=taken.seats[place.index],
            progress=taken.progress,
            seed=window_seed(said.base, said.peer, taken.number),
            amount=epsilon_amount(seeds.epsilon),
            uneven=seeds.uneven,
        )

    def _check(self, place: _Place, claim: Claim, loss: Loss) -> None:
        if claim.code is None:
            return
        self.scalars += 1
        if claim.problem:
            self._keep(place, claim, _Finding(0.0, 0.0, claim.problem))
            return
        source = partial(self._store.materialise_at, place.taken.version, after=claim.moved)
        found = self._walk.replay(claim, source, loss)
        self.forwards += 2
        recomputed = found.scalar / claim.unit
        largest = max(abs(found.plus), abs(found.minus))
        tolerance = tolerance_codes(largest, found.epsilon, claim.unit)
        verdict = judge_scalar(claim.code, recomputed, tolerance)
        if verdict.decision is Decision.REJECT:
            self._keep(place, claim, _Finding(recomputed, tolerance, verdict.reason))

    def _keep(self, place: _Place, claim: Claim, found: _Finding) -> None:
        self.refuted += 1
        commitment = place.taken.commitments[place.index]
        kept = RefutedScalar(commitment, place.number, found.recomputed, found.tolerance)
        self._node.note(
            ScalarRefuted(
                unix_s=0.0,
                round=place.taken.number,
                peer=short(commitment.peer),
                scalar=place.number,
                published=claim.code or 0,
                recomputed=found.recomputed,
                tolerance=found.tolerance,
                reason=found.reason,
                evidence=kept.name.hex(),
            )
        )
        folder = self._node.folder / FOLDER_NAME
        try:
            folder.mkdir(exist_ok=True)
            if len(list(islice(folder.iterdir(), MAX_KEPT))) < MAX_KEPT:
                write_atomically(folder / f"{kept.name.hex()}.bin", kept.encoded, overwrite=True)
        except (OSError, StorageError) as error:  # the event has the figures
            logger.warning("evidence against peer %s is not kept: %s", short(kept.peer), error)
