"""A child process of `benchmarks.real_peers`: one peer and its training loop, driven by lines of JSON."""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path
from typing import Any

import torch

from benchmarks.chars import (
    CharGpt,
    batch_of,
    inner_optimizer_of,
    read_text,
    train_step,
    validation_loss,
)
from benchmarks.processes import answer_commands
from benchmarks.real_peers import Job
from runnel.dht.identity import Identity
from runnel.errors import BugError
from runnel.node.bulk import RESULT_PROTOCOL, SLICE_PROTOCOL
from runnel.node.config import MachineConfig
from runnel.node.durable import read_snapshot
from runnel.node.outcomes import genesis_record
from runnel.node.outer_state import STATE_FOLDER, blobs_of, read_outer_state
from runnel.node.place import Place, invited, local
from runnel.node.records import Record
from runnel.node.session import Peer
from runnel.node.storage_keys import restore
from runnel.types import PeerId

_HOST = "127.0.0.1"
_WAIT_S = 300.0
_POLL_S = 0.2


class RealPeer:
    """Peer number `index` of a job."""

    def __init__(self, index: int, home: Path, job: Job) -> None:
        self._index, self._home, self._job = index, home, job
        self._text = read_text(job.text)
        self._model = CharGpt(job.task, self._text.vocab)
        self._optimizer = inner_optimizer_of(self._model, job.task)
        self._peer: Peer | None = None

    def identify(self) -> dict[str, Any]:
        """Makes the key by which this peer will be known."""
        machine = MachineConfig.at(self._home, host=_HOST)
        machine.prepare()
        return {"peer": Identity.load_or_create(machine.identity_path).peer_id.hex()}

    def found(self, *, members: list[str]) -> dict[str, Any]:
        """Founds the run of all `members`."""
        peers = [PeerId(bytes.fromhex(name)) for name in members]
        peer = self._enter(local(*self._job.settings(), home=self._home, members=peers))
        return {"invite": peer.invite}

    def join(self, *, invite: str) -> dict[str, Any]:
        """Comes to the run as one of its founding members; its founder is there already."""
        if self._peer is None:
            self._enter(invited(invite, home=self._home, host=_HOST))
        return {}

    def meet(self) -> dict[str, Any]:
        """Waits until all others have been heard, so that nobody is left out of the first round."""
        node, others = self._entered().node, self._job.task.peers - 1
        deadline_s = node.clock.monotonic_s() + _WAIT_S
        while len(node.reachable()) < others:
            if node.clock.monotonic_s() > deadline_s:
                raise BugError(f"heard {len(node.reachable())} of {others} others in {_WAIT_S:g} s")
            node.mailbox.wait(lambda: False, _POLL_S)
        return {}

    def train(self) -> dict[str, Any]:
        """All steps of the task, to the run's end; what was sent meanwhile."""
        peer, task = self._entered(), self._job.task
        before = self._sent(peer)
        for step in range(1, task.steps + 1):
            batch = batch_of(self._text, task, peer=self._index, step=step)
            loss = train_step([self._model], [self._optimizer], batch.unsqueeze(0), task, step=step)
            peer.step(loss[0], tokens=task.batch_size * task.context)
        if not peer.node.mailbox.wait(lambda: peer.is_over, _WAIT_S):
            raise BugError(f"the run stands at round {peer.round} after {task.steps} steps")
        peer.take_last_state()
        sent = [now - then for now, then in zip(self._sent(peer), before, strict=True)]
        return {"sent_bytes": sent[0], "payload_bytes": sent[1]}

    def evaluate(self) -> dict[str, Any]:
        """The loss of what the model holds: after training, the outer parameters."""
        return {"val_loss": validation_loss(self._model, self._text, self._job.task)}

    def leave(self) -> dict[str, Any]:
        """Leaves the run; what is on disk afterwards."""
        folder = self._entered().node.folder
        self.close()
        manifest, content = read_outer_state(folder)
        genesis = genesis_record(manifest.genesis.members, manifest.genesis.state_root)
        stored = read_snapshot(folder / STATE_FOLDER)
        chain = restore(
            stored, genesis, open_rounds=manifest.spec.open_rounds, read=blobs_of(folder)
        ).chain
        return {
            "state": content.meta.state_root.hex(),
            "records": [_as_json(record) for record in chain.walk() if record.number >= 0],
        }

    def close(self) -> None:
        """Leaves the run, if it takes part in one."""
        peer, self._peer = self._peer, None
        if peer is not None:
            peer.leave()

    def _enter(self, place: Place) -> Peer:
        peer = Peer(place, model=self._model, optimizer=self._optimizer)
        self._peer = peer
        return peer

    def _entered(self) -> Peer:
        if self._peer is None:
            raise BugError("commands in the wrong order")
        return self._peer

    @staticmethod
    def _sent(peer: Peer) -> tuple[int, int]:
        """Bytes sent so far, in all and as payloads and results."""
        status = peer.status()
        by_purpose = status["sent_by_purpose"]
        payload = sum(by_purpose.get(name, 0) for name in (SLICE_PROTOCOL, RESULT_PROTOCOL))
        return status["sent_bytes"], payload


def _as_json(record: Record) -> dict[str, Any]:
    """Who sent, who reduced each slice, and whether a slice holds what all of them sent."""
    return {
        "senders": [share.peer.hex() for share in record.shares],
        "reducers": [piece.reducer.hex() for piece in record.slices],
        "complete": [len(piece.included) == len(record.shares) for piece in record.slices],
    }


def main(arguments: list[str]) -> int:
    """``INDEX HOME JOB``."""
    index, home, job = arguments
    logging.basicConfig(level=os.environ.get("RUNNEL_LOG", "WARNING").upper())
    # what a library prints must not land between the answers
    sink = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    torch.set_num_threads(1)
    peer = RealPeer(int(index), Path(home), Job.decode(job))

    def handle(command: Any) -> dict[str, Any]:
        options = dict(command)
        answer: dict[str, Any] = getattr(peer, options.pop("do"))(**options)
        return answer

    try:
        answer_commands(handle, sys.stdin, sink)
    finally:
        peer.close()
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
