"""What a long run leaves on the disk: as much after thousands of rounds as after a few dozen."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from runnel.dht.blob_shelf import BlobShelf
from runnel.node.pinning import Pinning
from tests.support.crash_images import memory_folder
from tests.support.members import following_record
from tests.support.vault_bench import EVERY, FRAGMENTS, Bench

KEEP = 4 * FRAGMENTS
LOST = 3
"""Records in each branch that is given up."""


def live(bench: Bench, pinning: Pinning, rounds: int) -> None:
    """So many steps of the chain: most decided, some aborted, and now and then a branch given up."""
    last = bench.chain.number + rounds
    while bench.chain.number < last:
        number = bench.chain.number
        if number % 20 == 13:
            place = bench.chain.record(bench.chain.path[-1 - LOST])
            other = following_record(place, nonce=number.to_bytes(4, "big"))
            if other.hash not in bench.chain:
                bench.give_up(LOST, other)
                continue
        if number % 11 == 7:
            bench.abort()
        else:
            bench.round((True, number % 3 > 0), give=True, reducer=number % 2 > 0)
        if bench.chain.number % EVERY == 0:
            pinning.renew(bench.chain, tuple(bench.chain.path))


def held(bench: Bench) -> tuple[Counter[str], Counter[str], int]:
    """Keys and blobs by kind, and bytes of all files."""
    keys = Counter(key.partition("/")[0] for key in bench.log.load())
    blobs = Counter(name.partition("-")[0] for name in bench.log.blob_names())
    size = sum(path.stat().st_size for path in bench.folder.rglob("*") if path.is_file())
    return keys, blobs, size


def check_bounds(folder: Path, rounds: int) -> None:
    bench = Bench(folder / "state")
    pinning = Pinning(bench.log, bench.vault, BlobShelf(), every=EVERY, keep_rounds=KEEP)
    live(bench, pinning, 60)
    at_first: tuple[Counter[str], Counter[str], int] | None = None
    for _ in range(rounds // 60):
        live(bench, pinning, 60)
        keys, blobs, size = held(bench)
        if at_first is None:
            at_first = keys, blobs, size
        for now, first in ((keys, at_first[0]), (blobs, at_first[1])):
            assert set(now) <= set(first)
            assert all(now[kind] <= 2 * first[kind] for kind in now), (now, first)
        assert size <= 2 * at_first[2]
    bench.check_restart()
    bench.log.close()


def test_a_run_with_lost_branches_stays_as_large_as_it_was() -> None:
    with memory_folder() as folder:
        check_bounds(folder, 300)


def test_a_result_that_rounds_share_stays_until_the_last_of_them_is_old() -> None:
    """Where nothing is learned, as in a fragment that no gradient reaches, all results are zero."""
    with memory_folder() as folder:
        bench = Bench(folder / "state", scale=0.0)
        pinning = Pinning(bench.log, bench.vault, BlobShelf(), every=EVERY, keep_rounds=KEEP)
        bench.round((True, True), give=True, reducer=True)
        shared = {piece.root for piece in bench.chain.head.slices}
        live(bench, pinning, 4 * KEEP)
        assert shared
        assert all(root in bench.vault.results for root in shared)
        bench.check_restart()
        bench.scale = 0.01
        live(bench, pinning, 4 * KEEP)
        assert not any(root in bench.vault.results for root in shared)
        bench.log.close()


def test_a_result_that_an_open_round_knows_stays() -> None:
    with memory_folder() as folder:
        bench = Bench(folder / "state")
        pinning = Pinning(bench.log, bench.vault, BlobShelf(), every=EVERY, keep_rounds=KEEP)
        bench.round((True, True), give=True, reducer=True)
        wanted, other = (piece.root for piece in bench.chain.head.slices)
        for _ in range(4 * KEEP):
            bench.round((True, True), give=True, reducer=True)
            pinning.renew(bench.chain, tuple(bench.chain.path), {wanted})
        assert wanted in bench.vault.results
        assert other not in bench.vault.results
        bench.log.close()


def test_what_is_written_while_old_blobs_are_deleted_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    """The codec thread writes a contribution at any time; the key that names it comes later."""
    with memory_folder() as folder:
        bench = Bench(folder / "state")
        pinning = Pinning(bench.log, bench.vault, BlobShelf(), every=EVERY, keep_rounds=KEEP)
        live(bench, pinning, 4 * KEEP)
        look, written = bench.log.blob_names, list[str]()

        def names_and_then_one_more() -> set[str]:
            found = look()
            written.append(f"contribution-{len(written)}-new")
            bench.log.write_blob(written[-1], [b"just now"])
            return found

        monkeypatch.setattr(bench.log, "blob_names", names_and_then_one_more)
        pinning.renew(bench.chain, tuple(bench.chain.path))
        assert len(written) >= 2
        assert set(written[-2:]) <= look()
        bench.log.close()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_run_of_thousands_of_rounds_stays_as_large_as_it_was() -> None:
    with memory_folder() as folder:
        check_bounds(folder, 6000)


def test_a_result_whose_record_is_to_come_is_not_forgotten_with_an_old_one(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    pinning = Pinning(bench.log, bench.vault, BlobShelf(), every=EVERY, keep_rounds=KEEP)
    record = bench.round((True, True), give=True, reducer=False)
    root = record.slices[0].root
    payload = bench.vault.results.get(root)
    assert payload is not None
    for _ in range(3 * EVERY + KEEP):
        bench.round((True, True), give=True, reducer=False)
    bench.vault.results.keep(root, bytes(payload))
    pinning.renew(bench.chain, tuple(bench.chain.path))
    assert root in bench.vault.results
    bench.log.close()
