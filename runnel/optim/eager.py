"""Torch's optimizers without its compiler, whose import is a third of what the start of a peer costs."""

from __future__ import annotations

import inspect

import torch
from torch.optim import SGD, AdamW, Optimizer


class EagerOptimizer(Optimizer):
    """An optimizer that nobody compiles.

    Torch wraps these methods so that its compiler leaves them alone, and imports the compiler for that
    with the first optimizer: two to three seconds of a processor. What is wrapped is the same without.
    Where torch wraps them otherwise, they are as they were, and so is the time.
    """

    add_param_group = inspect.unwrap(Optimizer.add_param_group)
    zero_grad = inspect.unwrap(Optimizer.zero_grad)


class EagerAdamW(EagerOptimizer, AdamW):
    """`torch.optim.AdamW`, bit for bit."""

    step = torch.no_grad()(inspect.unwrap(AdamW.step))


class EagerSGD(EagerOptimizer, SGD):
    """`torch.optim.SGD`, bit for bit."""

    step = torch.no_grad()(inspect.unwrap(SGD.step))
