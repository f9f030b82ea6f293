"""The seams: each has a real and an in-memory or trivial implementation that pass the same contract tests."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from typing_extensions import Buffer

    from runnel.types import Digest, PeerId

    Float32 = npt.NDArray[np.float32]
else:
    Float32 = Any


class Stream(Protocol):
    """A framed, hashed, acknowledged conversation with one authenticated peer."""

    @property
    def remote(self) -> PeerId:
        """Who is at the other end; proved by the transport."""
        ...

    @property
    def received_bytes(self) -> int:
        """Bytes that came in so far, those of a message under way included."""
        ...

    async def send(self, *parts: Buffer, deadline: float) -> None:
        """Sends one message (the concatenation of `parts`) and returns once the other end has checked it.

        Raises:
            PeerError: the other end refused the message, or closed.
            TimeoutError: no acknowledgement by `deadline` (loop time, seconds).
        """
        ...

    async def receive(self, *, max_bytes: int, deadline: float) -> memoryview:
        """The next message, its hash checked; acknowledges it.

        Raises:
            PeerError: longer than `max_bytes` (nothing is allocated for it), malformed, or closed.
            TimeoutError: nothing complete by `deadline` (loop time, seconds).
        """
        ...

    async def aclose(self) -> None:
        """Ends the conversation. Idempotent; never raises for a peer that is already gone."""
        ...


StreamHandler = Callable[[Stream], Awaitable[None]]


class Transport(Protocol):
    """Opens streams to peers by identity and serves theirs."""

    @property
    def local_id(self) -> PeerId:
        """This peer."""
        ...

    @property
    def traffic(self) -> Traffic:
        """Bytes by purpose and direction, framing included."""
        ...

    async def open(self, peer: PeerId, protocol: str, *, deadline: float) -> Stream:
        """A new stream to `peer`. The protocol's name is also the purpose its bytes are counted under.

        That nobody serves `protocol` may show only when the stream is used, as PeerError "closed".

        Raises:
            NetworkError: the peer cannot be reached, or does not serve `protocol`.
            TimeoutError: not open by `deadline` (loop time, seconds).
        """
        ...

    async def serve(self, protocol: str, handler: StreamHandler) -> None:
        """Runs `handler` for each incoming stream of `protocol`; the stream closes when it returns."""
        ...

    async def aclose(self) -> None:
        """Stops serving, closes all streams, cancels all handlers."""
        ...


class Traffic(Protocol):
    """A ledger of bytes."""

    def sent(self, purpose: str | None = None) -> int:
        """Bytes sent under `purpose`, or in all."""
        ...

    def received(self, purpose: str | None = None) -> int:
        """Bytes received under `purpose`, or in all."""
        ...

    def purposes(self) -> Sequence[str]:
        """All purposes seen, sorted."""
        ...


class PeerDirectory(Protocol):
    """Where peers of a run find each other: signed records that expire, keyed by peer. Bootstrap only."""

    async def publish(self, key: str, value: bytes, *, ttl_s: float, deadline: float) -> bool:
        """Stores `value` under (`key`, this peer), signed; whether at least one other peer or we hold it now."""
        ...

    async def lookup(self, key: str, *, deadline: float) -> Mapping[PeerId, bytes]:
        """All live, correctly signed values under `key`, by peer; what was found by `deadline`."""
        ...

    async def aclose(self) -> None:
        """Leaves the directory."""
        ...


Part = Float32 | tuple[Float32, Float32]
"""Values for an encoder that overwrites them, alone or with others that it adds to them first."""


class Codec(Protocol):
    """Turns float32 values into few bytes. Deterministic; every payload is decoded to the same bits everywhere."""

    @property
    def name(self) -> str:
        """The name under which manifests choose it."""
        ...

    def seeded(self, seed: int) -> Codec:
        """This codec, drawing from `seed` what it draws when it encodes; itself if it draws nothing.

        Payloads that are to be added up are encoded with one seed. They can be read without it.
        """
        ...

    def max_bytes(self, numel: int) -> int:
        """The largest payload of `numel` values: receivers refuse more before reading."""
        ...

    def encode(self, values: Float32, residual: Float32 | None = None) -> bytes:
        """Payload of `values`; with `residual`, also writes ``values - decode(payload)`` there (may be `values`).

        Raises:
            ValueError: a value is NaN or infinite.
        """
        ...

    def encode_parts(self, parts: Iterable[Part], numel: int, out: memoryview) -> memoryview:
        """The payload of all `parts` one after the other, in `out`; each is overwritten by what it loses.

        That is done when the next one is asked for, so that a generator can go on with the loss of a
        part that is still in the processor's cache.

        Args:
            parts: all but the last have `runnel.optim.parts.PART` values. Of a pair the sum is encoded,
                and the first is overwritten: error feedback in one pass.
            numel: values in all.
            out: where the payload goes: at least `max_bytes`, from a multiple of four bytes on.

        Raises:
            ValueError: a value is NaN or infinite.
        """
        ...

    def decode_parts(self, payload: Buffer, numel: int) -> Iterator[Float32]:
        """The payload's values in parts of `runnel.optim.parts.PART`, each overwritten by the next.

        Raises:
            PeerError: the payload is not exactly one encoding of `numel` values; before the first part.
        """
        ...

    def decode(self, payload: Buffer, out: Float32) -> None:
        """Overwrites `out` with the payload's values.

        Raises:
            PeerError: the payload is not exactly one encoding of ``out.size`` values.
        """
        ...

    def accumulate(self, payload: Buffer, scale: float, out: Float32) -> None:
        """Adds ``scale *`` the payload's values to `out`, each product and sum rounded separately."""
        ...

    def norm(self, payload: Buffer, numel: int) -> float:
        """The Euclidean norm of the payload's `numel` values; the same number on every machine.

        Raises:
            PeerError: the payload is not exactly one encoding of `numel` values.
        """
        ...


class Aggregator(Protocol):
    """Makes one vector of many."""

    @property
    def name(self) -> str:
        """The name under which manifests choose it."""
        ...

    def coefficients(self, weights: Float32, norms: Float32) -> Float32:
        """The factor of each contribution in the result: float32 [peers], from weights (tokens) and norms [peers].

        Aggregators of this family are linear in the contributions, so a reducer streams payloads
        through `Codec.accumulate` and holds one vector, whatever the number of peers.
        """
        ...

    def tolerates(self, num_peers: int) -> int:
        """How many of `num_peers` may be arbitrary without the result leaving a bounded range."""
        ...


class OuterOptimizer(Protocol):
    """Applies an aggregated pseudo-gradient to outer parameters; the same bits on every machine."""

    @property
    def name(self) -> str:
        """The name under which manifests choose it."""
        ...

    @property
    def slots(self) -> int:
        """How many values it keeps of each parameter, beside it."""
        ...

    def at(self, turn: int) -> OuterOptimizer:
        """This optimizer in a fragment's round number `turn`, from 0 on, the failed ones counted; as a rule itself."""
        ...

    def step(
        self,
        parameters: Float32,
        momentum: Float32,
        pseudo_gradient: Float32,
        *,
        final: bool,
        out: tuple[Float32, Float32] | None = None,
    ) -> None:
        """Writes the new parameters and momentum to `out`, by default in place.

        A `final` step is a plain averaging, which leaves the momentum as it is. Elementwise: a vector may
        be given in parts, and what is written may be what is read. `momentum` is [values] with one slot,
        else [slots, values], each row contiguous.
        """
        ...


class Signer(Protocol):
    """Signs as one peer and checks anybody's signatures."""

    @property
    def peer_id(self) -> PeerId:
        """Who signs."""
        ...

    def sign(self, message: bytes) -> bytes:
        """A signature (64 bytes for Ed25519)."""
        ...

    def verify(self, peer: PeerId, message: bytes, signature: bytes) -> bool:
        """Whether `signature` is `peer`'s for `message`; false for malformed input, never an exception."""
        ...


class BlobSource(Protocol):
    """Content by hash, from memory or disk."""

    def read(self, name: Digest) -> bytes | None:
        """The bytes whose digest is `name`, or None."""
        ...
