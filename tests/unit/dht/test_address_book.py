"""Addresses that strangers tell."""

from __future__ import annotations

from runnel.dht import address_book
from runnel.dht.address_book import MAX_ADDRESSES_PER_PEER, AddressBook
from runnel.dht.identity import null_peer_id, to_base58

ME, OTHER = null_peer_id(0), null_peer_id(1)


def at(port: int, number: int = 1) -> str:
    return f"/ip4/192.0.2.1/tcp/{port}/p2p/{to_base58(null_peer_id(number))}"


def test_only_well_formed_addresses_of_that_peer_are_kept() -> None:
    book = AddressBook(ME)
    book.learn(OTHER, ["nonsense", at(1, number=2), at(2), "/ip4/192.0.2.1/tcp/3"])
    assert book.of(OTHER) == ("/ip4/192.0.2.1/tcp/2",)
    assert book.of(null_peer_id(2)) == ()


def test_what_is_useless_replaces_nothing_and_what_is_newer_does() -> None:
    book = AddressBook(ME)
    book.learn(OTHER, [at(1)])
    book.learn(OTHER, ["nonsense"])
    assert book.of(OTHER) == ("/ip4/192.0.2.1/tcp/1",)
    book.learn(OTHER, [at(2)])
    assert book.of(OTHER) == ("/ip4/192.0.2.1/tcp/2",)


def test_a_stranger_fills_neither_the_book_nor_a_page(monkeypatch: object) -> None:
    book = AddressBook(ME)
    book.learn(OTHER, (at(port) for port in range(1, 1000)))
    assert len(book.of(OTHER)) == MAX_ADDRESSES_PER_PEER
    for number in range(2, address_book.MAX_KNOWN_PEERS + 2):
        book.learn(null_peer_id(number), [at(1, number)])
    assert book.of(OTHER) == ()
    assert book.of(null_peer_id(2)) != ()


def test_our_own_addresses_are_not_learned() -> None:
    book = AddressBook(ME)
    book.learn(ME, [at(1, number=0)])
    assert book.of(ME) == ()
