"""Tokens behind what a restart finds in the residual: steps that were handed over and that no record holds yet.

The trainer counts the tokens of each share since the last one that was included. A process that ends
takes its count along; what its last shares held is on disk and goes into a later one, which must weigh
as much as the steps that it stands for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from runnel.dht.wire import pack, unpack
from runnel.errors import InputFileError, PeerError
from runnel.node.actions import RoundKey
from runnel.node.commitments import Commitment
from runnel.node.fields import integer
from runnel.node.keepsakes import read_drift_value
from runnel.node.storage_keys import Updates


def owed_tokens(
    stored: Mapping[str, bytes], commits: Mapping[RoundKey, Commitment], fragments: int
) -> tuple[int, ...]:
    """By fragment, from the keys of a peer that has not resumed yet.

    A share counts those of the shares before it that were not included, so that the newest one says all.

    Raises:
        InputFileError: a key is damaged.
    """
    return tuple(_owed(stored, commits, fragment) for fragment in range(fragments))


def owed_key(fragment: int) -> str:
    """Where they are kept from a restart to the next record that includes this peer."""
    return f"owed/{fragment}"


def owed_updates(tokens: Sequence[int]) -> Updates:
    """What to write of them with what is resumed: the shares that they are known from are forgotten by it."""
    return {
        owed_key(fragment): pack(count) if count else None for fragment, count in enumerate(tokens)
    }


def _owed(
    stored: Mapping[str, bytes], commits: Mapping[RoundKey, Commitment], fragment: int
) -> int:
    drift = stored.get(f"drift/{fragment}")
    if drift is not None:
        key, included = read_drift_value(drift)
        commitment = commits.get(key)
        return commitment.tokens if commitment is not None and not any(included) else 0
    kept = stored.get(owed_key(fragment))
    try:
        return 0 if kept is None else integer(unpack(kept, max_bytes=16))
    except PeerError as error:
        raise InputFileError(
            f"the saved count of fragment {fragment} is damaged ({error}): move this peer's folder away"
            " and join again"
        ) from None
