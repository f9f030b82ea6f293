"""From an entrance and a model to the parts of a peer: plan, store, state from disk or from members."""

from __future__ import annotations

import asyncio
import logging
import shutil
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from runnel.dht.blob_shelf import BlobShelf
from runnel.errors import ConfigError, InputFileError, NetworkError, PeerError, RunMismatchError
from runnel.hashing import digest
from runnel.node import joining, run_service, storage_keys
from runnel.node.actions import RoundKey
from runnel.node.check import require_finite
from runnel.node.deadlines import Limits
from runnel.node.disk import clear_parts
from runnel.node.durable import DurableLog
from runnel.node.entrance import Entrance, find_donors
from runnel.node.entry_chunks import entries_answer
from runnel.node.joining import Rebuild, Source, genesis_blob
from runnel.node.keeper import Keeper
from runnel.node.manifest import Genesis, RunSpec, SignedManifest
from runnel.node.outcomes import genesis_record
from runnel.node.outer_parts import has_public_windows, parts_of
from runnel.node.outer_state import STATE_FOLDER, plan_updates
from runnel.node.owed import owed_tokens, owed_updates
from runnel.node.place import Local
from runnel.node.protocol import HISTORY_ROUNDS, RoundProtocol
from runnel.node.protocol_state import ProtocolSettings, ProtocolState
from runnel.node.rebuilding import LOG_S, rebuild_of_member, rebuild_of_newcomer
from runnel.node.records import Record
from runnel.node.run_service import Answer
from runnel.node.runtime import PeerRuntime
from runnel.node.seed_entries import ENTRIES_NAME, EntryFile
from runnel.node.seed_parts import seed_store
from runnel.node.seed_vault import SeedVault
from runnel.node.settling import Trials, settle_place
from runnel.node.shelving import shelve, shelve_told, shelved_updates
from runnel.node.spot_rounds import draw_statement
from runnel.node.state_download import Fetched
from runnel.node.ticket import Ticket
from runnel.node.vault import Vault
from runnel.optim.binding import ModelBinding, plan_model
from runnel.optim.codecs import codec_named
from runnel.optim.exchange import StateStore
from runnel.optim.fragments import FragmentPlan
from runnel.optim.seed_claims import can_be_checked
from runnel.optim.seed_rounds import MAX_ENTRY_BYTES
from runnel.optim.seed_store import SeedStore
from runnel.optim.store import OuterStore
from runnel.protocols import Signer
from runnel.types import Digest, PeerId

if TYPE_CHECKING:
    from torch import nn

logger = logging.getLogger(__name__)

Store = OuterStore | SeedStore

_FETCH_S = 1200.0
_KEPT_WINDOWS = 4
"""Windows (a round of each fragment) whose records can be given up one by one."""
_KEPT_SCALAR_ROUNDS = 256
"""The same where a round is a few bytes."""
_MOST_PINNED_RECORDS = 1024
_LOOKUP_S = 5.0
_INCOMING = "incoming"
"""Folder of a state that is being fetched, so that a download that is cut off goes on."""


@dataclass(slots=True)
class Assembly:
    """The parts of a peer before it begins."""

    manifest: SignedManifest
    folder: Path
    plan: FragmentPlan
    vault: Keeper
    entries: EntryFile
    log: DurableLog
    shelf: BlobShelf
    protocol: RoundProtocol
    genesis_blob: bytes
    fetched: Fetched | None
    owed_tokens: tuple[int, ...]
    began_s: float

    @property
    def store(self) -> Store:
        """What all peers share."""
        store = self.vault.store
        assert isinstance(store, OuterStore | SeedStore)  # there are no others
        return store

    @property
    def max_slice_bytes(self) -> int:
        """Of the largest payload or result."""
        spec = self.manifest.spec
        if spec.seeds.is_on:
            return MAX_ENTRY_BYTES
        longest = max(self.plan.sizes)
        return max(codec_named(codec).max_bytes(longest) for codec in spec.outer.codecs)

    def answers(self) -> dict[str, Answer]:
        """What this peer tells others of the run, by kind of question; may block."""
        run, chain = self.manifest.run_id, self.protocol.state.chain
        return {
            run_service.MANIFEST: lambda _: self.manifest.encode(),
            run_service.GENESIS: lambda _: self.genesis_blob,
            run_service.RECORDS: lambda names: joining.records_answer(chain, run, names),
            run_service.ENTRIES: lambda names: entries_answer(chain, self.entries, names),
        }

    def rebuild(self, runtime: PeerRuntime, catch_up: str) -> Rebuild | None:
        """What makes states out of the log, in a run of shared seeds."""
        return rebuild_of_member(self.vault, self.protocol.state.chain, runtime, catch_up)


def assemble(entrance: Entrance, model: nn.Module, trials: Trials | None = None) -> Assembly:
    """Builds all parts; a new run's manifest is made here, another's state is fetched.

    `trials` are of its training, for a new run whose settings leave something open.

    Raises:
        ConfigError: the model cannot be exchanged, or a new run would start from NaN or infinity, or nothing
            keeps to its budget.
        RunMismatchError: the model is not the run's.
        NetworkError: the run's state cannot be had.
        InputFileError, StorageError: the state on disk is damaged or cannot be written.
    """
    began_s = entrance.clock.monotonic_s()
    founding = entrance.manifest is None
    if founding:
        require_finite(model)
        settle_place(entrance, plan_model(model, entrance.spec.num_fragments).numel, trials)
    spec = entrance.spec
    plan = plan_model(model, spec.num_fragments)
    store = seed_store(model, spec) if spec.seeds.is_on else _outer_store(model, plan, spec)
    if founding:
        first = [store.root(f) for f in range(plan.num_fragments)]
        entrance.manifest = _found(entrance, plan, genesis_blob(first))
    manifest = entrance.manifest
    assert manifest is not None  # founded or found before
    if manifest.spec.model.fingerprint != plan.fingerprint().hex():
        raise RunMismatchError(
            f"the model's parameters have fingerprint {plan.fingerprint().hex()[:8]}, the run's"
            f" {manifest.spec.model.fingerprint[:8]}: build the model with the names and shapes of the run"
        )
    return _restore(entrance, plan, store, began_s=began_s, founding=founding)


def _outer_store(model: nn.Module, plan: FragmentPlan, spec: RunSpec) -> OuterStore:
    binding = ModelBinding(model, plan)
    values = [binding.new_buffer(fragment) for fragment in range(plan.num_fragments)]
    for fragment, buffer in enumerate(values):
        binding.read(fragment, buffer)
    return OuterStore(values, parts_of(spec.outer, plan))


def _keeper(
    store: Store, log: DurableLog, signer: Signer, manifest: SignedManifest, entries: EntryFile
) -> Keeper:
    spec, me, every = manifest.spec, signer.peer_id, manifest.spec.rounds.snapshot_every
    if not isinstance(store, SeedStore):
        averaging = spec.outer.final_averaging
        return Vault(store, log, me, snapshot_every=every, final_averaging=averaging)

    def secret(record: Digest) -> bytes:
        return signer.sign(draw_statement(manifest.run_id, record))

    checks = spec.seeds.spot_checks > 0 and can_be_checked(store.method)
    return SeedVault(
        store,
        log,
        me,
        entries,
        snapshot_every=every,
        secret=secret if checks else None,
    )


def _found(entrance: Entrance, plan: FragmentPlan, first: bytes) -> SignedManifest:
    """The manifest of a new run whose members are this peer and those its place names."""
    place, owner = entrance.place, entrance.owner
    if not isinstance(place, Local) or owner is None:
        raise ConfigError("only a run of your own can be founded here")
    members = tuple(sorted({entrance.identity.peer_id, *place.members}))
    limit = place.spec.rounds.max_members
    if len(members) > limit:
        raise ConfigError(
            f"the run would start with {len(members)} members and rounds.max_members is {limit}:"
            " raise it or found the run with fewer"
        )
    published = place.spec.published()
    model = published.model.model_copy(update={"fingerprint": plan.fingerprint().hex()})
    genesis = Genesis(
        state_root=digest(first),
        members=members,
        created_unix_s=int(entrance.clock.unix_s()),
        data_root=place.data_root,
    )
    return SignedManifest.issue(owner, published.model_copy(update={"model": model}), genesis)


def _restore(
    entrance: Entrance, plan: FragmentPlan, store: Store, *, began_s: float, founding: bool
) -> Assembly:
    manifest, folder = entrance.manifest, entrance.folder()
    assert manifest is not None  # founded or found before
    spec = manifest.spec
    returns = (folder / "manifest.bin").exists() and (folder / STATE_FOLDER).exists()
    log = DurableLog(folder / STATE_FOLDER)
    try:
        clear_parts(folder)
        genesis = genesis_record(manifest.genesis.members, manifest.genesis.state_root)
        entries = EntryFile(folder / ENTRIES_NAME)
        vault = _keeper(store, log, entrance.identity, manifest, entries)
        fetched = None
        if founding:
            _write_first(vault, log, genesis)
        else:
            if returns:
                _require_head(log, folder / STATE_FOLDER)
            fetched = _bring_state(entrance, manifest, vault, log, genesis)
        shutil.rmtree(folder / _INCOMING, ignore_errors=True)
        log.write(plan_updates(plan))
        # a founder that was killed before this line founds another run: nobody can know this one
        manifest.write(folder / "manifest.bin")
        stored = log.load()
        saved = storage_keys.restore(
            stored, genesis, open_rounds=spec.open_rounds, read=log.read_blob
        )
        settings = _settings(entrance, manifest, store)
        shelve(log, saved.chain, settings.kept_records)
        protocol = RoundProtocol(
            entrance.identity,
            settings,
            saved,
            now=entrance.runtime.call(_loop_time, timeout_s=_LOOKUP_S),
        )
        return Assembly(
            manifest=manifest,
            folder=folder,
            plan=plan,
            vault=vault,
            entries=entries,
            log=log,
            shelf=BlobShelf(),
            protocol=protocol,
            genesis_blob=stored["genesis"],
            fetched=fetched,
            owed_tokens=owed_tokens(stored, saved.commits, vault.fragments),
            began_s=began_s,
        )
    except BaseException:
        log.close()
        raise


def _require_head(log: DurableLog, folder: Path) -> None:
    if storage_keys.HEAD not in log.load():
        raise InputFileError(
            f"{folder} has lost what it held, and that may have been promised to others: restore it"
            " from a backup, or move it away and join again with a new identity"
        )


def _write_first(vault: Keeper, log: DurableLog, genesis: Record) -> None:
    """Fills the log from the model of who founds the run."""
    first = {"genesis": genesis_blob(vault.state_roots()), storage_keys.HEAD: genesis.hash}
    log.write({**vault.write_all([-1] * vault.fragments), **first})


def _bring_state(
    entrance: Entrance, manifest: SignedManifest, vault: Keeper, log: DurableLog, genesis: Record
) -> Fetched | None:
    """Fills store and log: from this folder, or from members."""
    stored = log.load()
    if storage_keys.HEAD in stored:
        saved = storage_keys.restore(
            stored, genesis, open_rounds=manifest.spec.open_rounds, read=log.read_blob
        )
        number = saved.chain.number
        owed = owed_updates(owed_tokens(stored, saved.commits, vault.fragments))
        resumed = vault.resume(stored, saved.chain, lambda key: _is_open(key, saved, number))
        log.write({**resumed, **owed})
        return None
    limit_s = _FETCH_S + (LOG_S if entrance.place.machine.catch_up == "log" else 0)
    try:
        return entrance.runtime.call(
            _fetch_all, entrance, manifest, vault, log, genesis, timeout_s=limit_s
        )
    except TimeoutError:
        raise NetworkError(
            f"the run's state did not come within {limit_s / 60:.0f} minutes: try again; what has come is"
            " kept"
        ) from None


def _is_open(key: RoundKey, saved: storage_keys.Restored, number: int) -> bool:
    return number < key.number <= number + saved.chain.open_rounds and key.base in saved.chain


async def _fetch_all(
    entrance: Entrance, manifest: SignedManifest, vault: Keeper, log: DurableLog, genesis: Record
) -> Fetched:
    run, transport = manifest.run_id, entrance.network.transport
    saved = storage_keys.restore(
        {}, genesis, open_rounds=manifest.spec.open_rounds, read=log.read_blob
    )
    settings = _settings(entrance, manifest, vault.store)
    state = ProtocolState.begin(
        entrance.identity, settings, saved, asyncio.get_running_loop().time()
    )
    donors, every = await find_donors(entrance, run), manifest.spec.rounds.snapshot_every
    source = Source(transport, donors, run, told=partial(shelve_told, log, state))
    first = await joining.fetch_genesis(source, genesis)
    fetched = await joining.catch_up(
        source,
        state,
        vault.store,
        every=every,
        keep=entrance.folder() / _INCOMING,
        rebuild=rebuild_of_newcomer(
            vault, state.chain, genesis, entrance.runtime, entrance.place.machine.catch_up
        ),
    )
    updates = vault.write_all(fetched.numbers) | storage_keys.floor_updates(fetched.number)
    updates |= {
        "genesis": first,
        storage_keys.HEAD: saved.chain.path[-1],
    }
    updates |= shelved_updates(log, saved.chain, settings.kept_records)
    log.write(updates)
    return fetched


def _settings(entrance: Entrance, manifest: SignedManifest, store: StateStore) -> ProtocolSettings:
    spec, owner, run = manifest.spec, manifest.owner, manifest.run_id

    def admits(_: PeerId, ticket: bytes) -> bool:
        try:
            return Ticket.decode(ticket).is_genuine(owner, run)
        except PeerError:
            return False

    return ProtocolSettings(
        run=run,
        fragment_sizes=store.sizes,
        max_weight_tokens=spec.outer.max_weight_tokens,
        limits=Limits(
            floor_s=spec.rounds.deadline_floor_s,
            ceiling_s=spec.rounds.deadline_ceiling_s,
            stall_s=spec.rounds.stall_s,
            together=spec.num_fragments if has_public_windows(spec) else 1,
        ),
        admits=admits,
        deepest_fork=_deepest_fork(spec),
        kept_records=_kept_records(spec),
        ticket=entrance.ticket(),
        max_upload_bits_s=entrance.place.machine.max_upload_bits_s,
        carries=store.method.problem if isinstance(store, SeedStore) else None,
        names_windows=has_public_windows(spec),
    )


def _kept_records(spec: RunSpec) -> int:
    """How many of the newest records stay in memory: those that are looked at again and again.

    That is as far back as results are kept for newcomers, as a branch is given up record by record, and as
    promises are remembered. Pins that are far apart lead further back: once in so many rounds.
    """
    pinned = min(3 * spec.rounds.snapshot_every, _MOST_PINNED_RECORDS)
    return pinned + 2 * _deepest_fork(spec) + 2 * HISTORY_ROUNDS


def _deepest_fork(spec: RunSpec) -> int:
    """How many records can be given up one by one."""
    return _KEPT_SCALAR_ROUNDS if spec.seeds.is_on else _KEPT_WINDOWS * spec.num_fragments


async def _loop_time() -> float:
    await asyncio.sleep(0)
    return asyncio.get_running_loop().time()
