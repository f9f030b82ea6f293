"""Kademlia's search: asks the nodes nearest to a target, and those they name, until none is nearer.

After Maymounkov and Mazieres, "Kademlia: A Peer-to-peer Information System Based on the XOR
Metric" (2002), section 2.3.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import TypeVar

Node = TypeVar("Node")
Ask = Callable[[Node], Awaitable[Mapping[int, Node] | None]]
"""Asks a node for the nodes nearest to the target that it knows; None if it does not answer."""


async def search(
    target: int, start: Mapping[int, Node], ask: Ask[Node], *, width: int, parallel: int
) -> dict[int, Node]:
    """The up to `width` nearest nodes to `target` that answered, nearest first.

    Args:
        target: an id in the same space as the nodes' ids; distance is their exclusive or.
        start: nodes to begin with, by id.
        ask: called once per node at most; what it learns beyond nodes is the caller's to keep,
            so that a search that is cancelled at a deadline was not in vain.
        width: how many answering nodes are wanted.
        parallel: questions in flight.
    """
    known, waiting, answered = dict(start), set(start), set[int]()
    asking: set[asyncio.Task[None]] = set()

    async def ask_one(node_id: int) -> None:
        named = await ask(known[node_id])
        if named is None:
            return
        answered.add(node_id)
        for other_id, other in named.items():
            if other_id not in known:
                known[other_id] = other
                waiting.add(other_id)

    def next_node() -> int | None:
        """The nearest node not yet asked, unless `width` nearer ones have answered."""
        if not waiting:
            return None
        nearest = min(waiting, key=target.__xor__)
        nearer = sum(1 for node_id in answered if node_id ^ target < nearest ^ target)
        return nearest if nearer < width else None

    async with asyncio.TaskGroup() as group:
        while True:
            while len(asking) < parallel and (node_id := next_node()) is not None:
                waiting.discard(node_id)
                asking.add(group.create_task(ask_one(node_id)))
            if not asking:
                break
            _, asking = await asyncio.wait(asking, return_when=asyncio.FIRST_COMPLETED)
    nearest_ids = sorted(answered, key=target.__xor__)[:width]
    return {node_id: known[node_id] for node_id in nearest_ids}
