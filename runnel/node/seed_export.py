"""A shared-seed run's log, taken out of a peer's folder and proven before anybody gets it. Blocks."""

from __future__ import annotations

from pathlib import Path

from runnel.errors import ConfigError, InputFileError, PeerError
from runnel.node.joining import first_root
from runnel.node.manifest import RunSpec, SignedManifest
from runnel.node.outer_state import read_patiently, seed_state
from runnel.node.records import RecordKind
from runnel.node.run_model import build_model
from runnel.node.seed_entries import ENTRIES_NAME, EntryFile
from runnel.node.seed_history import save_log, write_weights
from runnel.optim.fixed_point_model import master_of
from runnel.optim.seed_log import STEPS_PER_CHUNK, LogHead
from runnel.optim.seed_rounds import RoundEntry
from runnel.optim.seed_store import SeedStore
from runnel.optim.seed_updates import SeedUpdate


def export_log(folder: Path, out: Path) -> str:
    """Writes the log of the run in `folder` to the new file `out`; what was written, in words.

    Its updates are taken back from the newest weights, which must lead to the state that the run's
    manifest names: so the log is whole, and whoever applies it to that base gets these weights. Where
    the run's seed drew the base, nobody has a file of it: it is written beside `out`.

    Raises:
        ConfigError: the run exchanges values, or there is a file `out` or one where the base is to be.
        InputFileError: there is no state yet, something is damaged, or rounds from before this peer's
            time have not come from members yet.
        RunMismatchError: the state is not the one that the run's records name.
        StorageError: the disk refused.
    """
    manifest = SignedManifest.read(folder / "manifest.bin")
    if not manifest.spec.seeds.is_on:
        raise ConfigError(
            "this run exchanges values, expected one with [seeds]: take its state out with"
            " `runnel checkpoint`"
        )
    if out.exists():
        raise ConfigError(f"{out} exists, expected no such file: choose another --out")
    _, (store, chain) = read_patiently(folder, seed_state)
    wanted = {
        record.number: record.slices[0].root
        for record in chain.walk()
        if record.kind is RecordKind.ROUND
    }
    updates = _updates(store, EntryFile(folder / ENTRIES_NAME).all_of(wanted))
    name, steps = store.weights.digest(), len({update.step for update in updates})
    for start in range(0, len(updates), STEPS_PER_CHUNK):
        store.weights.apply(update.undone() for update in updates[start : start + STEPS_PER_CHUNK])
    store.state = store.method.first()
    if first_root([store.root(0)]) != manifest.genesis.state_root:
        raise InputFileError(
            f"this peer's history of {steps} steps does not lead back to the state that the run began"
            " with: export the log from another peer"
        )
    head, beside = LogHead.of(store.weights), ""
    if is_drawn(manifest.spec, head):
        base = out.with_suffix(".base.safetensors")
        write_weights(base, store.weights.arrays())
        beside = f"; {base} is that base, which the run's seed drew"
    size = save_log(out, head, updates)
    return (
        f"wrote {out}: {steps} steps in {size:,} bytes, from base"
        f" {head.base.hex()} (the run's first state {manifest.genesis.state_root.hex()[:8]}) to state"
        f" {name.hex()}{beside}"
    )


def is_drawn(spec: RunSpec, head: LogHead) -> bool:
    """Whether a run began with what its seed gives the built-in model, and not with weights of somebody's."""
    return spec.model.kind == "gpt" and master_of(build_model(spec), head.key).digest() == head.base


def _updates(store: SeedStore, entries: list[bytes]) -> list[SeedUpdate]:
    """What the rounds changed, from the method's first state on."""
    state, found = store.method.first(), list[SeedUpdate]()
    for data in entries:
        try:
            entry = RoundEntry.decode(data)
            updates, state = store.method.take(state, entry.shares, entry.progress)
        except (PeerError, ValueError) as error:
            raise InputFileError(
                f"this peer's history is damaged ({error}): export the log from another peer"
            ) from None
        found += updates
    return found
