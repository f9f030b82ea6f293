"""A small learning task: a character GPT that many replicas of can be trained in one process.

Everything that decides a training run is here as pure functions of (seed, peer, step), so that a
simulation in one process and peers in processes of their own train on the same data.

Names of shapes: K replicas, B sequences, T positions, W width, V characters.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch
from blake3 import blake3
from torch import Tensor, nn
from torch.nn import functional

from runnel.node.corpus import file_corpus, stdlib_corpus
from runnel.node.manifest_sections import InnerSection
from runnel.optim import clip_gradients, inner_optimizer, lr_factor, set_learning_rates

if TYPE_CHECKING:
    from torch.optim import Optimizer

Tokens = npt.NDArray[np.int64]

VALIDATION_SHARE = 0.1
STDLIB_BYTES = 2**20
TINY_SHAKESPEARE = Path(__file__).parents[2] / "shared" / "data" / "tinyshakespeare.txt"

_LAYERS, _HEADS, _WIDTH = 2, 4, 64
_DEVIATION = 0.02
_VALIDATION_ROWS = 512


@dataclass(frozen=True, kw_only=True, slots=True)
class Task:
    """What is trained, whatever the peers exchange.

    Attributes:
        peers: K.
        steps: inner steps of each peer.
        batch_size: B, sequences in one peer's step.
        context: T.
        seed: of the initial parameters and of the data.
        inner: the optimizer of the local steps.
    """

    steps: int
    peers: int = 4
    batch_size: int = 8
    context: int = 32
    seed: int = 0
    inner: InnerSection = field(default_factory=lambda: InnerSection(lr=1e-2, warmup_share=0.05))


@dataclass(frozen=True, slots=True)
class Text:
    """Text as tokens.

    Attributes:
        name: for people.
        vocab: V, the distinct bytes of the text.
        training: tokens 0..V-1.
        validation: tokens 0..V-1, the end of the text.
    """

    name: str
    vocab: int
    training: Tokens
    validation: Tokens


def read_text(path: Path | None, *, stdlib_bytes: int = STDLIB_BYTES) -> Text:
    """The file at `path`; without one tiny Shakespeare beside the checkout, else Python's sources.

    The last tenth is for validation.

    Raises:
        InputFileError: the file is missing, unreadable or too short.
    """
    if path is None and TINY_SHAKESPEARE.exists():
        path = TINY_SHAKESPEARE
    if path is None:
        corpus = stdlib_corpus(stdlib_bytes, validation_share=VALIDATION_SHARE)
    else:
        corpus = file_corpus(path, validation_share=VALIDATION_SHARE)
    parts = [np.frombuffer(part, np.uint8) for part in (*corpus.chunks, corpus.validation)]
    characters, tokens = np.unique(np.concatenate(parts), return_inverse=True)
    cut = tokens.size - parts[-1].size
    name = "stdlib" if path is None else path.name
    return Text(name, characters.size, tokens[:cut], tokens[cut:])


def batch_of(text: Text, task: Task, *, peer: int, step: int) -> Tensor:
    """What peer number `peer` trains on in step `step` (from 1): int64 [B, T + 1].

    A pure function of (seed, peer, step); all stretches of the training text are equally likely.
    """
    message = b"runnel.benchmark.chars.1" + np.array([task.seed, peer, step], "<i8").tobytes()
    words = np.frombuffer(blake3(message).digest(length=8 * task.batch_size), "<u8")
    starts = (words % (text.training.size - task.context)).astype(np.int64)
    return torch.from_numpy(text.training[starts[:, None] + np.arange(task.context + 1)])


def rate_factor(task: Task, step: int) -> float:
    """The inner learning rates of step `step`, from 1, as a part of their peaks."""
    inner = task.inner
    return lr_factor(
        step / task.steps, warmup_share=inner.warmup_share, final_share=inner.final_lr_share
    )


def inner_optimizer_of(model: nn.Module, task: Task) -> Optimizer:
    """The optimizer of one replica's local steps."""
    inner = task.inner
    return inner_optimizer(
        inner.optimizer,
        model.named_parameters(),
        lr=inner.lr,
        matrix_lr=inner.matrix_lr,
        weight_decay=inner.weight_decay,
        betas=(inner.beta1, inner.beta2),
    )


def train_step(
    models: Sequence[CharGpt],
    optimizers: Sequence[Optimizer],
    batches: Tensor,
    task: Task,
    *,
    step: int,
) -> Tensor:
    """One inner step of each model on its own batch, from [K, B, T + 1]; the losses before it, [K]."""
    before = losses(models, batches)
    before.sum().backward()  # type: ignore[no-untyped-call]
    factor = rate_factor(task, step)
    for model, optimizer in zip(models, optimizers, strict=True):
        clip_gradients(model.parameters(), task.inner.clip_norm)
        set_learning_rates(optimizer, factor)
        optimizer.step()
        optimizer.zero_grad()
    return before.detach()


class CharGpt(nn.Module):
    """A GPT of two blocks, 64 wide, with 4 heads, learned positions and a head tied to the embedding.

    About 105 thousand parameters: GPT-2's block without biases (Radford et al. 2019).
    """

    def __init__(self, task: Task, vocab: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(task.seed)
        self.embedding = _matrix(vocab, _WIDTH, generator)
        self.position_embedding = _matrix(task.context, _WIDTH, generator)
        self.blocks = nn.ModuleList(_Block(generator) for _ in range(_LAYERS))
        self.norm = nn.Parameter(torch.ones(_WIDTH))

    def forward(self, batch: Tensor) -> Tensor:
        """The mean cross-entropy in nats per character, a scalar, of `batch`, int64 [B, T + 1]."""
        return losses([self], batch.unsqueeze(0))[0]


class _Block(nn.Module):
    """The parameters of one block; `losses` does the arithmetic."""

    def __init__(self, generator: torch.Generator) -> None:
        super().__init__()
        into_stream = 1 / math.sqrt(2 * _LAYERS)
        self.attention_norm = nn.Parameter(torch.ones(_WIDTH))
        self.attention_in = _matrix(_WIDTH, 3 * _WIDTH, generator)
        self.attention_out = _matrix(_WIDTH, _WIDTH, generator, gain=into_stream)
        self.feedforward_norm = nn.Parameter(torch.ones(_WIDTH))
        self.feedforward_in = _matrix(_WIDTH, 4 * _WIDTH, generator)
        self.feedforward_out = _matrix(4 * _WIDTH, _WIDTH, generator, gain=into_stream)


def losses(models: Sequence[CharGpt], batches: Tensor) -> Tensor:
    """The loss of each model on its own batch: [K], from `batches`, int64 [K, B, T + 1].

    All models go through each operation together: on small models that takes about 0.6 of the time
    of one after the other.
    """
    weights = _stacked(models)
    replicas, rows, length = batches[..., 1:].shape
    first = torch.arange(replicas).view(-1, 1, 1) * weights["embedding"].shape[1]
    table = weights["embedding"].flatten(0, 1)
    x = functional.embedding(batches[..., :-1] + first, table)
    x = (x + weights["position_embedding"][:, None, :length]).flatten(1, 2)
    for layer in range(_LAYERS):
        x = _block({k: weights[f"blocks.{layer}.{k}"] for k in _BLOCK_PARAMETERS}, x, length)
    logits = _normed(x, weights["norm"]) @ weights["embedding"].mT
    each = functional.cross_entropy(
        logits.flatten(0, 1), batches[..., 1:].flatten(), reduction="none"
    )
    return each.view(replicas, rows * length).mean(1)


@torch.no_grad()
def validation_loss(model: CharGpt, text: Text, task: Task) -> float:
    """The mean loss over the whole validation text, cut into rows that share no target."""
    rows = (text.validation.size - 1) // task.context
    total = 0.0
    for start in range(0, rows, _VALIDATION_ROWS):
        index = np.arange(start, min(start + _VALIDATION_ROWS, rows))[:, None] * task.context
        batch = torch.from_numpy(text.validation[index + np.arange(task.context + 1)])
        total += float(model(batch)) * len(index)
    return total / rows


_BLOCK_PARAMETERS = (
    "attention_norm",
    "attention_in",
    "attention_out",
    "feedforward_norm",
    "feedforward_in",
    "feedforward_out",
)


def _stacked(models: Sequence[CharGpt]) -> dict[str, Tensor]:
    """The parameters of all models by name: [K, ...]."""
    named = [dict(model.named_parameters()) for model in models]
    return {name: torch.stack([values[name] for values in named]) for name in named[0]}


def _block(weights: dict[str, Tensor], x: Tensor, length: int) -> Tensor:
    """One block on `x`, [K, B * T, W]."""
    replicas = x.shape[0]
    packed = _normed(x, weights["attention_norm"]) @ weights["attention_in"]
    heads = packed.view(-1, length, 3, _HEADS, _WIDTH // _HEADS).permute(2, 0, 3, 1, 4)
    query, key, value = heads
    mixed = functional.scaled_dot_product_attention(query, key, value, is_causal=True)
    x = x + mixed.transpose(1, 2).reshape(replicas, -1, _WIDTH) @ weights["attention_out"]
    hidden = _normed(x, weights["feedforward_norm"]) @ weights["feedforward_in"]
    return x + functional.gelu(hidden) @ weights["feedforward_out"]


def _normed(x: Tensor, gain: Tensor) -> Tensor:
    return functional.layer_norm(x, (_WIDTH,)) * gain.unsqueeze(1)


def _matrix(
    rows: int, columns: int, generator: torch.Generator, *, gain: float = 1.0
) -> nn.Parameter:
    return nn.Parameter(torch.randn(rows, columns, generator=generator) * (_DEVIATION * gain))
