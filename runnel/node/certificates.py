"""Why a record holds: the signatures that decided it."""

from __future__ import annotations

from dataclasses import dataclass

from runnel.verification.agreement import Vote


@dataclass(frozen=True, slots=True)
class Certificate:
    """Why a record holds: the attempt it was decided in and a quorum of signed precommits.

    Of a record that a branch carries on from, a quorum of prevotes; of a branch, the signatures of all
    whom it lists, and a ticket of each (empty for members of the record it was called from).
    """

    attempt: int
    votes: tuple[Vote, ...]
    tickets: tuple[bytes, ...] = ()
