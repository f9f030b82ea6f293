"""Kademlia's search on networks in memory."""

from __future__ import annotations

import asyncio
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runnel.dht import run_virtual
from runnel.dht.search import search

Network = dict[int, list[int]]  # who knows whom


def kademlia(num_nodes: int, seed: int, bucket_size: int = 8) -> Network:
    """Nodes with the routing tables that Kademlia's buckets give them."""
    rng = random.Random(seed)
    ids = [rng.getrandbits(32) for _ in range(num_nodes)]
    network: Network = {}
    for own in ids:
        buckets: dict[int, list[int]] = {}
        for other in rng.sample(ids, len(ids)):
            bucket = buckets.setdefault((own ^ other).bit_length(), [])
            if other != own and len(bucket) < bucket_size:
                bucket.append(other)
        network[own] = [other for bucket in buckets.values() for other in bucket]
    return network


def run_search(network: Network, target: int, dead: set[int], width: int) -> tuple[list[int], int]:
    """Nodes found from the first node, and how many were asked."""
    asked: list[int] = []
    in_flight = 0

    async def ask(node: int) -> dict[int, int] | None:
        nonlocal in_flight
        asked.append(node)
        in_flight += 1
        assert in_flight <= 3
        await asyncio.sleep(0.01 + node % 7 / 100)
        in_flight -= 1
        if node in dead:
            return None
        nearest = sorted(network[node], key=target.__xor__)[:8]
        return {other: other for other in nearest}

    found: list[int] = []

    async def main() -> None:
        first = next(iter(network))
        start = {other: other for other in network[first]}
        found.extend(await search(target, start, ask, width=width, parallel=3))

    run_virtual(main)
    assert len(asked) == len(set(asked)), "no node is asked twice"
    return found, len(asked)


@given(st.integers(2, 150), st.integers(0, 1000), st.integers(0, 2**32 - 1))
def test_the_nearest_nodes_are_found_without_asking_everybody(
    num_nodes: int, seed: int, target: int
) -> None:
    network = kademlia(num_nodes, seed)
    found, num_asked = run_search(network, target, set(), width=5)
    others = sorted(set(network), key=target.__xor__)
    assert found == sorted(found, key=target.__xor__)
    # The searcher itself may be among the nearest and be named by others.
    assert found[:4] == [node for node in others if node in found][:4]
    assert set(others[:3]) <= {*found, next(iter(network))}
    assert num_asked <= 5 + 40


def test_dead_nodes_are_left_out() -> None:
    network = kademlia(60, seed=3)
    target = 12345
    nearest = sorted(network, key=target.__xor__)
    dead = set(nearest[:4])
    found, _ = run_search(network, target, dead, width=5)
    assert not dead & set(found)
    assert found[0] == nearest[4]


def test_nobody_to_ask_finds_nobody() -> None:
    async def main() -> None:
        async def ask(node: int) -> None:
            pytest.fail(f"asked {node}")

        assert await search(1, {}, ask, width=5, parallel=3) == {}

    run_virtual(main)


def test_a_cancelled_search_leaves_no_question_behind() -> None:
    async def main() -> None:
        async def ask(node: int) -> dict[int, int]:
            await asyncio.sleep(1000)
            return {}

        before = asyncio.all_tasks()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(1):
                await search(1, {2: 2, 3: 3}, ask, width=5, parallel=3)
        assert asyncio.all_tasks() == before

    run_virtual(main)
