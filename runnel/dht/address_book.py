"""Where peers were said to be, for when the network does not find them by itself."""

from __future__ import annotations

import logging
from collections import OrderedDict
from itertools import islice
from typing import TYPE_CHECKING

from runnel.dht.multiaddr import parse_peer_address
from runnel.types import short

if TYPE_CHECKING:
    from collections.abc import Iterable

    from runnel.types import PeerId

_log = logging.getLogger(__name__)

MAX_KNOWN_PEERS = 1024
"""Peers whose addresses are kept; those learned of longest ago go first."""

MAX_ADDRESSES_PER_PEER = 8


class AddressBook:
    """Addresses by peer, as strangers told them: bounded, and checked for their form only."""

    def __init__(self, owner: PeerId) -> None:
        """`owner` is who never needs its own addresses."""
        self._owner = owner
        self._addresses: OrderedDict[PeerId, tuple[str, ...]] = OrderedDict()

    def learn(self, peer: PeerId, addresses: Iterable[str]) -> None:
        """Notes where `peer` may be reached, in place of what was noted before.

        Args:
            peer: whose addresses.
            addresses: multiaddresses with the peer's id at the end. They may come from strangers:
                malformed ones, those of others and all beyond `MAX_ADDRESSES_PER_PEER` are ignored.
        """
        usable = []
        for text in islice(addresses, MAX_ADDRESSES_PER_PEER):
            try:
                named = parse_peer_address(text)
            except ValueError as error:
                _log.debug("an address said to be of peer %s: %s", short(peer), error)
                continue
            if named.peer == peer:
                usable.append(named.address)
        if usable and peer != self._owner:
            self._addresses[peer] = tuple(usable)
            self._addresses.move_to_end(peer)
            if len(self._addresses) > MAX_KNOWN_PEERS:
                self._addresses.popitem(last=False)

    def of(self, peer: PeerId) -> tuple[str, ...]:
        """The addresses of `peer`, without its id; none if none are known."""
        return self._addresses.get(peer, ())
