"""What a command says at its end."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from runnel.node.volunteer import Summary

SUMMARY = Summary(
    run="tiny",
    rounds=7,
    steps=50,
    loss=2.5,
    sent_bytes=1_500_000,
    received_bytes=300_000,
    folder=Path("/runs/tiny"),
    ended=True,
)


def test_a_summary_tells_rounds_steps_and_loss() -> None:
    assert str(SUMMARY) == (
        "tiny: the run has ended at round 7 after 50 steps here; loss 2.500, 1.5 MB sent, 0.3 MB received;"
        f" state in {SUMMARY.folder}"
    )


def test_without_steps_there_is_no_loss_and_before_the_first_round_no_number() -> None:
    summary = replace(SUMMARY, rounds=-1, steps=0, loss=0.0, ended=False)
    assert str(summary) == (
        "tiny: left the run before its first round, after 0 steps here; 1.5 MB sent, 0.3 MB received;"
        f" state in {SUMMARY.folder}"
    )
