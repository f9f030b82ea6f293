"""``runnel plan``: what a run will ask of its members, before anybody joins it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from itertools import pairwise
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from runnel.errors import ConfigError
from runnel.node.budget import Budget, settle
from runnel.node.forecast import Forecast, LinkForecast, forecast, parse_crowds
from runnel.node.manifest_patterns import AUTO
from runnel.node.manifest_spec import RunSpec
from runnel.node.outer_parts import has_public_windows
from runnel.node.wording import count_text, size_text

if TYPE_CHECKING:
    from runnel.optim.fragments import ParameterShape

_STEP_BYTES = 16
"""Of a value while a step is measured: its weight, gradient and two moments, float32."""

_PRIVATE_PART, _PUBLIC_PART = 1 / 2, 1 / 5
"""Of a window, that results may be late by."""


def plan_run(
    spec: RunSpec, links: str, *, step_s: float | None, parameters: int
) -> tuple[RunSpec, Forecast, str]:
    """A run's settings with what its budget leaves open chosen, the forecast, and what was chosen.

    Args:
        spec: of the run.
        links: as `parse_crowds` reads them.
        step_s: of an inner step; None measures one of the built-in model on this machine.
        parameters: of a model that is not built in; 0 if it is.

    Raises:
        ConfigError: links that cannot be read, an author's model without its size or speed, or a step that
            cannot be measured here for want of memory.
    """
    crowds = parse_crowds(links)
    if spec.model.kind != "gpt" and (parameters < spec.num_fragments or step_s is None):
        raise ConfigError(
            f"model.kind is {spec.model.kind!r}: its size and speed are not known here; give"
            " --parameters N and --step-s SECONDS"
        )
    if spec.model.kind == "gpt" and parameters:
        raise ConfigError(
            "--parameters is for a model that is not built in; set model.width instead"
        )
    shapes = _shapes_of(spec)
    if shapes is not None:
        parameters = sum(_sizes(shapes, parameters, 1))
        step_s = _measured_s(spec, parameters) if step_s is None else step_s
    assert step_s is not None  # given, or measured
    chosen = ""
    if spec.outer.codec == AUTO:
        settled = settle(spec, parameters, _known_s(spec, step_s))
        spec, chosen = settled.spec, settled.line()
    sizes = _sizes(shapes, parameters, spec.num_fragments)
    return spec, forecast(spec, sizes, crowds, step_s), chosen


def _known_s(spec: RunSpec, step_s: float) -> float | None:
    """Seconds of a step if whoever founds the run knows them: an author's program tries none."""
    needed = Budget.parse(spec.outer.budget).bits_s > 0
    return step_s if needed or spec.model.kind != "custom" else None


def _shapes_of(spec: RunSpec) -> list[ParameterShape] | None:
    """Of the built-in model's parameters, which take no memory; None for a model that is not known here."""
    if spec.model.kind != "gpt":
        return None
    import torch  # takes seconds to load

    from runnel.node.run_model import build_model
    from runnel.optim.check import exchanged_parameters
    from runnel.optim.fragments import ParameterShape

    with torch.device("meta"):
        found = exchanged_parameters(build_model(spec))
    return [ParameterShape(name, tuple(value.shape)) for name, value in found.items()]


def _sizes(shapes: list[ParameterShape] | None, parameters: int, fragments: int) -> list[int]:
    """Values of each fragment: about equal ones of a model that is not known here."""
    if shapes is None:
        edges = [parameters * i // fragments for i in range(fragments + 1)]
        return [high - low for low, high in pairwise(edges)]
    from runnel.optim.fragments import plan_fragments

    plan = plan_fragments(shapes, fragments)
    return [sum(piece.numel for piece in fragment) for fragment in plan.fragments]


def _measured_s(spec: RunSpec, parameters: int) -> float:
    import psutil

    from runnel.node.run_model import build_model
    from runnel.node.step_time import measure_step

    needed, free = _STEP_BYTES * parameters, psutil.virtual_memory().available
    if needed > free:
        raise ConfigError(
            f"a step of this model takes over {size_text(needed)} of memory, {size_text(free)} are free"
            " here: give --step-s SECONDS, measured where it is trained"
        )
    return measure_step(build_model(spec), spec)


def show_plan(spec: RunSpec, found: Forecast, chosen: str, *, as_json: bool) -> None:
    """Prints it, for people or as one object."""
    if as_json:
        print(json.dumps(plan_json(spec, found)))
        return
    if chosen:
        print(chosen)
    for line in plan_lines(spec, found):
        print(line)
    Console().print(plan_table(found))
    for line in plan_warnings(spec, found):
        print(line)


def plan_json(spec: RunSpec, found: Forecast) -> dict[str, object]:
    """Everything, with numbers as they are: bytes, bits a second, seconds; and what decides on them."""
    facts = asdict(found)
    facts["outer"] = spec.outer.model_dump()
    facts["fewer"] = found.fewer
    facts["links"] = [
        {
            **{name: value for name, value in asdict(each).items() if name != "crowd"},
            **asdict(each.crowd.link),
            "peers": each.crowd.peers,
        }
        for each in found.links
    ]
    return facts


def plan_lines(spec: RunSpec, found: Forecast) -> list[str]:
    """What holds for all members."""
    outer = spec.outer
    every = outer.every_steps / outer.fragments
    if has_public_windows(spec):
        rounds = f"all fragments every {outer.every_steps} steps ({found.round_s * outer.fragments:.3g} s"
    else:
        rounds = (
            f"each fragment every {outer.every_steps} steps, a round every {every:g} steps"
            f" ({found.round_s:.3g} s"
        )
    return [
        f"{spec.run.name}: {found.parameters:,} parameters in {count_text(outer.fragments, 'fragment')},"
        f" {count_text(found.members, 'peer')}; {rounds} at {found.step_s:.3g} s a step)",
        f"a round: share {_measured(outer.codec, 'up to ')}{size_text(found.share_bytes)} ({outer.codec}{_expected(found)}), results"
        f" {_measured(outer.result_codec, 'about ')}{size_text(found.result_bytes)} ({outer.result_codec}), control"
        f" {size_text(found.control_bytes)}; a peer sends {size_text(found.sent_bytes)} in all,"
        f" {found.fewer:,.0f} times less than data parallel",
        f"results are merged {found.results_after_steps:.1f} steps after handing over; trainers wait for"
        f" nothing" + (f" but up to {outer.wait_s:g} s for late rounds" if outer.wait_s else ""),
        "at its peak a peer sends " + ", ".join(map(_peak_text, found.links)),
    ]


def _peak_text(each: LinkForecast) -> str:
    return f"{rate_text(each.peak_bits_s)} over {each.crowd.link.name}"


def _expected(found: Forecast) -> str:
    """What a share of layers that differ takes, where that was measured to be less."""
    if found.expected_share_bytes == found.share_bytes:
        return ""
    return f", expected {size_text(found.expected_share_bytes)}"


def _measured(codec: str, words: str) -> str:
    """`words` for the bytes of a codec that measures before it chooses, nothing for others."""
    return words if codec.startswith("l-greco+") else ""


def plan_table(found: Forecast) -> Table:
    """A row for each kind of link."""
    table = Table(box=None, padding=(0, 2, 0, 0))
    for head in ("link", "peers", "sends", "of link", "receives", "exchange", "slices", "join"):
        table.add_column(head, justify="left" if head == "link" else "right", no_wrap=True)
    for each in found.links:
        table.add_row(*_cells(each, found.slices))
    return table


def _cells(each: LinkForecast, slices: int) -> Sequence[str]:
    whole = each.sent_slices == slices
    return (
        each.crowd.link.name,
        str(each.crowd.peers),
        rate_text(each.up_bits_s),
        f"{each.up_share:.1%}",
        rate_text(each.down_bits_s),
        f"{each.exchange_s:.2f} s",
        "all" if whole else f"{each.sent_slices:.1f} of {slices}",
        f"{each.state_s:.1f} s",
    )


def plan_warnings(spec: RunSpec, found: Forecast) -> list[str]:
    """What will not go as one would like, and what helps."""
    lines = []
    for each in found.links:
        name = each.crowd.link.name
        if each.sent_slices < found.slices:
            lines.append(
                f"{name} is too slow for whole shares: its peers send {each.sent_slices:.1f} of"
                f" {found.slices} slices each round; raise outer.every_steps or choose fewer bits"
            )
        elif each.up_share > 1:
            lines.append(
                f"{name} cannot carry {rate_text(each.up_bits_s)}: raise outer.every_steps, or invite"
                " somebody with a faster link"
            )
    part = _PUBLIC_PART if has_public_windows(spec) else _PRIVATE_PART
    if found.results_after_steps > spec.outer.every_steps * part:
        lines.append(
            f"results come {found.results_after_steps:.0f} steps late, of {spec.outer.every_steps}"
            " between two rounds of a fragment: this costs quality; raise outer.every_steps"
        )
    return lines


def rate_text(bits_s: float) -> str:
    """Such as ``4.1 Mbit/s``."""
    for size, unit in ((1e9, "Gbit/s"), (1e6, "Mbit/s"), (1e3, "kbit/s")):
        if bits_s >= size:
            return f"{bits_s / size:.3g} {unit}"
    return f"{bits_s:.0f} bit/s"
