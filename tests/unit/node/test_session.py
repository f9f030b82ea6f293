"""The author's session: what it refuses before anything starts, and real runs on this machine."""

from __future__ import annotations

import gc
import logging
import math
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from torch import nn
from torch.utils.data import IterableDataset, TensorDataset

import runnel
from runnel.errors import ConfigError, RunMismatchError, RunnelError
from runnel.node.events import ContributionWithheld, Event
from runnel.node.session import _check_optimizer, _count, _guarded, _number

ROOT = Path(__file__).parents[3]
SHORT = ("end.rounds=10", "outer.every_steps=8", "outer.wait_s=5")
POINTS = torch.randn(256, 4, generator=torch.Generator().manual_seed(0))
DATASET = TensorDataset(POINTS, POINTS.sum(dim=1, keepdim=True))


class Items(IterableDataset[tuple[torch.Tensor, torch.Tensor]]):
    def __iter__(self) -> Iterator[Any]:
        return iter([DATASET[index] for index in range(len(DATASET))])


def pair() -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))
    return model, torch.optim.AdamW(model.parameters(), lr=1e-2)


def inner_step(model: nn.Module, optimizer: torch.optim.Optimizer, batch: Any) -> torch.Tensor:
    loss = nn.functional.mse_loss(model(batch[0]), batch[1])
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    return loss


def train(
    peer: runnel.Peer, model: nn.Module, optimizer: torch.optim.Optimizer, dataset: Any = DATASET
) -> int:
    steps = 0
    for batch in peer.batches(dataset, batch_size=16):
        peer.step(inner_step(model, optimizer, batch))
        steps += 1
    return steps


# -- what is refused before anything starts


def test_a_loss_is_one_number_of_any_kind() -> None:
    for loss in (2, 2.0, np.float32(2), torch.tensor(2.0), torch.tensor([2.0], requires_grad=True)):
        assert _number(loss) == 2.0
    assert math.isnan(_number(float("nan")))


def test_a_cap_that_is_no_rate_is_refused_before_anything_starts(tmp_path: Path) -> None:
    model, optimizer = pair()
    place = runnel.local("end.rounds=1", home=tmp_path / "home")
    with pytest.raises(ConfigError, match="max upload is 'fast', expected a number with its unit"):
        runnel.Peer(place, model=model, optimizer=optimizer, max_upload="fast")
    assert not (tmp_path / "home").exists()


@pytest.mark.parametrize(
    ("loss", "seen"),
    [
        (None, "NoneType"),
        ("2", "str"),
        (torch.ones(3), r"Tensor of shape \(3,\)"),
        (np.ones(3), r"ndarray of shape \(3,\)"),
        ({"loss": 2}, "dict"),
    ],
    ids=repr,
)
def test_a_loss_that_is_not_one_number_is_refused(loss: object, seen: str) -> None:
    with pytest.raises(ConfigError, match=f"{seen}, expected one number"):
        _number(loss)


@pytest.mark.parametrize("tokens", [1.5, "3", None, torch.tensor(1.5)], ids=repr)
def test_tokens_that_are_no_count_are_refused(tokens: object) -> None:
    with pytest.raises(ConfigError, match="whole number"):
        _count(tokens)


def test_tokens_may_be_a_whole_tensor() -> None:
    assert _count(torch.tensor(3)) == 3


def test_an_optimizer_of_another_model_is_refused() -> None:
    (model, own), (_, other) = pair(), pair()
    _check_optimizer(own, model)
    _check_optimizer(None, model)
    with pytest.raises(ConfigError, match="holds no parameter of the model"):
        _check_optimizer(other, model)
    with pytest.raises(ConfigError, match="is a str"):
        _check_optimizer("adam", model)  # type: ignore[arg-type]


@pytest.mark.parametrize("model", [None, nn.LazyLinear(2), nn.ReLU()], ids=repr)
def test_a_model_that_cannot_be_exchanged_starts_nothing(model: Any) -> None:
    place = runnel.local(*SHORT)
    with pytest.raises(ConfigError):
        runnel.Peer(place, model=model)
    assert not place.machine.home.exists()


def test_a_listener_that_fails_is_logged_and_does_no_harm(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def listener(_: Event) -> None:
        raise ValueError("yours")

    _guarded(listener)(ContributionWithheld(unix_s=0.0, round=1, reason="none"))
    assert "on_event failed for ContributionWithheld" in caplog.text


# -- real runs, alone


@pytest.mark.swarm
def test_a_run_alone_ends_by_itself_and_tells_its_course(
    caplog: pytest.LogCaptureFixture,
) -> None:
    model, optimizer = pair()
    events: list[Event] = []
    place = runnel.local(*SHORT)
    with runnel.Peer(place, model=model, optimizer=optimizer, on_event=events.append) as peer:
        assert (peer.round, peer.progress, peer.is_over) == (-1, 0.0, False)
        assert "training" in repr(peer)
        assert peer.invite.startswith("runnel:")
        for number, batch in enumerate(peer.batches(DATASET, batch_size=16)):
            loss = inner_step(model, optimizer, batch)
            peer.step(math.nan if number == 1 else loss, tokens=16)
        assert (peer.round, peer.progress, peer.is_over) == (9, 1.0, True)
        peer.take_last_state()
        held = torch.cat([p.detach().flatten() for p in model.parameters()]).numpy()
        assert np.array_equal(np.sort(held), np.sort(np.concatenate(peer.node.outer_parameters())))
        assert len(optimizer.state) == 4
    withheld = [event for event in events if isinstance(event, ContributionWithheld)]
    assert [event.reason for event in withheld] == ["the loss was nan"]
    warnings = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert [record.getMessage() for record in warnings] == [withheld[0].diary()]
    status = peer.status()
    assert status["round"] == 9
    assert 0 < status["tokens"] <= 16 * (number + 1), "each token counts once"
    assert "<td>round</td><td>9</td>" in peer._repr_html_()
    assert "left" in repr(peer)
    assert not place.machine.home.exists()


@pytest.mark.swarm
def test_a_peer_that_left_takes_no_more_steps() -> None:
    model, optimizer = pair()
    peer = runnel.Peer(runnel.local(*SHORT), model=model, optimizer=optimizer)
    peer.leave()
    peer.leave()
    peer.close()
    assert list(peer.batches(DATASET, batch_size=4)) == []
    with pytest.raises(RunnelError, match="has left its run"):
        peer.step(1.0)


@pytest.mark.swarm
@pytest.mark.parametrize("error", [ValueError("yours"), KeyboardInterrupt()], ids=repr)
def test_an_exception_in_the_block_leaves_and_passes_on(error: BaseException) -> None:
    model, optimizer = pair()
    with pytest.raises(type(error)):
        with runnel.Peer(runnel.local(*SHORT), model=model, optimizer=optimizer) as peer:
            raise error
    assert peer.node.is_closed
    assert [t.name for t in threading.enumerate() if t.name.startswith("runnel")] == []


@pytest.mark.swarm
def test_a_dropped_peer_stops() -> None:
    model, optimizer = pair()
    peer = runnel.Peer(runnel.local(*SHORT), model=model, optimizer=optimizer)
    node = peer.node
    del peer
    gc.collect()
    for thread in threading.enumerate():
        if thread.name == "runnel-close":
            thread.join(20.0)
    assert node.is_closed  # and the leak check finds neither threads nor the daemon


@pytest.mark.swarm
def test_an_iterable_ends_with_the_run_in_a_thread_of_yours() -> None:
    steps: list[int] = []

    def work() -> None:
        model, optimizer = pair()
        with runnel.Peer(runnel.local(*SHORT), model=model, optimizer=optimizer) as peer:
            steps.append(train(peer, model, optimizer, Items()))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert steps[0] >= 10


@pytest.mark.swarm
def test_a_run_goes_on_in_its_home_and_one_home_has_one_peer(tmp_path: Path) -> None:
    model, optimizer = pair()
    place = runnel.local("outer.every_steps=8", "outer.wait_s=5", home=tmp_path / "home")
    with runnel.Peer(place, model=model, optimizer=optimizer) as peer:
        for batch in peer.batches(DATASET, batch_size=16):
            peer.step(inner_step(model, optimizer, batch))
            if peer.round >= 4:
                break
        with pytest.raises(RunnelError, match="in use"):
            runnel.Peer(place, model=pair()[0])
        run = peer.status()["run_id"]
    told = peer.round  # leaving may cut short what comes after the write of one more record
    again, _ = pair()
    with runnel.Peer(place, model=again) as peer:
        assert peer.status()["run_id"] == run
        assert peer.round in {told, told + 1}
        held = torch.cat([p.detach().flatten() for p in again.parameters()]).numpy()
        assert np.array_equal(np.sort(held), np.sort(np.concatenate(peer.node.outer_parameters())))
    assert place.machine.home.exists()


@pytest.mark.swarm
def test_two_peers_in_one_process_end_with_equal_parameters(tmp_path: Path) -> None:
    (first, one), (second, two) = pair(), pair()
    with torch.no_grad():
        second[0].weight.zero_()  # type: ignore[index]
    settings = ("end.rounds=16", "outer.every_steps=8", "outer.wait_s=5")
    ends: list[int] = []
    with runnel.Peer(runnel.local(*settings), model=first, optimizer=one) as owner:
        place = runnel.invited(owner.invite, home=tmp_path / "second", host="127.0.0.1")
        with pytest.raises(RunMismatchError):
            runnel.Peer(place, model=nn.Linear(4, 1))
        with runnel.Peer(place, model=second, optimizer=two) as guest:
            with pytest.raises(ConfigError, match="only the run's owner can invite"):
                _ = guest.invite
            thread = threading.Thread(target=lambda: ends.append(train(guest, second, two)))
            thread.start()
            train(owner, first, one)
            thread.join()
            for peer in (owner, guest):
                peer.take_last_state()
            leaving = threading.Thread(target=guest.leave)
            leaving.start()
            owner.leave()
            leaving.join()
    assert ends
    for mine, theirs in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(mine, theirs)


PROGRAM = """
import torch, runnel
model = torch.nn.Linear(8, 1)
peer = runnel.Peer(runnel.local(), model=model)
for (batch,) in peer.batches(torch.utils.data.TensorDataset(torch.randn(64, 8)), batch_size=4):
    peer.step(1.0)
    break
daemon = next(p for p in __import__("psutil").Process().children() if p.name() == "p2pd")
print(daemon.pid, flush=True)
{end}
"""


@pytest.mark.swarm
@pytest.mark.parametrize(
    ("end", "code"),
    [
        ("", 0),
        ("raise KeyboardInterrupt", None),
        pytest.param("raise SystemExit(3)", 3, marks=pytest.mark.slow),
    ],
)
def test_a_program_that_forgets_to_leave_ends_with_its_daemon(
    end: str, code: int | None, tmp_path: Path
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(end=end)],
        cwd=ROOT,
        env={**__import__("os").environ, "TMPDIR": str(tmp_path), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
    )
    assert not psutil.pid_exists(int(done.stdout))
    assert code is None or done.returncode == code, done.stderr
    assert "driver" not in done.stderr
    assert ("Traceback" in done.stderr) == ("KeyboardInterrupt" in end)
    assert list(tmp_path.glob("runnel-*")) == []
