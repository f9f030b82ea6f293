"""What an author's training loop holds: `Peer`. Three lines join a model to a swarm.

Everything here runs in the caller's thread; the network, the codecs and the disk are elsewhere. The
same loop works alone, with others, in a script and in a notebook.
"""

from __future__ import annotations

import html
import logging
import operator
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from runnel.errors import ConfigError
from runnel.node.check import require
from runnel.node.ending import Ending, remove
from runnel.node.entrance import enter
from runnel.node.events import Event
from runnel.node.invite import Invite
from runnel.node.peer import PeerNode
from runnel.node.place import Local, Place, invited, local, resolve
from runnel.node.sampling import dataset_batches
from runnel.node.seed_trainer import SeedTrainer
from runnel.node.trainer import Trainer
from runnel.optim.binding import ModelBinding
from runnel.optim.seed_store import SeedStore

if TYPE_CHECKING:
    import torch
    from torch import nn

__all__ = ["Peer", "invited", "local"]

logger = logging.getLogger(__name__)

Listener = Callable[[Event], None]


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
        peer.leave()

    A ``with`` block leaves by itself, also after an exception. A peer that is dropped, or left alone
    by the end of the program, stops without a goodbye.
    """

    def __init__(
        self,
        place: str | Invite | Place,
        *,
        model: nn.Module,
        optimizer: torch.optim.Optimizer | None = None,
        on_event: Listener | None = None,
        max_upload: str | None = None,
    ) -> None:
        """Joins, or starts, a run with `model`; returns once the model holds the run's parameters.

        Args:
            place: an invite ("runnel:..."), `runnel.local()` for a run that starts here, or
                `runnel.invited()` for an invite with a home of its own.
            model: all its trainable parameters are exchanged; see `runnel.check(model)`.
            optimizer: only looked at, for reports, and where outer.windows is public for what commitments
                name of a window: none without it. Its state stays yours, but where outer.inner_state is
                fresh: it is needed there, and at the end of each window forgets its moments and counts.
            on_event: gets every event of this peer, from several threads.
            max_upload: the most that this peer sends, such as "2 Mbit/s".

        Raises:
            ConfigError: a bad invite, a rate that is none, a model that cannot be exchanged, a run that would start
                from values that are NaN or infinite, or one with a fresh inner state and no optimizer.
            NetworkError: nobody of the run can be reached.
            RunMismatchError: the model is not the run's.
        """
        where = resolve(place)
        where = replace(where, machine=where.machine.sending(max_upload))
        require(model, fragments=1)
        _check_optimizer(optimizer, model)
        scratch = where.machine.home if isinstance(where, Local) and where.scratch else None
        try:
            self._take(PeerNode.attach(enter(where), model), model, optimizer, on_event, scratch)
        except BaseException:
            remove(scratch)
            raise

    @classmethod
    def on(
        cls,
        node: PeerNode,
        model: nn.Module,
        optimizer: torch.optim.Optimizer | None,
        on_event: Listener | None,
    ) -> Self:
        """The session of a node that is wired already."""
        peer = cls.__new__(cls)
        peer._take(node, model, optimizer, on_event, None)
        return peer

    def _take(
        self,
        node: PeerNode,
        model: nn.Module,
        optimizer: torch.optim.Optimizer | None,
        on_event: Listener | None,
        scratch: Path | None,
    ) -> None:
        self._node, self._optimizer = node, optimizer
        self._ending = Ending(node, scratch)
        if on_event is not None:
            node.listen(_guarded(on_event))
        try:
            self._trainer = _trainer(node, model, optimizer)
            node.begin()
        except BaseException:
            self._ending.close("failed to start")
            raise
        self._ending.watch(self)

    def batches(
        self,
        dataset: Any,
        batch_size: int,
        *,
        collate: Callable[[list[Any]], Any] | None = None,
    ) -> Iterator[Any]:
        """Batches of this peer's part of `dataset`, until the run ends or this peer leaves.

        Which part follows from the run's public seed, this peer and the round, so that peers need
        no coordinator to see different data. A run without an end ([end] in its settings) has
        batches for ever: break out of the loop.

        Args:
            dataset: map-style (``len`` and ``dataset[i]``) or an iterable that can start again.
            batch_size: items per batch.
            collate: makes a batch of a list of items; by default torch's ``default_collate``.

        Raises:
            ConfigError: a DataLoader, an empty dataset, or none at all; before the first batch.
        """
        endless = dataset_batches(dataset, batch_size, self.window_seed, collate=collate)
        return self._until_the_end(endless)

    def _until_the_end(self, endless: Iterator[Any]) -> Iterator[Any]:
        while not (self.is_over or self._node.is_closed):
            yield next(endless)

    def window_seed(self) -> bytes:
        """32 bytes that follow from the run's chain, this peer and the window under way: what `batches` draws from."""
        return self._trainer.window_seed()

    def step(self, loss: torch.Tensor | float, *, tokens: int = 1) -> None:
        """Call once after each optimizer step: counts it, hands over what is due, applies what arrived.

        Args:
            loss: of this step, one number; a NaN or infinite one withholds what is due, with a
                warning, until the steps of another share were finite.
            tokens: behind this step: the weight of its contribution, in any unit that all peers of
                the run share (tokens, samples, or 1 for a step).

        Raises:
            ConfigError: `loss` is not one number, or `tokens` not a whole one of at least 1.
            RunMismatchError: a parameter of the model was replaced since it joined.
            RunnelError: what ended the peer's network side, or that this peer has left. Training on
                alone is the caller's choice.
        """
        if self._optimizer is not None:
            self._trainer.lr = float(self._optimizer.param_groups[0]["lr"])
        self._trainer.step(_number(loss), _count(tokens))

    def spsa_step(self, loss_fn: Callable[[], torch.Tensor | float], *, tokens: int = 1) -> float:
        """One step without gradients, of a run with ``seeds.method`` spsa or fedkseed; its mean loss.

        Evaluates the loss beside the weights, shares what it found with the others, and returns once
        the weights have moved. No optimizer, and no memory for gradients.

        Args:
            loss_fn: the loss of `model` as it is when called, on one batch: a number, a scalar tensor,
                or a value per example. It is called several times and must give the same each time:
                draw the batch before, and call ``model.eval()``.
            tokens: as in `step`.

        Raises:
            ConfigError: a loss that is random or leaves traces in the model, or a run of another
                method.
            RunMismatchError: what the chain decided is not what this peer computes.
            RunnelError: what ended the peer's network side, or that this peer has left.
        """
        return self._seed_trainer().step(loss_fn, _count(tokens))

    def seeded_step(
        self, loss_of: Callable[[bytes], Callable[[], torch.Tensor | float]], *, tokens: int = 1
    ) -> float:
        """As `spsa_step`, with a batch that a public seed decides: then peers can check each other.

        The seed follows from the run's chain, this peer and the step. Where all peers of a run take
        these steps, each computes some of the others' scalars again (`seeds.spot_checks`), and tells
        of one that is another: the event `ScalarRefuted`, evidence in the run's folder.

        Args:
            loss_of: gives, for 32 bytes, what `spsa_step` takes: the loss on the batch that these
                bytes decide, on every machine the same.
            tokens: as in `step`.

        Raises:
            ConfigError, RunMismatchError, RunnelError: as in `spsa_step`.
        """
        return self._seed_trainer().seeded_step(loss_of, _count(tokens))

    def _seed_trainer(self) -> SeedTrainer:
        if not isinstance(self._trainer, SeedTrainer):
            raise ConfigError(
                "this run exchanges values, expected seeds.method spsa or fedkseed: call"
                " optimizer.step() and peer.step(loss), or start a run with --set seeds.method=spsa"
            )
        return self._trainer

    def take_last_state(self) -> None:
        """Puts the newest outer parameters into the model: after the run's end, what all replicas hold."""
        self._trainer.take_outer_state()

    def leave(self, timeout_s: float = 10.0) -> None:
        """Says goodbye, waits until the swarm has let this peer go, and stops. Idempotent.

        An interrupt while it waits stops at once. In a forked child it does nothing: the peer is the parent's.
        """
        self._ending.leave(timeout_s)

    def close(self) -> None:
        """Stops at once; the others notice by themselves. Idempotent."""
        self._ending.close("stopped")

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
        """Share of the run that is done, 0 to 1, the same for all peers: for learning-rate schedules.

        It moves when a round is decided, with public windows when it is merged; 0 for ever in a run without an
        end.
        """
        return self._trainer.progress

    @property
    def round(self) -> int:
        """The newest decided round; -1 before the first."""
        return self._node.mailbox.chain.number

    @property
    def is_over(self) -> bool:
        """Whether the run has ended."""
        return self._node.mailbox.chain.is_over

    def status(self) -> dict[str, Any]:
        """Run, round, members, loss, bytes: what `runnel status --json` shows; also after leaving."""
        return self._node.status()

    def __repr__(self) -> str:
        facts = self.status()
        state = "left" if self._node.is_closed else "over" if self.is_over else "training"
        return f"<runnel.Peer {facts['peer']} of run {facts['run']}: round {self.round}, {state}>"

    def _repr_html_(self) -> str:
        rows = (
            f"<tr><td>{html.escape(str(key))}</td><td>{html.escape(str(value))}</td></tr>"
            for key, value in self.status().items()
        )
        return f"<table>{''.join(rows)}</table>"


def _trainer(
    node: PeerNode, model: nn.Module, optimizer: torch.optim.Optimizer | None
) -> Trainer | SeedTrainer:
    store = node.store
    if isinstance(store, SeedStore):
        return SeedTrainer(node, model, store)
    return Trainer(node, ModelBinding(model, node.plan), store, optimizer)


def _number(loss: object) -> float:
    """A number, or a tensor or array of one element."""
    detach = getattr(loss, "detach", None)
    try:
        if isinstance(loss, str | bytes):
            raise TypeError  # noqa: TRY301 - float would read them
        return float(loss if detach is None else detach())  # type: ignore[arg-type]  # or it is refused
    except (TypeError, ValueError, RuntimeError):
        shape = tuple(getattr(loss, "shape", ()))
        seen = f"a {type(loss).__name__}" + (f" of shape {shape}" if shape else "")
        raise ConfigError(
            f"the loss is {seen}, expected one number: pass loss.mean() or loss.item()"
        ) from None


def _count(tokens: object) -> int:
    try:
        return operator.index(tokens)  # type: ignore[arg-type]  # or it is refused
    except TypeError:
        raise ConfigError(
            f"tokens is {tokens!r}, expected a whole number of at least 1: pass what the batch holds"
        ) from None


def _check_optimizer(optimizer: torch.optim.Optimizer | None, model: nn.Module) -> None:
    if optimizer is None:
        return
    groups = getattr(optimizer, "param_groups", None)
    if groups is None:
        raise ConfigError(
            f"the optimizer is a {type(optimizer).__name__}, expected a torch.optim.Optimizer or None"
        )
    stepped = {id(parameter) for group in groups for parameter in group["params"]}
    if stepped.isdisjoint(map(id, model.parameters())):
        raise ConfigError(
            "the optimizer holds no parameter of the model, expected one made from"
            " model.parameters(): make it after the model"
        )


def _guarded(listener: Listener) -> Listener:
    def call(event: Event) -> None:
        try:
            listener(event)
        except Exception:  # the border to a listener of yours: it must not end the peer
            logger.exception("on_event failed for %s", type(event).__name__)

    return call
