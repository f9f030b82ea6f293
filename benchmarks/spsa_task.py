"""The task of `benchmarks.spsa`: a small character model, pretrained on half a text, tuned on the other.

The second half is lowercased, so that there is something to learn. Many replicas of the model are
evaluated together, from stacked weights. Names of shapes: R replicas, B sequences, T positions, W
width, V characters.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from blake3 import blake3
from torch import Tensor
from torch.nn import functional

from benchmarks.chars import STDLIB_BYTES, TINY_SHAKESPEARE
from runnel.node.corpus import file_corpus, stdlib_corpus

Tokens = npt.NDArray[np.int64]
Weights = Mapping[str, Tensor]

CONTEXT, LAYERS, HEADS, WIDTH = 64, 2, 4, 64
PRETRAIN_STEPS, PRETRAIN_BATCH = 1500, 32
_VALIDATION_ROWS = 96


@dataclass(frozen=True, slots=True)
class Halves:
    """A text in two halves, as tokens 0..V-1.

    Attributes:
        name: for people.
        vocab: V.
        first: what the model is pretrained on.
        second: what it is tuned on, lowercased.
        validation: the last tenth of the second half.
    """

    name: str
    vocab: int
    first: Tokens
    second: Tokens
    validation: Tokens


def read_halves(path: Path | None) -> Halves:
    """The file at `path`; without one tiny Shakespeare beside the checkout, else Python's sources.

    Raises:
        InputFileError: the file is missing, unreadable or too short.
    """
    if path is None and TINY_SHAKESPEARE.exists():
        path = TINY_SHAKESPEARE
    share = 0.1
    corpus = (
        file_corpus(path, validation_share=share)
        if path
        else stdlib_corpus(STDLIB_BYTES, validation_share=share)
    )
    data = b"".join(bytes(part) for part in (*corpus.chunks, corpus.validation))
    characters = np.unique(np.frombuffer(data + data.lower(), np.uint8))
    number = np.zeros(256, np.int64)
    number[characters] = np.arange(characters.size)
    half = len(data) // 2
    first = number[np.frombuffer(data[:half], np.uint8)]
    second = number[np.frombuffer(data[half:].lower(), np.uint8)]
    cut = int(second.size * (1 - share))
    name = path.name if path else "stdlib"
    return Halves(name, characters.size, first, second[:cut], second[cut:])


def shapes(vocab: int) -> dict[str, tuple[int, ...]]:
    """The parameters: about 74 thousand values."""
    found: dict[str, tuple[int, ...]] = {"embedding": (vocab, WIDTH), "position": (CONTEXT, WIDTH)}
    for layer in range(LAYERS):
        found |= {
            f"{layer}.attention_norm": (WIDTH,),
            f"{layer}.attention_in": (WIDTH, 3 * WIDTH),
            f"{layer}.attention_out": (WIDTH, WIDTH),
            f"{layer}.feedforward_norm": (WIDTH,),
            f"{layer}.feedforward_in": (WIDTH, 2 * WIDTH),
            f"{layer}.feedforward_out": (2 * WIDTH, WIDTH),
        }
    return {**found, "norm": (WIDTH,)}


def losses(weights: Weights, batches: Tensor) -> Tensor:
    """The loss of each replica: [R], from weights [R, ...] and tokens int64 [R, B, T + 1]."""
    replicas, rows = batches.shape[:2]
    first = torch.arange(replicas).view(-1, 1) * weights["embedding"].shape[1]
    tokens = batches[:, :, :-1].reshape(replicas, -1) + first
    x = functional.embedding(tokens, weights["embedding"].flatten(0, 1))
    x = x + weights["position"].repeat(1, rows, 1)
    for layer in range(LAYERS):
        own = {name: weights[f"{layer}.{name}"] for name in _BLOCK}
        packed = torch.bmm(_normed(x, own["attention_norm"]), own["attention_in"])
        heads = packed.view(-1, CONTEXT, 3, HEADS, WIDTH // HEADS).permute(2, 0, 3, 1, 4)
        query, key, value = heads
        mixed = functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        mixed = mixed.transpose(1, 2).reshape(replicas, -1, WIDTH)
        x = x + torch.bmm(mixed, own["attention_out"])
        hidden = torch.bmm(_normed(x, own["feedforward_norm"]), own["feedforward_in"])
        x = x + torch.bmm(functional.gelu(hidden), own["feedforward_out"])
    logits = torch.bmm(_normed(x, weights["norm"]), weights["embedding"].mT)
    each = functional.cross_entropy(
        logits.flatten(0, 1), batches[:, :, 1:].flatten(), reduction="none"
    )
    return each.view(replicas, -1).double().mean(1)


def batch_of(tokens: Tokens, rows: int, *place: int) -> Tensor:
    """int64 [rows, T + 1], a pure function of the numbers in `place`."""
    message = b"runnel.benchmark.spsa.1" + np.array(place, "<i8").tobytes()
    words = np.frombuffer(blake3(message).digest(length=8 * rows), "<u8")
    starts = (words % (tokens.size - CONTEXT)).astype(np.int64)
    return torch.from_numpy(tokens[starts[:, None] + np.arange(CONTEXT + 1)])


def pretrained(text: Halves, seed: int, steps: int) -> dict[str, npt.NDArray[np.float32]]:
    """Weights after `steps` steps of Adam on the first half."""
    generator = torch.Generator().manual_seed(seed)
    weights = {}
    for name, shape in shapes(text.vocab).items():
        deviation = 0.05 if name in {"embedding", "position"} else shape[0] ** -0.5
        drawn = torch.randn(1, *shape, generator=generator) * deviation
        weights[name] = (torch.zeros_like(drawn) if len(shape) == 1 else drawn).requires_grad_()
    optimizer = torch.optim.Adam(weights.values(), lr=3e-3, betas=(0.9, 0.98))
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = 3e-3 * min(1.0, (step + 1) / 50) * (1 - step / steps * 0.9)
        loss = losses(weights, batch_of(text.first, PRETRAIN_BATCH, seed, step).unsqueeze(0))[0]
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return {name: value.detach()[0].numpy().copy() for name, value in weights.items()}


@torch.no_grad()
def validation_loss(weights: Mapping[str, npt.NDArray[np.float32]], text: Halves) -> float:
    """Nats per character of the whole validation text, cut into rows that share no target."""
    held = {name: torch.from_numpy(value)[None] for name, value in weights.items()}
    rows = (text.validation.size - 1) // CONTEXT
    total = 0.0
    for start in range(0, rows, _VALIDATION_ROWS):
        index = np.arange(start, min(start + _VALIDATION_ROWS, rows))[:, None] * CONTEXT
        batch = torch.from_numpy(text.validation[index + np.arange(CONTEXT + 1)])
        total += float(losses(held, batch[None])[0]) * len(index)
    return total / rows


def cosine(lr: float, done: int, steps: int) -> float:
    """The learning rate of a step: half a cosine from `lr` to 0."""
    return lr * 0.5 * (1 + math.cos(math.pi * done / steps))


_BLOCK: Sequence[str] = (
    "attention_norm",
    "attention_in",
    "attention_out",
    "feedforward_norm",
    "feedforward_in",
    "feedforward_out",
)


def _normed(x: Tensor, gain: Tensor) -> Tensor:
    scaled = x * torch.rsqrt((x * x).mean(-1, keepdim=True) + 1e-6)
    return scaled * (1 + gain.unsqueeze(1))
