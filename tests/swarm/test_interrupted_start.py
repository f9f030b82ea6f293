"""Ctrl-C while a peer still waits for others: its start ends, and nothing of it is left."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from runnel.dht.identity import Identity, to_base58
from runnel.errors import EXIT_INTERRUPTED
from runnel.hashing import digest
from runnel.node.invite import Invite
from tests.support.swarm import Swarm, wait_until

pytestmark = [pytest.mark.swarm, pytest.mark.timeout(120)]


def test_an_interrupt_while_nobody_answers_ends_the_start(tmp_path: Path) -> None:
    owner = Identity.load_or_create(tmp_path / "owner.key")
    with Swarm(tmp_path) as swarm, socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        address = f"/ip4/127.0.0.1/tcp/{port}/p2p/{to_base58(owner.peer_id)}"
        invite = Invite.issue(owner, digest(b"run"), [address], expires_unix_s=1 << 31)
        peer = swarm.join("late", str(invite))
        silent.settimeout(60)
        dialled, _ = silent.accept()  # and says nothing
        with dialled:
            peer.interrupt()
            code = peer.exit_code()
        assert code == EXIT_INTERRUPTED
        said = peer.err.read_text()
        assert "interrupted before it took part" in said
        assert "can be joined" not in said
        assert not list(peer.home.glob("runs/*"))
        wait_until(lambda: not swarm.daemons(peer), lambda: "its daemon has ended", within_s=3)
