"""Exchangeable parts of an outer store that compute with integers, so that a ledger can be exact."""

from __future__ import annotations

from typing import Any

import numpy as np

from runnel.hashing import digest
from runnel.optim.store import Encoded, StoreParts


class IntegerCodec:
    """Exact on disk, lossy by rounding to even, so that residuals matter."""

    name = "integer"

    def seeded(self, seed: int) -> IntegerCodec:
        return self

    def max_bytes(self, numel: int) -> int:
        return 8 * numel

    def encode(self, values: Any, residual: Any = None) -> bytes:
        sent = values // 2 * 2
        if residual is not None:
            residual[:] = values - sent
        return bytes(sent.astype("<i8").tobytes())

    def encode_parts(self, parts: Any, numel: int, out: memoryview) -> memoryview:
        payload = b"".join(self.encode(part, part) for part in map(self._sum, parts))
        out[: len(payload)] = payload
        return out[: len(payload)]

    @staticmethod
    def _sum(part: Any) -> Any:
        if isinstance(part, tuple):
            part, added = part
            part += added
        return part

    def decode_parts(self, payload: Any, numel: int) -> Any:
        return iter([np.frombuffer(payload, "<i8")])

    def decode(self, payload: Any, out: Any) -> None:
        out[:] = np.frombuffer(payload, "<i8")

    def accumulate(self, payload: Any, scale: Any, out: Any) -> None:
        out += np.frombuffer(payload, "<i8") * int(scale)

    def norm(self, payload: Any, numel: int) -> float:
        return float(np.sqrt(np.square(np.frombuffer(payload, "<i8"), dtype=np.float64).sum()))


class Sum:
    """Adds, so that what goes in comes out."""

    name = "sum"

    def coefficients(self, weights: Any, norms: Any) -> Any:
        return np.ones(len(weights), dtype=np.int64)

    def tolerates(self, num_peers: int) -> int:
        return 0


class Subtract:
    """theta <- theta - step."""

    name = "subtract"
    slots = 1

    def at(self, turn: int) -> Subtract:
        return self

    def step(
        self, parameters: Any, momentum: Any, pseudo_gradient: Any, *, final: bool, out: Any = None
    ) -> None:
        after = (parameters, momentum) if out is None else out
        after[0][:], after[1][:] = parameters - pseudo_gradient, momentum


def drift_of(encoded: Encoded, unsent: list[Any]) -> Any:
    """All that was in the trainer's values when it handed over."""
    sent = [np.frombuffer(payload, "<i8") for payload in encoded.payloads]
    return np.concatenate(sent) + np.concatenate(unsent)


def integer_parts(*, public: bool = False) -> StoreParts:
    return StoreParts(
        public_start=public,
        codec=IntegerCodec(),
        result_codec=IntegerCodec(),
        aggregator=Sum(),
        optimizer=Subtract(),
        root_of=lambda parts: digest(*(bytes(part) for part in parts)),
    )
