"""Halves of a swarm that go on for hundreds of rounds as branches, and meet: one chain, nothing lost, nothing twice."""

from __future__ import annotations

from itertools import product

import pytest

from tests.support.schedules import World

ROUNDS = 300
HEALED_S = 150.0


class Halves(World):
    """Four peers, of whom 0 and 1 will not reach 2 and 3."""

    def founders(self, kind: str) -> tuple[int, ...]:
        """See `World.founders`."""
        return (4,)

    def run_until(self, number: int) -> None:
        """Until every chain has come so far."""
        while min(peer.chain.number for peer in self.peers.values()) < number:
            self.step()


@pytest.mark.slow
@pytest.mark.parametrize("seed", [3, 11])
@pytest.mark.timeout(300)
def test_halves_that_meet_after_hundreds_of_rounds_end_on_one_chain(seed: int) -> None:
    world = Halves(seed, calm=True)
    world.run_until(3)
    world.kind, world.blocked = "halves", frozenset(product((0, 1), (2, 3)))
    world.run_until(ROUNDS)  # what each peer has learned is checked at each of its ticks
    halves = {world.peers[index].chain.path[-20] for index in range(4)}
    assert len(halves) == 2
    world.blocked = frozenset()
    before = {index: peer.chain.number for index, peer in world.peers.items()}
    end = world.now + HEALED_S
    while world.now < end:
        world.step()
    world.checks.final(before)
    assert world.stats["branch"] >= 4
    assert world.stats["given up"] > 2 * (ROUNDS - 10)
    heads = {peer.chain.path[-10] for peer in world.peers.values()}
    assert len(heads) == 1
