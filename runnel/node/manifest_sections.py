"""The sections of a run's settings: their fields, bounds and words.

The order of fields is part of the wire format, see `manifest_spec`.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from runnel.node.manifest_patterns import (
    AUTO,
    BUDGET_PATTERN,
    BUDGET_WORDS,
    CODEC_PATTERN,
    CODEC_WORDS,
)

NAME_PATTERN = r"^[a-z0-9](?:[a-z0-9-]{0,38}[a-z0-9])?$"
NAME_WORDS = "1 to 40 lower-case letters, digits and inner hyphens"
MAX_SEED_LR = 10
MAX_MEMBERS = 64
MAX_INT = 2**63 - 1

Share = Annotated[float, Field(ge=0, le=1)]
Seconds = Annotated[float, Field(gt=0, le=86_400)]


class Section(BaseModel):
    """A table of run.toml. Frozen; unknown keys, other types, NaN and infinities are refused."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, allow_inf_nan=False, validate_default=True
    )


class RunSection(Section):
    """Name and rules of the run."""

    name: str = Field(
        pattern=NAME_PATTERN,
        description="short name of the run, seen in folders and on screens",
        json_schema_extra={"expected": NAME_WORDS},
    )
    description: str = Field(
        default="",
        pattern=r"^[^\x00-\x1f\x7f]{0,200}$",
        description="one line for those who are invited",
        json_schema_extra={"expected": "one line of at most 200 characters"},
    )
    trust: Literal["circle"] = Field(
        default="circle", description="who may join: circle = people with an invite of the owner"
    )
    seed: int = Field(
        default=0,
        ge=0,
        le=MAX_INT,
        description="seed of initial parameters and of the text's shuffle",
    )


class ModelSection(Section):
    """The model that all peers train."""

    kind: Literal["gpt", "hf", "custom"] = Field(
        default="gpt",
        description="gpt = the built-in byte-level GPT, hf = of transformers, custom = a module of yours",
    )
    source: str = Field(
        default="",
        pattern=r"^[^\x00-\x1f\x7f]{0,1000}$",
        description="causal language model of kind hf: its name on the hub, or /path or ./path",
        json_schema_extra={"expected": "one line of at most 1000 characters"},
    )
    layers: int = Field(default=2, ge=1, le=1_000, description="transformer blocks of the gpt")
    heads: int = Field(default=4, ge=1, le=1_000, description="attention heads of a block")
    width: int = Field(
        default=128, ge=2, le=65_536, description="values per position between blocks"
    )
    context: int = Field(
        default=128, ge=1, le=65_536, description="tokens that the model sees at once"
    )
    vocab: int = Field(default=256, ge=2, le=2**20, description="different tokens; 256 for bytes")
    fingerprint: str = Field(
        default="",
        pattern=r"^(?:[0-9a-f]{64})?$",
        description="hash of parameter names and shapes; leave empty, launch fills it in",
        json_schema_extra={"expected": '"" or 64 hexadecimal digits'},
    )


class DataSection(Section):
    """The text that all peers train on."""

    text: str = Field(
        default="stdlib",
        pattern=r"^[^\x00-\x1f\x7f]{1,1000}$",
        description="stdlib = the sources of Python's standard library, or the path of a text file",
        json_schema_extra={"expected": '"stdlib" or the path of a text file'},
    )
    batch_size: int = Field(
        default=16, ge=1, le=65_536, description="sequences per inner step of one peer"
    )
    chunk_bytes: int = Field(
        default=2**20,
        ge=4_096,
        le=2**20,
        description="size of the pieces in which the text travels",
    )
    validation_share: float = Field(
        default=0.05, gt=0, le=0.5, description="part of the text held out to measure the loss"
    )


class InnerSection(Section):
    """The optimizer of each peer's own steps."""

    optimizer: Literal["adamw", "muon", "schedule-free", "sgd"] = Field(
        default="adamw",
        description="inner optimizer; muon = for layers' matrices, adamw for the rest; schedule-free = adamw"
        " that averages its steps, for final_lr_share 1",
    )
    lr: float = Field(default=2e-3, gt=0, le=1, description="highest learning rate")
    matrix_lr: float = Field(
        default=0.02, gt=0, le=1, description="highest learning rate of what muon steps"
    )
    weight_decay: float = Field(default=0.1, ge=0, le=10, description="decoupled weight decay")
    beta1: float = Field(default=0.9, ge=0, lt=1, description="decay of the first moment, per step")
    beta2: float = Field(
        default=0.99, ge=0, lt=1, description="decay of the second moment, per step"
    )
    warmup_share: Share = Field(
        default=0.02, description="part of the run in which the learning rate rises; needs an [end]"
    )
    final_lr_share: Share = Field(
        default=0.1,
        description="learning rate at the [end], as a part of lr (cosine); 1 = constant",
    )
    clip_norm: float = Field(
        default=1.0, ge=0, le=1e6, description="largest norm of a gradient; 0 = no limit"
    )


class OuterSection(Section):
    """What peers exchange, how, and how often."""

    optimizer: Literal["nesterov", "heavy-ball", "sgd", "adam", "one-bit-adam"] = Field(
        default="nesterov",
        description="outer optimizer; sgd has no momentum and keeps none; one-bit-adam = adam whose mean squares"
        " stay after 1 / (1 - beta2) rounds of a fragment, for codecs of a bit or two",
    )
    lr: float = Field(
        default=0.7,
        gt=0,
        le=10,
        description="outer learning rate; for adam a value's step, such as 0.02",
    )
    momentum: float = Field(
        default=0.8, ge=0, lt=1, description="outer momentum, per round of a fragment"
    )
    beta2: float = Field(
        default=0.99,
        ge=0,
        lt=1,
        description="decay of outer mean squares, per round (adam, one-bit-adam)",
    )
    epsilon: float = Field(
        default=1e-3,
        gt=0,
        le=1,
        description="added to the root of outer mean squares (adam, one-bit-adam)",
    )
    windows: Literal["private", "public"] = Field(
        default="private",
        description="private = fragments are due in turn, local parameters go on; public = all at one step,"
        " which starts from public values",
    )
    inner_state: Literal["kept", "fresh"] = Field(
        default="kept",
        description="what the inner optimizer remembers at the end of a public window: kept = all, fresh = nothing",
    )
    fragments: int = Field(default=4, ge=1, le=1_024, description="parts that travel in turn (P)")
    every_steps: int = Field(
        default=40,
        ge=1,
        le=100_000,
        description="inner steps between two rounds of one fragment (H)",
    )
    overlap_steps: int = Field(
        default=2, ge=0, le=100_000, description="inner steps between sending and applying (tau)"
    )
    mixing: float = Field(
        default=0.0, ge=0, lt=1, description="part of the local parameters kept at a merge (alpha)"
    )
    codec: str = Field(
        default="e3m0",
        pattern=CODEC_PATTERN.replace("fp32", f"{AUTO}|fp32", 1),
        description="how contributions are encoded; auto = chosen by the budget, with all that matters to bytes;"
        " l-greco+ = by layer, for fewest bytes at the error of the one behind it",
        json_schema_extra={"expected": f"{AUTO}, {CODEC_WORDS}"},
    )
    result_codec: str = Field(
        default="e3m0",
        pattern=CODEC_PATTERN,
        description="how results are encoded; l-greco+ with the same for contributions",
        json_schema_extra={"expected": CODEC_WORDS},
    )
    residual_decay: float = Field(
        default=1.0,
        gt=0,
        le=1,
        description="what a round leaves of what its encoding lost; 1 = nothing is forgotten",
    )
    residual_cap: float = Field(
        default=0.0,
        ge=0,
        le=1e6,
        description="norm of what encoding lost of a slice over that of what was sent, at most; 0 = any",
    )
    aggregator: Literal["weighted-mean", "clip-mean"] = Field(
        default="clip-mean",
        description="clip-mean = clipped to the median norm, then averaged by tokens",
    )
    max_weight_tokens: int = Field(
        default=2**20, ge=1, le=10**12, description="tokens that one contribution counts at most"
    )
    wait_s: float = Field(
        default=0.0, ge=0, le=3_600, description="wait of the trainer for a late round; 0 = never"
    )
    final_averaging: bool = Field(
        default=True, description="end with a plain averaging of each fragment"
    )
    budget: str = Field(
        default="",
        pattern=BUDGET_PATTERN,
        description="most that a peer shall send, with codec auto; who launches chooses by it",
        json_schema_extra={"expected": BUDGET_WORDS},
    )

    @property
    def codecs(self) -> tuple[str, str]:
        """Of contributions and of results."""
        return self.codec, self.result_codec


class SeedsSection(Section):
    """Tuning with shared seeds: peers exchange scalars in place of values."""

    method: Literal["off", "spsa", "fedkseed", "ferret"] = Field(
        default="off",
        description="off = values are exchanged ([outer]); else scalars along shared directions",
    )
    lr: float = Field(
        default=1e-3,
        ge=0,
        le=MAX_SEED_LR,
        description="learning rate at the start; 0 = measured at the launch (not ferret)",
    )
    lr_per: Literal["step", "member"] = Field(
        default="step",
        description="step = lr is for the mean of a step's scalars; member = times members, up to 16 (spsa)",
    )
    final_lr_share: Share = Field(
        default=0.1,
        description="learning rate at the [end], as a part of lr (a line); 1 = constant",
    )
    epsilon: float = Field(
        default=1e-3,
        ge=1e-6,
        le=1,
        description="distance of the two losses of a scalar (not ferret)",
    )
    probes: int = Field(
        default=4, ge=1, le=64, description="directions that a peer tries in a step (spsa)"
    )
    candidates: int = Field(
        default=1_024, ge=1, le=2**16, description="seeds of the pool (fedkseed)"
    )
    uneven: bool = Field(
        default=False, description="draw seeds of large scalars more often (fedkseed's Pro)"
    )
    local_steps: int = Field(
        default=8, ge=1, le=2_730, description="steps of a peer between rounds (fedkseed, ferret)"
    )
    directions: int = Field(
        default=32, ge=2, le=4_096, description="scalars of the block that moved most (ferret)"
    )
    spot_checks: Share = Field(
        default=1 / 16,
        description="part of all scalars that peers compute again; 0 = none (not ferret)",
    )

    @property
    def is_on(self) -> bool:
        """Whether the run exchanges scalars."""
        return self.method != "off"


class RoundsSection(Section):
    """How rounds run and how long anybody waits."""

    open: int = Field(
        default=2, ge=1, le=64, description="rounds under way at once; fewer than fragments"
    )
    deadline_floor_s: Seconds = Field(default=0.5, description="shortest wait for others")
    deadline_ceiling_s: Seconds = Field(default=30.0, description="longest wait for others")
    stall_s: Seconds = Field(
        default=30.0,
        description="without a quorum for this long, those in reach go on without the others",
    )
    snapshot_every: int = Field(
        default=16, ge=1, le=1_000_000, description="rounds between snapshots for newcomers"
    )
    max_members: int = Field(
        default=MAX_MEMBERS, ge=1, le=MAX_MEMBERS, description="peers that take part at most"
    )


class EndSection(Section):
    """When the run is over: at the first of these; all 0 = when the last peer stops."""

    rounds: int = Field(default=0, ge=0, le=MAX_INT, description="rounds; 0 = no limit")
    tokens: int = Field(
        default=0, ge=0, le=MAX_INT, description="tokens of all peers; 0 = no limit"
    )
    minutes: float = Field(
        default=0.0, ge=0, le=1e7, description="minutes since the launch; 0 = no limit"
    )
