"""Trees, the shelf, requests and the board: everything about blobs that needs no network."""

from __future__ import annotations

import random
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runnel.dht.blob_board import BlobBoard
from runnel.dht.blob_server import MAX_DIGESTS, MAX_REQUEST_BYTES, decode_request, encode_request
from runnel.dht.blob_shelf import BlobShelf
from runnel.dht.blobs import CHUNK_BYTES, MIN_CHUNK_BYTES, Tree, split, tree_root
from runnel.dht.identity import null_peer_id
from runnel.dht.wire import pack
from runnel.errors import InputFileError, PeerError, StorageError
from runnel.hashing import digest
from runnel.types import Digest

SMALL = MIN_CHUNK_BYTES


def noise(size: int, seed: int = 0) -> bytes:
    return random.Random(seed).randbytes(size)


@given(st.binary(max_size=5 * SMALL), st.lists(st.integers(0, 5 * SMALL), max_size=5))
def test_a_tree_does_not_depend_on_how_its_content_came_in_parts(
    content: bytes, cuts: list[int]
) -> None:
    edges = [0, *sorted(cuts), len(content)]
    parts = [content[a:b] for a, b in pairwise(edges)]

    root, root_blob, chunks = split(parts, chunk_bytes=SMALL)

    assert b"".join(chunks) == content
    assert [len(c) for c in chunks[:-1]] == [SMALL] * (len(chunks) - 1)
    assert all(0 < len(c) <= SMALL for c in chunks)
    assert root == digest(root_blob)
    assert root == tree_root([content], chunk_bytes=SMALL)
    tree = Tree.decode(root_blob, max_total_bytes=len(content))
    assert tree.digests == tuple(digest(c) for c in chunks)
    assert tree.size_bytes == len(content)
    assert tree.encode() == root_blob


@pytest.mark.parametrize(
    ("size", "count"), [(0, 0), (1, 1), (SMALL, 1), (SMALL + 1, 2), (3 * SMALL, 3)]
)
def test_chunks_are_full_but_the_last(size: int, count: int) -> None:
    _, root_blob, chunks = split([noise(size)], chunk_bytes=SMALL)
    tree = Tree.decode(root_blob, max_total_bytes=size)
    assert len(chunks) == len(tree.digests) == count
    assert [tree.span(i)[1] - tree.span(i)[0] for i in range(count)] == [len(c) for c in chunks]


def test_chunks_within_one_part_are_views_of_it() -> None:
    content = bytearray(noise(2 * SMALL))
    _, _, chunks = split([content], chunk_bytes=SMALL)
    content[0] ^= 1
    assert chunks[0][0] == content[0]


def test_the_root_of_known_bytes_never_changes() -> None:
    root, root_blob, _ = split([b"runnel"])
    assert root_blob.hex() == "01000000000000000600100000" + digest(b"runnel").hex()
    assert root == digest(root_blob)
    assert tree_root([]).hex() == digest(bytes.fromhex("01000000000000000000100000")).hex()


@pytest.mark.parametrize("chunk_bytes", [0, MIN_CHUNK_BYTES - 1, 4 * CHUNK_BYTES + 1])
def test_chunk_lengths_out_of_range_are_refused(chunk_bytes: int) -> None:
    with pytest.raises(ValueError, match="expected 256 to 4194304"):
        split([b"x"], chunk_bytes=chunk_bytes)


@given(st.binary(max_size=120))
def test_any_bytes_are_a_tree_or_a_peers_fault(data: bytes) -> None:
    try:
        tree = Tree.decode(data, max_total_bytes=10_000)
    except PeerError:
        return
    assert tree.encode() == data


@pytest.mark.parametrize(
    ("root_blob", "reason"),
    [
        (b"", "malformed"),
        (Tree(0, SMALL, ()).encode()[:-1], "malformed"),
        (Tree(0, SMALL, ()).encode() + b"x", "malformed"),
        (b"\x02" + Tree(0, SMALL, ()).encode()[1:], "malformed"),
        (Tree(0, SMALL - 1, ()).encode(), "malformed"),
        (Tree(2**40, SMALL, ()).encode(), "too-large"),
        (Tree(1000, SMALL, (digest(b""),)).encode(), "malformed"),
    ],
)
def test_a_root_that_claims_what_it_does_not_hold_is_refused(root_blob: bytes, reason: str) -> None:
    with pytest.raises(PeerError) as caught:
        Tree.decode(root_blob, max_total_bytes=1000)
    assert caught.value.reason == reason


# The shelf


def read_tree(shelf: BlobShelf, root: Digest) -> bytes | None:
    root_blob = shelf.read(root)
    if root_blob is None:
        return None
    tree = Tree.decode(root_blob, max_total_bytes=1 << 30)
    chunks = [shelf.read(name) for name in tree.digests]
    return b"".join(c for c in chunks if c is not None) if None not in chunks else None


def test_what_was_added_can_be_read_by_hash_until_it_is_dropped() -> None:
    shelf, content = BlobShelf(), noise(3 * SMALL + 5)
    root = shelf.add_bytes(content[:100], content[100:], chunk_bytes=SMALL)
    assert root == tree_root([content], chunk_bytes=SMALL)
    assert read_tree(shelf, root) == content
    assert shelf.held_bytes == len(content) + 13 + 4 * 32
    assert shelf.drop(root)
    assert not shelf.drop(root)
    assert shelf.read(root) is None
    assert shelf.read(digest(content[:SMALL])) is None
    assert (shelf.held_bytes, shelf.num_held) == (0, 0)


def test_later_changes_of_a_buffer_do_not_reach_the_shelf() -> None:
    shelf, content = BlobShelf(), bytearray(b"a" * SMALL)
    root = shelf.add_bytes(content)
    content[:] = b"b" * SMALL
    assert read_tree(shelf, root) == b"a" * SMALL


def test_what_was_added_twice_is_dropped_twice() -> None:
    shelf = BlobShelf()
    root = shelf.add_bytes(b"twice")
    shelf.add_bytes(b"twice")
    assert shelf.drop(root)
    assert read_tree(shelf, root) == b"twice"
    assert shelf.drop(root)
    assert shelf.read(root) is None


@pytest.mark.parametrize("dropped", [0, 1])
def test_what_two_files_hold_is_read_from_the_one_that_was_not_dropped(
    tmp_path: Path, dropped: int
) -> None:
    shelf, content = BlobShelf(), noise(3 * SMALL)
    files = [tmp_path / "older", tmp_path / "newer"]
    for file in files:
        file.write_bytes(content)
    older, root = (shelf.add_file(file, chunk_bytes=SMALL) for file in files)
    assert older == root
    assert shelf.drop(root, files[dropped])
    files[dropped].unlink()
    assert read_tree(shelf, root) == content
    assert shelf.drop(root, files[1 - dropped])
    assert (shelf.held_bytes, shelf.num_held) == (0, 0)


def test_chunks_that_trees_share_stay_as_long_as_one_of_them(tmp_path: Path) -> None:
    shelf, common = BlobShelf(), noise(SMALL)
    first = shelf.add_bytes(common + b"first", chunk_bytes=SMALL)
    (tmp_path / "second").write_bytes(common + b"second")
    second = shelf.add_file(tmp_path / "second", chunk_bytes=SMALL)
    shelf.drop(first)
    assert read_tree(shelf, second) == common + b"second"


def test_a_range_of_a_file_is_served_without_holding_it(tmp_path: Path) -> None:
    path, content = tmp_path / "big", noise(10 * SMALL)
    path.write_bytes(content)
    shelf = BlobShelf(max_memory_bytes=1000)
    root = shelf.add_file(path, 100, 5 * SMALL, chunk_bytes=SMALL)
    assert root == tree_root([content[100 : 100 + 5 * SMALL]], chunk_bytes=SMALL)
    assert read_tree(shelf, root) == content[100 : 100 + 5 * SMALL]
    assert shelf.held_bytes == 13 + 5 * 32


def test_a_changed_or_lost_file_makes_chunks_missing_never_wrong(tmp_path: Path) -> None:
    path, content = tmp_path / "big", noise(2 * SMALL)
    path.write_bytes(content)
    shelf = BlobShelf()
    shelf.add_file(path, chunk_bytes=SMALL)
    path.write_bytes(content[:SMALL] + b"x" * SMALL)
    assert shelf.read(digest(content[:SMALL])) == content[:SMALL]
    assert shelf.read(digest(content[SMALL:])) is None
    path.unlink()
    assert shelf.read(digest(content[:SMALL])) is None


def test_a_file_range_that_is_not_there_is_refused(tmp_path: Path) -> None:
    (tmp_path / "short").write_bytes(b"12345")
    with pytest.raises(InputFileError, match="has 5 bytes, expected 5 from byte 1 on"):
        BlobShelf().add_file(tmp_path / "short", 1, 5)
    with pytest.raises(InputFileError, match="cannot be served"):
        BlobShelf().add_file(tmp_path / "none")


def test_a_full_shelf_refuses_and_keeps_what_it_has() -> None:
    shelf = BlobShelf(max_memory_bytes=1000)
    root = shelf.add_bytes(noise(800))
    with pytest.raises(StorageError, match="drop what is no longer served"):
        shelf.add_bytes(noise(200, seed=1))
    assert read_tree(shelf, root) == noise(800)
    assert shelf.num_held == 1


def test_a_blob_can_have_a_name_of_another_kind() -> None:
    shelf, name = BlobShelf(), Digest(b"m" * 32)
    assert shelf.add_blob(b"leaves", name=name) == name
    assert shelf.read(name) == b"leaves"
    assert shelf.add_blob(b"plain") == digest(b"plain")


# Requests


@given(st.lists(st.binary(min_size=32, max_size=32), max_size=MAX_DIGESTS))
def test_requests_come_back_as_they_were(digests: list[bytes]) -> None:
    names = [Digest(d) for d in digests]
    data = encode_request(names)
    assert len(data) <= MAX_REQUEST_BYTES
    assert decode_request(data) == tuple(names)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        pack([]),
        pack([2, []]),
        pack([True, []]),
        pack([1, [b"short"]]),
        pack([1, ["x" * 32]]),
        pack([1, [b"x" * 32] * (MAX_DIGESTS + 1)]),
        pack([1, [], 0]),
        pack([1, [b"x" * 32]])[:-1],
        b"\x92\x01\xdc\xff\xff",
    ],
)
def test_other_requests_are_refused(data: bytes) -> None:
    with pytest.raises(PeerError) as caught:
        decode_request(data)
    assert caught.value.reason == "malformed"


def test_more_digests_than_a_request_holds_are_our_own_mistake() -> None:
    with pytest.raises(ValueError, match="65 digests"):
        encode_request([digest()] * 65)


# The board

A, B = null_peer_id(1), null_peer_id(2)


def test_items_go_out_in_order_and_once() -> None:
    board = BlobBoard(3, hedge_after_s=5.0)
    assert [board.assign(A, 0.0), board.assign(B, 0.0), board.assign(A, 0.0)] == [0, 1, 2]
    assert board.assign(A, 0.0) is None
    for item in (2, 0, 1):
        assert board.complete(item)
    assert board.finished


def test_an_item_given_back_goes_to_the_next_who_asks() -> None:
    board = BlobBoard(1, hedge_after_s=5.0)
    board.assign(A, 0.0)
    board.give_back(0, A)
    assert board.assign(B, 0.0) == 0


def test_a_slow_donors_item_is_given_out_again_but_only_once() -> None:
    board = BlobBoard(1, hedge_after_s=5.0)
    board.assign(A, 1.0)
    assert board.assign(B, 5.9) is None
    assert board.next_hedge_s(B) == 6.0
    assert board.next_hedge_s(A) is None
    assert board.assign(B, 6.0) == 0
    assert board.assign(null_peer_id(3), 100.0) is None
    board.give_back(0, A)
    assert board.open_items == (0,)
    assert board.complete(0)
    assert not board.complete(0)


def test_who_lacks_an_item_is_not_asked_for_it_again() -> None:
    board = BlobBoard(2, hedge_after_s=1.0)
    assert board.assign(A, 0.0) == 0
    board.lacks(0, A)
    assert board.assign(A, 0.0) == 1
    board.lacks(1, A)
    assert not board.has_use_for(A)
    assert board.has_use_for(B)
    assert board.assign(B, 0.0) == 0
    assert board.next_hedge_s(A) is None


@given(st.integers(0, 8), st.lists(st.tuples(st.integers(0, 3), st.integers(0, 2)), max_size=60))
def test_no_item_is_lost_whatever_donors_do(count: int, steps: list[tuple[int, int]]) -> None:
    """Step: a donor brings, fails or lacks what it holds; in the end a perfect donor comes."""
    board = BlobBoard(count, hedge_after_s=2.0)
    done: set[int] = set()
    for now, (who, outcome) in enumerate(steps):
        donor = null_peer_id(who)
        item = board.assign(donor, float(now))
        if item is None:
            continue
        assert item not in done
        if outcome == 0:
            assert board.complete(item)
            done.add(item)
        elif outcome == 1:
            board.give_back(item, donor)
        else:
            board.lacks(item, donor)
        board.give_back(item, donor)  # a driver always does
        assert set(board.open_items) == set(range(count)) - done
    while (item := board.assign(null_peer_id(9), 1000.0)) is not None:
        assert board.complete(item)
        done.add(item)
    assert board.finished
    assert done == set(range(count))
