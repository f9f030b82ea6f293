"""What a swarm would exchange of a model, and what it could not, before anybody joins.

`runnel.check(model)` looks at a model and starts nothing. Here first at one that works, with all
that is special about it: tied, frozen, half-precision and large parameters, buffers. Then at one
that does not, with a line for each reason and what to do about it.
"""

from __future__ import annotations

import torch
from torch import nn

import runnel


class LanguageModel(nn.Module):
    """Tied embeddings, a frozen position table, a bfloat16 layer, and BatchNorm's buffers."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(1000, 64)
        self.positions = nn.Parameter(torch.zeros(32, 64), requires_grad=False)
        self.mix = nn.Linear(64, 64).to(torch.bfloat16)
        self.norm = nn.BatchNorm1d(64)
        self.head = nn.Linear(64, 1000, bias=False)
        self.head.weight = self.embed.weight


def main() -> None:
    report = runnel.check(LanguageModel(), fragments=4)
    print(report)
    print(f"an int8 round sends about {report.round_bytes['int8']:,} bytes")

    print("\n... and one that cannot:")
    lazy = nn.Sequential(nn.LazyLinear(4), nn.Linear(4, 4, dtype=torch.complex64))
    report = runnel.check(lazy)
    print(report)
    assert not report.ok


if __name__ == "__main__":
    main()
