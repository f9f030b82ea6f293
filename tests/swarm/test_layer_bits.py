"""Layers with bits of their own between real peers: what is sent is less, and all hold the same bits."""

from __future__ import annotations

from pathlib import Path

import pytest

from runnel.node.manifest import SignedManifest
from runnel.node.rounds import slice_bounds
from runnel.node.run_model import build_model
from runnel.optim import plan_model
from runnel.optim.codecs import planned_bytes
from tests.support.swarm import Swarm, differing_rounds, invite_of

pytestmark = [pytest.mark.swarm, pytest.mark.slow, pytest.mark.timeout(240)]

CODEC = "l-greco+e3m0"


def test_peers_with_bits_by_layer_end_with_the_same_bits_for_fewer_bytes(tmp_path: Path) -> None:
    codecs = (f"outer.codec={CODEC}", f"outer.result_codec={CODEC}")
    with Swarm(tmp_path, *codecs, "outer.fragments=2", "rounds.open=1") as swarm:
        first = swarm.launch()
        second = swarm.join("second", invite_of(first))
        first.wait_for_contribution_of(second)
        first.wait_for_rounds(4)
        second.interrupt()
        first.interrupt()
        assert [peer.exit_code() for peer in swarm.peers] == [0, 0], "\n".join(
            peer.said() for peer in swarm.peers
        )
        assert differing_rounds(swarm.peers) == {}
        spec = SignedManifest.read(first.run_folder / "manifest.bin").spec
        sizes = plan_model(build_model(spec), spec.num_fragments).sizes
        for peer in swarm.peers:
            sent = peer.events("RoundCommitted")
            planned = [
                sum(
                    planned_bytes(CODEC, high - low)
                    for low, high in slice_bounds(sizes[fact["fragment"]], fact["slices"])
                )
                for fact in sent
            ]
            assert len(sent) >= 4
            assert all(f["payload_bytes"] <= most for f, most in zip(sent, planned, strict=True))
            assert sum(fact["payload_bytes"] for fact in sent) < 0.98 * sum(planned)
