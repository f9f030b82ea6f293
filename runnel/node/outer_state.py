"""The outer state of a run by parameter name, from what a peer keeps on disk.

Nothing is believed: each fragment's values must have the root that the chain's newest record of that
fragment names. Reading a folder takes no lock, so that it works beside the peer that owns it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from runnel.dht.blobs import tree_root
from runnel.dht.wire import unpack
from runnel.errors import ConfigError, InputFileError, PeerError, RunMismatchError
from runnel.hashing import digest
from runnel.node.archive import ReadBlob
from runnel.node.blobs import read_blob
from runnel.node.checkpoint import CheckpointContent, CheckpointMeta
from runnel.node.durable import read_snapshot
from runnel.node.fields import digest_of, items
from runnel.node.keepsakes import result_name
from runnel.node.manifest import SignedManifest
from runnel.node.outcomes import genesis_record
from runnel.node.outer_parts import optimizer_of
from runnel.node.pins import named_part
from runnel.node.rounds import slice_bounds
from runnel.node.saved_states import (
    StateKey,
    Step,
    newest_step,
    state_key,
    state_name,
    steps_of,
    steps_since,
)
from runnel.node.seed_parts import blank_store
from runnel.node.storage_keys import HEAD, Updates, restore
from runnel.optim.codecs import codec_named
from runnel.optim.exchange import RoundResults
from runnel.optim.fragments import FragmentPlan, ParameterShape, plan_fragments
from runnel.optim.seed_store import SeedStore
from runnel.optim.stepping import Stepper

if TYPE_CHECKING:
    from runnel.node.chain import Chain
    from runnel.node.records import Record
    from runnel.protocols import Float32
    from runnel.types import Digest, PeerId

PLAN = "plan"
GENESIS = "genesis"
STATE_FOLDER = "state"

_ATTEMPTS = 20
_ADVICE = "move this peer's folder away and join again"

T = TypeVar("T")


def plan_updates(plan: FragmentPlan) -> Updates:
    """What to write so that the folder alone tells the names and shapes of the parameters."""
    shapes = [[shape.name, list(shape.shape)] for shape in plan.shapes]
    return {PLAN: json.dumps(shapes, separators=(",", ":")).encode()}


def read_outer_state(folder: Path) -> tuple[SignedManifest, CheckpointContent]:
    """The newest state of the run in `folder`, also while a peer trains there.

    Raises:
        InputFileError: there is no run or no state yet, or something is damaged.
        RunMismatchError: the state is not the one that the run's records name.
        StorageError: the disk refused to read.
    """
    return read_patiently(folder, outer_state)


def read_patiently(
    folder: Path, make: Callable[[SignedManifest, Mapping[str, bytes], ReadBlob], T]
) -> tuple[SignedManifest, T]:
    """The manifest in `folder` and what `make` finds there, also while a peer trains there.

    Raises:
        InputFileError, RunMismatchError: as `make` does, of a state that stays the newest.
        StorageError: the disk refused to read.
    """
    manifest = SignedManifest.read(folder / "manifest.bin")
    state, attempts = folder / STATE_FOLDER, 0
    before: dict[str, bytes] | None = None
    while True:
        stored, attempts = read_snapshot(state), attempts + 1
        try:
            return manifest, make(manifest, stored, blobs_of(folder))
        except (InputFileError, RunMismatchError):
            # Blobs of a state that is no longer the newest go away; if it still is, they are lost.
            if _moving(stored) == before or attempts == _ATTEMPTS:
                raise
            before = _moving(stored)


def blobs_of(folder: Path) -> ReadBlob:
    """Gives the blobs of the run in `folder`, also while its peer writes some."""
    return lambda name: read_blob(folder / STATE_FOLDER / "blobs", name)


def outer_state(
    manifest: SignedManifest, stored: Mapping[str, bytes], read: ReadBlob
) -> CheckpointContent:
    """The state that durable keys name, every fragment checked against its record.

    Equal on all peers that follow the same chain up to the same round. Costs the values once, and a
    fragment's besides.

    Args:
        manifest: of the run.
        stored: what the log holds, all of it from one moment.
        read: gives a blob.

    Raises:
        InputFileError: something is missing or damaged.
        RunMismatchError: the values are not those that the records name, or the parameters' names
            and shapes not those of the run.
    """
    if manifest.spec.seeds.is_on:
        store, chain = seed_state(manifest, stored, read)
        meta = _meta(manifest, chain, 1, [store.root(0)])
        return CheckpointContent(store.weights.arrays(), {}, meta)
    chain, plan, roots = _newest(manifest, stored, read)
    slots = optimizer_of(manifest.spec.outer).slots
    parameters, momenta = _empty(plan), [_empty(plan) for _ in range(slots)]
    for fragment, size in enumerate(plan.sizes):
        record = chain.last_update(fragment, plan.num_fragments)
        number = record.number if record else -1
        roots[fragment] = record.state_root if record else roots[fragment]
        values = _values(stored, read, fragment, number)
        state = (values[:size], values[size:])
        if values.size == (1 + slots) * size:
            _advance(manifest, state, _steps_to(stored, chain, fragment, plan.num_fragments), read)
        if values.size != (1 + slots) * size or tree_root([values.data]) != roots[fragment]:
            raise _not_named(fragment, number, roots[fragment])
        for slot, out in enumerate((parameters, *momenta)):
            _spread(plan, fragment, values[slot * size : (slot + 1) * size], out)
    return CheckpointContent(
        parameters=_shaped(plan, parameters),
        momentum=_stacked([_shaped(plan, momentum) for momentum in momenta]),
        meta=_meta(manifest, chain, plan.num_fragments, roots),
    )


def seed_state(
    manifest: SignedManifest, stored: Mapping[str, bytes], read: ReadBlob
) -> tuple[SeedStore, Chain]:
    """The weights of a shared-seed run, checked, and the chain that they are the newest of.

    Raises:
        InputFileError, RunMismatchError: as `outer_state` does.
    """
    chain, plan, roots = _newest(manifest, stored, read)
    store = blank_store(plan, manifest.spec)
    newest, before = newest_step(chain, chain.path, 0, 1)
    number, root = (newest.record.number, newest.record.state_root) if newest else (-1, roots[0])
    words = _values(stored, read, 0, number)
    if words.size == sum(store.shared_sizes[0]):
        state, steps = (words[: plan.numel], words[plan.numel :]), _steps_to(stored, chain, 0, 1)
        entries = (read(result_name(step.record.slices[0].root)) for step in steps)
        store.replay(state, (RoundResults((), (entry,)) for entry in entries))
        store.load(0, *state)
    every, part = manifest.spec.rounds.snapshot_every, None
    if newest is not None:
        part = named_part(plan.numel, number, before, every=every, final=newest.final)
    if store.root_of(store.shared(0), part) != root:
        raise _not_named(0, number, root)
    return store, chain


def _newest(
    manifest: SignedManifest, stored: Mapping[str, bytes], read: ReadBlob
) -> tuple[Chain, FragmentPlan, list[Digest]]:
    """The chain, what is exchanged, and the roots of the first states."""
    if HEAD not in stored:
        raise InputFileError("the run's folder holds no state yet: wait until its peer is ready")
    genesis = genesis_record(manifest.genesis.members, manifest.genesis.state_root)
    chain = restore(stored, genesis, open_rounds=manifest.spec.open_rounds, read=read).chain
    plan = plan_of(manifest, stored)
    return chain, plan, _first_roots(manifest, stored, plan.num_fragments)


def _not_named(fragment: int, number: int, root: Digest) -> RunMismatchError:
    return RunMismatchError(
        f"the saved state of fragment {fragment} is not the one that the record of round {number} names"
        f" ({root.hex()[:8]}): {_ADVICE}"
    )


def last_members(manifest: SignedManifest, folder: Path) -> tuple[PeerId, ...]:
    """The members of the run in `folder` when its peer last wrote.

    Raises:
        InputFileError: there is no state yet, or it is damaged.
    """
    genesis = genesis_record(manifest.genesis.members, manifest.genesis.state_root)
    stored = read_snapshot(folder / STATE_FOLDER)
    chain = restore(
        stored, genesis, open_rounds=manifest.spec.open_rounds, read=blobs_of(folder)
    ).chain
    return chain.head.view


def _moving(stored: Mapping[str, bytes]) -> dict[str, bytes]:
    """What changes when the chain moves."""
    return {key: value for key, value in stored.items() if key == HEAD or key.startswith("state/")}


def plan_of(manifest: SignedManifest, stored: Mapping[str, bytes]) -> FragmentPlan:
    """Which values of the run's model are in which fragment, from what the log of a peer holds.

    Raises:
        InputFileError: the log does not tell, or is damaged.
        RunMismatchError: it tells of another model than the run's.
    """
    spec, saved = manifest.spec, stored.get(PLAN)
    if saved is None and spec.model.kind != "gpt":
        raise InputFileError(
            "the folder does not tell the names of the model's parameters, expected them from its"
            " peer: start the peer once"
        )
    plan = _plan_of_gpt(manifest) if saved is None else _saved_plan(saved, spec.num_fragments)
    if plan.fingerprint().hex() != spec.model.fingerprint:
        raise RunMismatchError(
            f"the saved parameters have fingerprint {plan.fingerprint().hex()[:8]}, the run's"
            f" {spec.model.fingerprint[:8]}: {_ADVICE}"
        )
    return plan


def _saved_plan(saved: bytes, fragments: int) -> FragmentPlan:
    try:
        shapes = [ParameterShape(str(name), tuple(shape)) for name, shape in json.loads(saved)]
        return plan_fragments(shapes, fragments)
    except (ConfigError, TypeError, ValueError) as error:
        raise InputFileError(
            f"the saved names of parameters are damaged ({error}): {_ADVICE}"
        ) from error


def _plan_of_gpt(manifest: SignedManifest) -> FragmentPlan:
    from runnel.node.run_model import build_model  # torch takes seconds to load
    from runnel.optim.binding import plan_model

    return plan_model(build_model(manifest.spec), manifest.spec.num_fragments)


def _first_roots(manifest: SignedManifest, stored: Mapping[str, bytes], count: int) -> list[Digest]:
    """Roots of the fragments before the first round."""
    names = stored.get(GENESIS, b"")
    if digest(names) != manifest.genesis.state_root:
        raise RunMismatchError(f"the saved first state is not the one of the manifest: {_ADVICE}")
    try:
        return [digest_of(root) for root in items(unpack(names, max_bytes=1 << 20), count)]
    except PeerError as error:
        raise InputFileError(f"the saved first state is damaged ({error}): {_ADVICE}") from error


def _saved(stored: Mapping[str, bytes], fragment: int) -> StateKey:
    if state_key(fragment) not in stored:
        raise InputFileError(f"the saved state of fragment {fragment} is missing: {_ADVICE}")
    return StateKey.decode(fragment, stored[state_key(fragment)])


def _values(
    stored: Mapping[str, bytes], read: ReadBlob, fragment: int, number: int
) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Parameters, then momentum, of a fragment as they lie on disk on the way to record `number`."""
    saved = _saved(stored, fragment)
    if saved.number != number:
        raise RunMismatchError(
            f"the saved state of fragment {fragment} is of round {saved.number}, its newest record of"
            f" round {number}: {_ADVICE}"
        )
    content = read(state_name(fragment, saved.base))
    if len(content) % 4:
        raise InputFileError(f"the saved state of fragment {fragment} is cut off: {_ADVICE}")
    return np.frombuffer(content, dtype="<f4").copy()


def _steps_to(
    stored: Mapping[str, bytes], chain: Chain, fragment: int, fragments: int
) -> tuple[Step, ...]:
    """The rounds whose results lead from what is on disk to the newest state."""
    base = _saved(stored, fragment).base
    steps = steps_of(chain, chain.path, fragment, fragments)
    return steps_since(steps, lambda number: number <= base)[1]


def _advance(
    manifest: SignedManifest,
    state: tuple[Float32, Float32],
    steps: Sequence[Step],
    read: ReadBlob,
) -> None:
    """Applies the results of rounds to parameters and momentum, in place."""
    outer = manifest.spec.outer
    stepper = Stepper(codec_named(outer.result_codec), optimizer_of(outer))
    for step in steps:
        bounds = slice_bounds(state[0].size, len(step.record.slices))
        payloads = [read(result_name(piece.root)) for piece in step.record.slices]
        final = step.final and outer.final_averaging
        turn = step.turn(manifest.spec.num_fragments)
        stepper.step(state, state, bounds, payloads, turn=turn, final=final)


def _empty(plan: FragmentPlan) -> dict[str, Float32]:
    return {shape.name: np.zeros(shape.numel, dtype=np.float32) for shape in plan.shapes}


def _spread(plan: FragmentPlan, fragment: int, values: Float32, out: Mapping[str, Float32]) -> None:
    for piece in plan.fragments[fragment]:
        source = values[piece.offset : piece.offset + piece.numel]
        out[piece.parameter][piece.start : piece.stop] = source


def _stacked(momenta: Sequence[dict[str, Float32]]) -> dict[str, Float32]:
    """By name; where there is more than one, along a new first axis."""
    if len(momenta) < 2:
        return momenta[0] if momenta else {}
    return {name: np.stack([one[name] for one in momenta]) for name in momenta[0]}


def _shaped(plan: FragmentPlan, flat: Mapping[str, Float32]) -> dict[str, Float32]:
    return {shape.name: flat[shape.name].reshape(shape.shape) for shape in plan.shapes}


def _meta(
    manifest: SignedManifest, chain: Chain, fragments: int, roots: list[Digest]
) -> CheckpointMeta:
    """Where the state stands: at the newest record that changed it, whatever was aborted after it."""
    updates = [chain.last_update(fragment, fragments) for fragment in range(fragments)]
    newest: Record = max(
        (record for record in updates if record is not None),
        key=lambda record: record.number,
        default=chain.at(chain.path, 0),
    )
    return CheckpointMeta(
        run_id=manifest.run_id,
        round=newest.number,
        tokens=newest.tokens // fragments,  # each counts once per fragment
        record_hash=newest.hash,
        state_root=digest(*roots),
    )
