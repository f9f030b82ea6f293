"""A decided round of shared seeds as whoever looks at its scalars again needs it; and what is kept of a false one."""

from __future__ import annotations

from dataclasses import dataclass

from runnel.dht.wire import pack, unpack
from runnel.errors import PeerError
from runnel.hashing import digest
from runnel.node.commitments import Commitment
from runnel.node.evidence import Verify
from runnel.node.fields import integer, number_of, row
from runnel.types import Digest, PeerId

MAX_REFUTED_BYTES = 1 << 16
_VERSION = 1


@dataclass(frozen=True, slots=True)
class SpotRound:
    """The contributions that a round took, each signed by its peer.

    Attributes:
        number: of the round.
        version: of the store, for the weights before it.
        progress: of the run before it, in millionths.
        commitments: of the decided set.
        seats: their peers' places in the round's view.
        secret: what this peer's choice follows from: of its key and the decided record, so that
            nobody else knows it, and this peer cannot make it up.
    """

    number: int
    version: int
    progress: int
    commitments: tuple[Commitment, ...]
    seats: tuple[int, ...]
    secret: bytes


def draw_statement(run: bytes, record: Digest) -> bytes:
    """What a peer signs to draw whom it looks at once a round has this record; equal inputs, equal signatures."""
    return b"runnel1" + run + b"spot-check/" + record


@dataclass(frozen=True, slots=True)
class RefutedScalar:
    """What one peer keeps of a scalar that it found to be another one.

    The commitment is its author's word, signed; the rest is the word of whoever kept this, for others
    to compute again: the batch, the direction and the weights before the round are public.

    Attributes:
        commitment: with the contribution that it carries.
        scalar: its place in the contribution.
        recomputed: what was found, in units of codes.
        tolerance: how far apart both may lie.
    """

    commitment: Commitment
    scalar: int
    recomputed: float
    tolerance: float

    @property
    def peer(self) -> PeerId:
        """Whom it is against."""
        return self.commitment.peer

    @property
    def name(self) -> Digest:
        """The digest of its bytes."""
        return digest(self.encoded)

    @property
    def encoded(self) -> bytes:
        """Its canonical bytes."""
        fields = [self.commitment.to_wire(), self.scalar, self.recomputed, self.tolerance]
        return pack([_VERSION, *fields])

    def problem(self, run: bytes, verify: Verify) -> str:
        """Why it is not even its author's word, or nothing. What it says of the scalar is not believed."""
        said = self.commitment
        if not said.carried or digest(said.carried) != said.payload_root:
            return "a commitment that carries another contribution than it names"
        if not verify(said.peer, said.statement(run), said.signature):
            return "a commitment that its peer did not sign"
        return ""


def read_refuted(data: bytes) -> RefutedScalar:
    """Reads what was kept.

    Raises:
        PeerError: too long or malformed.
    """
    version, commitment, scalar, recomputed, tolerance = row(
        unpack(data, max_bytes=MAX_REFUTED_BYTES), 5
    )
    if version != _VERSION:
        raise PeerError("version", f"a refuted scalar of version {version!r}, we read {_VERSION}")
    return RefutedScalar(
        Commitment.from_wire(commitment),
        integer(scalar),
        number_of(recomputed),
        number_of(tolerance),
    )
