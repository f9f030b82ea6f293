"""A node that trains by itself: the run's own model on the run's own text, until the end or Ctrl-C."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from runnel.errors import ConfigError, RunMismatchError, StorageError
from runnel.hashing import digest
from runnel.node.approach import Approach
from runnel.node.config import LaunchPlan
from runnel.node.corpus import Corpus
from runnel.node.dataset_exchange import publish_corpus
from runnel.node.entrance import Entrance
from runnel.node.events import Evaluated, Event
from runnel.node.joining import first_root
from runnel.node.manifest import RunSpec
from runnel.node.peer import PeerNode
from runnel.node.place import Joined
from runnel.node.run_model import LanguageModel, language_model, load_base
from runnel.node.sampling import batches, validation_batches
from runnel.node.seed_parts import run_key, seed_store
from runnel.node.session import Peer
from runnel.node.settling import Trials
from runnel.node.step_time import measure_step
from runnel.optim.inner import clip_gradients, inner_optimizer, set_learning_rates
from runnel.optim.schedule import lr_factor
from runnel.optim.seed_rate import measure_bend
from runnel.optim.spsa_loss import Loss

logger = logging.getLogger(__name__)

_LEAVE_S = 10.0
_EVALUATION_BATCHES = 8
_EVALUATE_ROUNDS = 16
_BEND_BATCHES = 8


@dataclass(frozen=True, slots=True)
class Summary:
    """What a node did. ``str()`` is what the command prints at its end."""

    run: str
    rounds: int
    steps: int
    loss: float
    sent_bytes: int
    received_bytes: int
    folder: Path
    ended: bool

    def __str__(self) -> str:
        how = "the run has ended" if self.ended else "left the run"
        where = f"at round {self.rounds}" if self.rounds >= 0 else "before its first round,"
        loss = f"loss {self.loss:.3f}, " if self.steps else ""
        return (
            f"{self.run}: {how} {where} after {self.steps} steps here; {loss}"
            f"{self.sent_bytes / 1e6:.1f} MB sent, {self.received_bytes / 1e6:.1f} MB received;"
            f" state in {self.folder}"
        )


@dataclass(frozen=True, slots=True)
class Workload:
    """What a node trains, and on what."""

    spec: RunSpec
    corpus: Corpus
    model: LanguageModel
    optimizer: torch.optim.Optimizer | None


def run_peer(
    plan: LaunchPlan,
    way: Approach,
    *,
    stop: threading.Event,
    on_event: Callable[[Event], None],
    on_invite: Callable[[str], None],
) -> Summary:
    """Trains until the run ends or `stop` is set; leaves in order either way, and closes `way`.

    A `stop` before this peer takes part ends its start: a new run is not founded then.

    `on_event` gets every event, from several threads; `on_invite` the invite, if this machine is the
    owner's.

    Raises:
        RunnelError: nothing can be started, or what ended the node.
        KeyboardInterrupt: `stop` was set before this peer took part.
    """
    torch.set_num_threads(1)
    entrance, spec, corpus = way.entrance, way.spec, way.corpus
    try:
        model = language_model(spec, plan.source)
        if plan.base is not None:
            _start_from(plan.base, model, entrance)
        _go_on(stop)
    except BaseException:
        entrance.close()
        raise
    trials = Trials(
        partial(_unless, stop, _pace, spec, plan.source),
        partial(_unless, stop, _bend, spec, model, corpus),
    )
    node = PeerNode.attach(entrance, model, trials)
    _serve(node, corpus)
    work = Workload(node.spec, corpus, model, _optimizer(model, node.spec))
    with Peer.on(node, model, work.optimizer, on_event) as peer:
        entrance.runtime.heed(None)  # from here on it leaves in order
        if plan.spec is not None:
            on_invite(peer.invite)
        steps = _train(peer, work, stop)
    return _summary(peer, steps)


def _start_from(base: Path, model: LanguageModel, entrance: Entrance) -> None:
    """Puts a base into a new run's model, or into that of a run that began with it.

    Raises:
        ConfigError: the run exchanges values, and has a state of its own.
        RunMismatchError: it began with another base.
    """
    manifest = entrance.manifest
    if manifest is None:
        load_base(model, base)
    elif isinstance(entrance.place, Joined) and not (entrance.folder() / "manifest.bin").exists():
        if not manifest.spec.seeds.is_on:
            raise ConfigError(
                "a base is given, expected none, because this run's members exchange values and tell a"
                " newcomer their state: leave out --base"
            )
        load_base(model, base)
        found, began = first_root([seed_store(model, manifest.spec).root(0)]), manifest.genesis
        if found != began.state_root:
            raise RunMismatchError(
                f"{base} makes the first state {found.hex()[:8]}, the run began with"
                f" {began.state_root.hex()[:8]}: name the base that `runnel export` of a member tells beside"
                " that name, or leave out --base to fetch the state"
            )


def _go_on(stop: threading.Event) -> None:
    if stop.is_set():
        raise KeyboardInterrupt


def _unless(stop: threading.Event, trial: Callable[..., float], *args: Any) -> float:
    """What a trial gives, if nobody asked to stop before or during it."""
    _go_on(stop)
    found = trial(*args)
    _go_on(stop)
    return found


def _pace(spec: RunSpec, source: str) -> float:
    """Seconds of an inner step here, of a model that is thrown away."""
    return measure_step(language_model(spec, source), spec)


def _bend(spec: RunSpec, model: LanguageModel, corpus: Corpus) -> float:
    """How much the loss bends from where the run begins, on batches that its first peer might draw."""
    data, key = spec.data, run_key(spec)
    drawn = batches(corpus.chunks, digest(b"bend"), data.batch_size, spec.model.context)
    losses = [partial(model.loss, batch) for batch in islice(drawn, _BEND_BATCHES)]
    return measure_bend(model, losses, key=key, epsilon=spec.seeds.epsilon)


def _summary(peer: Peer, steps: int) -> Summary:
    facts = peer.status()
    return Summary(
        run=facts["run"],
        rounds=facts["round"],
        steps=steps,
        loss=facts.get("validation_loss") or facts["loss"] or 0.0,
        sent_bytes=facts["sent_bytes"],
        received_bytes=facts["received_bytes"],
        folder=peer.node.folder,
        ended=peer.is_over,
    )


def _serve(node: PeerNode, corpus: Corpus) -> None:
    """Lets others fetch the text from here."""
    try:
        publish_corpus(node.shelf, corpus)
    except (StorageError, ValueError) as error:
        logger.warning("others cannot get the text from this peer: %s", error)


def _optimizer(model: LanguageModel, spec: RunSpec) -> torch.optim.Optimizer | None:
    """What takes this peer's own steps; none where they are made of losses alone."""
    inner = spec.inner
    if spec.seeds.method in ("spsa", "fedkseed"):
        return None
    return inner_optimizer(
        inner.optimizer,
        model.named_parameters(),
        lr=inner.lr,
        matrix_lr=inner.matrix_lr,
        weight_decay=inner.weight_decay,
        betas=(inner.beta1, inner.beta2),
    )


def _train(peer: Peer, work: Workload, stop: threading.Event) -> int:
    """Inner steps until the end; how many there were."""
    steps, evaluated = 0, -1
    while not (stop.is_set() or peer.is_over):
        if work.optimizer is None:
            _seeded_step(peer, work)
            steps += 1
        else:
            steps += _window(peer, work, work.optimizer, stop)
        if peer.round // _EVALUATE_ROUNDS != evaluated:
            evaluated = peer.round // _EVALUATE_ROUNDS
            _evaluate(peer, work)
    if peer.is_over:
        peer.take_last_state()
        _evaluate(peer, work)
    return steps


def _seeded_step(peer: Peer, work: Workload) -> None:
    """A step of losses, each on the one batch that its public seed draws: others draw it too."""
    data, context = work.spec.data, work.spec.model.context

    def loss_of(seed: bytes) -> Loss:
        batch = next(batches(work.corpus.chunks, seed, data.batch_size, context))
        return lambda: work.model.loss(batch)

    peer.seeded_step(loss_of, tokens=data.batch_size * context)


def _window(
    peer: Peer, work: Workload, optimizer: torch.optim.Optimizer, stop: threading.Event
) -> int:
    """Steps on the batches of one window; how many there were."""
    spec, steps, seed = work.spec, 0, peer.window_seed()
    for batch in batches(work.corpus.chunks, seed, spec.data.batch_size, spec.model.context):
        loss = _inner_step(work, optimizer, batch, peer.progress)
        peer.step(loss, tokens=batch.shape[0] * (batch.shape[1] - 1))
        steps += 1
        if stop.is_set() or peer.is_over or peer.window_seed() != seed:
            break
    return steps


def _inner_step(
    work: Workload, optimizer: torch.optim.Optimizer, batch: torch.Tensor, progress: float
) -> torch.Tensor:
    inner = work.spec.inner
    factor = lr_factor(progress, warmup_share=inner.warmup_share, final_share=inner.final_lr_share)
    set_learning_rates(optimizer, factor)
    loss = work.model.loss(batch)
    loss.backward()  # type: ignore[no-untyped-call]  # torch
    clip_gradients(work.model.parameters(), inner.clip_norm)
    optimizer.step()
    optimizer.zero_grad()
    return loss.detach()


@torch.no_grad()
def _evaluate(peer: Peer, work: Workload) -> None:
    """Mean validation loss, nats per byte, on stretches spread evenly over the held-out text."""
    data, context = work.spec.data, work.spec.model.context
    text, losses, tokens = work.corpus.validation, list[float](), 0
    size = data.batch_size * context + 1
    for place in range(_EVALUATION_BATCHES):
        start = max(0, len(text) - size) * place // max(1, _EVALUATION_BATCHES - 1)
        for batch in validation_batches(text[start : start + size], data.batch_size, context):
            losses.append(float(work.model.loss(batch)))
            tokens += batch.shape[0] * context
    loss = sum(losses) / len(losses)
    peer.node.note(Evaluated(unix_s=0.0, round=peer.round, loss=loss, tokens=tokens))
