"""What an author's training loop holds: `Peer`. Three lines join a model to a swarm.

Everything here runs in the caller's thread; the network, the codecs and the disk are elsewhere. The
same loop works alone, with others, in a script and in a notebook.
"""

from __future__ import annotations

import html
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Self

from runnel.node.entrance import enter
from runnel.node.events import Event
from runnel.node.peer import PeerNode
from runnel.node.place import Place, local, resolve
from runnel.node.sampling import dataset_batches
from runnel.node.trainer import Trainer
from runnel.optim.binding import ModelBinding

if TYPE_CHECKING:
    import torch
    from torch import nn

__all__ = ["Peer", "local"]


class Peer:
    """A model's part in a swarm.

    ::

        peer = runnel.Peer("runnel:..." or runnel.local(), model=model, optimizer=optimizer)
        for batch in peer.batches(dataset, batch_size=32):
            loss = loss_of(model, batch)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            peer.step(loss)
    """

    def __init__(
        self,
        place: str | Place,
        *,
        model: nn.Module,
        optimizer: torch.optim.Optimizer | None = None,
        on_event: Callable[[Event], None] | None = None,
    ) -> None:
        """Joins, or starts, a run with `model`; returns once the model holds the run's parameters.

        Args:
            place: an invite ("runnel:..."), or `runnel.local()` for a run that starts here.
            model: all its trainable parameters are exchanged; see `runnel.check(model)`.
            optimizer: only looked at, for reports; its state stays yours.
            on_event: gets every event of this peer, from several threads.

        Raises:
            ConfigError: a bad invite, or a model that cannot be exchanged.
            NetworkError: nobody of the run can be reached.
            RunMismatchError: the model is not the run's.
        """
        self._take(PeerNode.attach(enter(resolve(place)), model), model, optimizer, on_event)

    @classmethod
    def on(
        cls,
        node: PeerNode,
        model: nn.Module,
        optimizer: torch.optim.Optimizer | None,
        on_event: Callable[[Event], None] | None,
    ) -> Self:
        """The session of a node that is wired already."""
        peer = cls.__new__(cls)
        peer._take(node, model, optimizer, on_event)
        return peer

    def _take(
        self,
        node: PeerNode,
        model: nn.Module,
        optimizer: torch.optim.Optimizer | None,
        on_event: Callable[[Event], None] | None,
    ) -> None:
        self._node, self._optimizer = node, optimizer
        if on_event is not None:
            node.listen(on_event)
        try:
            self._trainer = Trainer(node, ModelBinding(model, node.plan))
            node.begin()
        except BaseException:
            node.close("failed to start")
            raise

    def batches(self, dataset: Any, batch_size: int) -> Iterator[Any]:
        """Batches of this peer's part of `dataset`, until the run ends.

        Which part follows from the run's public seed, this peer and the round, so that peers need
        no coordinator to see different data. Map-style datasets and iterables of tensors work.
        """
        for batch in dataset_batches(dataset, batch_size, self._node.window_seed):
            if self.is_over:
                return
            yield batch

    def step(self, loss: torch.Tensor | float, *, tokens: int = 1) -> None:
        """Call once after each optimizer step: counts it, hands over what is due, applies what arrived.

        Args:
            loss: of this step; a NaN or infinite one withholds this peer's next contribution.
            tokens: behind this step: the weight of its contribution.

        Raises:
            ConfigError: `tokens` is below 1.
            RunnelError: what ended the peer's network side; training on alone is the caller's choice.
        """
        value = float(loss) if isinstance(loss, int | float) else float(loss.detach())
        if self._optimizer is not None:
            self._trainer.lr = float(self._optimizer.param_groups[0]["lr"])
        self._trainer.step(value, tokens)

    def take_last_state(self) -> None:
        """Puts the newest outer parameters into the model: after the run's end, what all replicas hold."""
        self._trainer.take_outer_state()

    def leave(self, timeout_s: float = 10.0) -> None:
        """Says goodbye, waits until the swarm has let this peer go, and stops. Idempotent."""
        self._node.leave(timeout_s)

    def close(self) -> None:
        """Stops at once; the others notice by themselves. Idempotent."""
        self._node.close()

    def __enter__(self) -> Self:
        """The peer itself."""
        return self

    def __exit__(self, *exc: object) -> None:
        """Leaves in order."""
        self.leave()

    @property
    def node(self) -> PeerNode:
        """What runs behind this session."""
        return self._node

    @property
    def invite(self) -> str:
        """The invite by which others join this run; only its owner can make one.

        Raises:
            ConfigError: this peer does not hold the owner's key.
        """
        return self._node.make_invite()

    @property
    def progress(self) -> float:
        """Share of the run that is done, 0 to 1, the same for all peers: for learning-rate schedules."""
        return self._node.mailbox.chain.progress

    @property
    def round(self) -> int:
        """The newest decided round; -1 before the first."""
        return self._node.mailbox.chain.number

    @property
    def is_over(self) -> bool:
        """Whether the run has ended."""
        return self._node.mailbox.chain.is_over

    def status(self) -> dict[str, Any]:
        """Run, round, members, loss, bytes: what `runnel status --json` shows."""
        return self._node.status()

    def _repr_html_(self) -> str:
        rows = (
            f"<tr><td>{html.escape(str(key))}</td><td>{html.escape(str(value))}</td></tr>"
            for key, value in self.status().items()
        )
        return f"<table>{''.join(rows)}</table>"
