"""One peer's side of an all-reduce by hivemind: `DecentralizedAverager` with UNIFORM_8BIT, as its Optimizer uses it.

A group is formed first and waits for a trigger, so that matchmaking is not timed. What is timed goes
from the trigger to the averaged tensor being in place.
"""

from __future__ import annotations

from pathlib import Path
from time import sleep
from typing import Any

import hivemind
import numpy as np
import torch
from hivemind.averaging.control import AveragingStage
from hivemind.compression import Uniform8BitQuantization, quantization

from benchmarks.allreduce_vectors import name_of, relative_error, vector_of
from runnel.clock import SystemClock

_WAIT_S = 120.0


class _First(int):
    """``int`` for arrays of one element, which numpy 2.4 no longer converts by itself."""

    def __new__(cls, value: Any) -> _First:
        return super().__new__(cls, value[0] if isinstance(value, np.ndarray) else value)


def repair_decoding() -> None:
    """Lets hivemind 1.1.12 decode 8-bit tensors under numpy 2.4 and newer.

    `Quantization.extract` says ``int(np.frombuffer(..., count=1))``; its `int` is replaced by one
    that takes the array's only element. Nothing else changes.
    """
    quantization.int = _First


class HivemindPeer:
    """Peer number `index`."""

    def __init__(self, index: int, folder: Path) -> None:
        self._index, self._folder = index, folder
        self._clock = SystemClock()
        self._number = -1
        repair_decoding()

    def open(self, *, numel: int, invite: list[str], members: int) -> dict[str, Any]:
        """Starts DHT and averager; gives the addresses by which others join."""
        self._dht = hivemind.DHT(
            initial_peers=invite or None, host_maddrs=["/ip4/127.0.0.1/tcp/0"], start=True
        )
        self._averager = hivemind.DecentralizedAverager(
            [torch.zeros(numel)],
            self._dht,
            prefix="allreduce",
            target_group_size=members,
            min_group_size=members,
            min_matchmaking_time=3.0,
            request_timeout=1.0,
            compression=Uniform8BitQuantization(),
            start=True,
        )
        return {"invite": [str(address) for address in self._dht.get_visible_maddrs()]}

    def prepare(self) -> dict[str, Any]:
        """Puts the vector in place and finds the group."""
        self._number += 1
        with self._averager.get_tensors() as (tensor,):
            tensor[:] = torch.from_numpy(vector_of(self._folder, self._index, self._number))
        self._step = self._averager.step(wait=False, require_trigger=True, timeout=_WAIT_S)
        deadline_s = self._clock.monotonic_s() + _WAIT_S
        while self._step.stage is not AveragingStage.AWAITING_TRIGGER:
            if self._step.done() or self._clock.monotonic_s() > deadline_s:
                raise RuntimeError(f"hivemind formed no group: {self._step}")
            sleep(0.02)
        return {}

    def run(self, *, at_s: float) -> dict[str, Any]:
        """One all-reduce, begun at `at_s` of the machine's monotonic clock."""
        sleep(max(0.0, at_s - self._clock.monotonic_s()))
        began_s = self._clock.monotonic_s()
        self._step.allow_allreduce()
        gathered = self._step.result(_WAIT_S)
        ended_s = self._clock.monotonic_s()
        return {"began_s": began_s, "ended_s": ended_s, "group": len(gathered)}

    def check(self) -> dict[str, Any]:
        """How far the result is from the true mean, and a name of its bits."""
        with self._averager.get_tensors() as (tensor,):
            result = tensor.numpy().copy()
        return {
            "relative_error": relative_error(self._folder, result, self._number),
            "bits": name_of(result),
        }

    def close(self) -> dict[str, Any]:
        """Ends averager and DHT."""
        self._averager.shutdown()
        self._dht.shutdown()
        return {}
