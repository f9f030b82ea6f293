"""Which settings of a run cannot hold together, each with a line that says what to change."""

from __future__ import annotations

from typing import TYPE_CHECKING

from runnel.node.manifest_patterns import AUTO

if TYPE_CHECKING:
    from runnel.node.manifest_spec import RunSpec

BYTE_VALUES = 256
MAX_ADAM_LR = 0.1
"""Each value of the model moves by about as much in a round."""


def contradictions(spec: RunSpec) -> tuple[str, ...]:
    """One line for each set of fields that cannot hold together; empty for a sound spec."""
    rules = (_round_rules, _outer_rules, _seed_rules, _model_rules)
    return tuple(line for rule in rules for wrong, line in rule(spec) if wrong)


def _outer_rules(spec: RunSpec) -> tuple[tuple[bool, str], ...]:
    outer = spec.outer
    return (
        (
            outer.codec == AUTO and not outer.budget,
            'outer.codec is auto without a budget, expected one such as "1/1000 of data parallel": set'
            " outer.budget",
        ),
        (
            outer.result_codec.startswith("l-greco+")
            and outer.codec not in (outer.result_codec, AUTO),
            f"outer.result_codec is {outer.result_codec} with outer.codec {outer.codec}, expected the"
            " same because results take each layer's bits from contributions: set outer.codec to"
            f" {outer.result_codec}, or change outer.result_codec",
        ),
        (
            outer.fragments > outer.every_steps,
            f"outer.fragments is {outer.fragments} with outer.every_steps {outer.every_steps},"
            " expected at most one fragment per step: lower outer.fragments or raise"
            " outer.every_steps",
        ),
        (
            outer.overlap_steps >= outer.every_steps,
            f"outer.overlap_steps is {outer.overlap_steps} with outer.every_steps"
            f" {outer.every_steps}, expected fewer: lower outer.overlap_steps",
        ),
        (
            outer.windows == "public" and outer.mixing > 0,
            f"outer.mixing is {outer.mixing:g} with outer.windows public, expected 0 because local"
            " parameters are public ones plus what was learned since: set outer.mixing to 0",
        ),
        (
            outer.windows == "private" and outer.inner_state == "fresh",
            "outer.inner_state is fresh with outer.windows private, expected kept because private windows end"
            " for one fragment at a time: set outer.inner_state to kept, or outer.windows to public",
        ),
        (
            outer.optimizer in ("adam", "one-bit-adam") and outer.lr > MAX_ADAM_LR,
            f"outer.lr is {outer.lr:g} with outer.optimizer {outer.optimizer}, expected at most {MAX_ADAM_LR:g}"
            " because each value moves by about that in a round: lower outer.lr, to 0.02 to begin with",
        ),
    )


def _round_rules(spec: RunSpec) -> tuple[tuple[bool, str], ...]:
    inner, outer, rounds = spec.inner, spec.outer, spec.rounds
    most_open = max(1, outer.fragments - 1)
    return (
        (
            rounds.open > most_open,
            f"rounds.open is {rounds.open} with outer.fragments {outer.fragments}, expected at"
            f" most {most_open} because no fragment can be in two rounds at once: lower"
            " rounds.open or raise outer.fragments",
        ),
        (
            inner.optimizer == "schedule-free" and inner.beta1 == 0,
            "inner.beta1 is 0 with inner.optimizer schedule-free, expected more because it says how far"
            " gradients are from the newest step: raise inner.beta1, usually to 0.9",
        ),
        (
            rounds.deadline_floor_s > rounds.deadline_ceiling_s,
            f"rounds.deadline_floor_s is {rounds.deadline_floor_s:g} with"
            f" rounds.deadline_ceiling_s {rounds.deadline_ceiling_s:g}, expected floor <="
            " ceiling: lower rounds.deadline_floor_s",
        ),
        (
            rounds.stall_s < rounds.deadline_ceiling_s,
            f"rounds.stall_s is {rounds.stall_s:g} with rounds.deadline_ceiling_s"
            f" {rounds.deadline_ceiling_s:g}, expected stall >= ceiling, or peers give up on"
            " others who are only slow: raise rounds.stall_s",
        ),
    )


def _seed_rules(spec: RunSpec) -> tuple[tuple[bool, str], ...]:
    seeds = spec.seeds
    return (
        (
            seeds.method == "ferret" and seeds.lr == 0,
            "seeds.lr is 0 with seeds.method ferret, which measures nothing: set seeds.lr, to 0.1 to begin with",
        ),
        (
            seeds.lr_per == "member" and seeds.method in ("fedkseed", "ferret"),
            f"seeds.lr_per is member with seeds.method {seeds.method}, whose steps are walked before anybody"
            " knows how many take part: set seeds.lr_per to step",
        ),
    )


def _model_rules(spec: RunSpec) -> tuple[tuple[bool, str], ...]:
    model = spec.model
    if model.kind != "gpt":
        return (
            (
                (model.kind == "hf") != bool(model.source),
                f"model.source is {model.source!r} with model.kind {model.kind}, expected the name of a"
                " causal language model if, and only if, the kind is hf: correct one of them",
            ),
        )
    step = 2 * model.heads
    return (
        (
            model.width % step != 0,
            f"model.width is {model.width} with model.heads {model.heads}, expected a multiple of"
            f" {step} so that each head has an even number of values: set model.width to"
            f" {-(-model.width // step) * step}",
        ),
        (
            model.vocab < BYTE_VALUES,
            f"model.vocab is {model.vocab} with model.kind gpt, expected at least {BYTE_VALUES}"
            f" because its tokens are bytes: set model.vocab to {BYTE_VALUES}",
        ),
        (
            model.context >= spec.data.chunk_bytes,
            f"model.context is {model.context} with data.chunk_bytes {spec.data.chunk_bytes},"
            " expected a context shorter than a chunk: lower model.context or raise"
            " data.chunk_bytes",
        ),
    )
