"""Getting to a run: identity, network, and the run's manifest from whoever is a member.

Blocking calls from the caller's thread; the network lives on the runtime's I/O thread.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from runnel.clock import Clock, SystemClock
from runnel.dht.daemon_process import free_port
from runnel.dht.identity import Identity
from runnel.dht.network import Network, NetworkSettings
from runnel.dht.network_choice import DAEMON, choose, start_network
from runnel.dht.socket_folder import remove_stale
from runnel.errors import InputFileError, NetworkError, PeerError, RunMismatchError
from runnel.hashing import digest
from runnel.kernels import require_arithmetic
from runnel.node.announcer import Announcer, find_peers
from runnel.node.atomic import write_atomically
from runnel.node.budget import settled_like
from runnel.node.config import ANY_HOST, MachineConfig
from runnel.node.disk import DirectoryLock, clear_parts
from runnel.node.invite import Invite
from runnel.node.manifest import RunSpec, SignedManifest
from runnel.node.metrics_endpoint import MetricsEndpoint
from runnel.node.namesakes import tell_of_namesake
from runnel.node.place import Joined, Local, Place
from runnel.node.run_service import MANIFEST, ask
from runnel.node.runtime import PeerRuntime, Runtime
from runnel.node.ticket import NONCE_BYTES, Ticket, run_name
from runnel.optim.buffers import BufferPool
from runnel.protocols import Signer
from runnel.types import PeerId

logger = logging.getLogger(__name__)

_START_S = 60.0
_ASK_S = 60.0
_LOOKUP_S = 10.0
_DONORS_S = 5.0
_SPARE_ROOM_BYTES = 32 << 20
"""Memory for messages to arrive in that may wait to be used again."""

_PORT_NAME = "port"
_TICKET_YEARS_S = 10 * 365 * 86_400


@dataclass(slots=True)
class Entrance:
    """A started runtime and network, and what is known of the run.

    `manifest` is None for a run that is yet to be founded. `owner` is set if this machine holds the
    owner's key; `metrics` if it serves figures for monitoring; `announcer` once this peer takes part.
    """

    place: Place
    runtime: PeerRuntime
    network: Network
    identity: Signer
    owner: Identity | None
    manifest: SignedManifest | None
    lock: DirectoryLock
    clock: Clock = field(default_factory=SystemClock)
    metrics: MetricsEndpoint | None = None
    announcer: Announcer | None = None

    @property
    def peers(self) -> tuple[PeerId, ...]:
        """Members to ask first."""
        if isinstance(self.place, Joined):
            return tuple(address.peer for address in self.place.invite.bootstraps)
        return ()

    @property
    def spec(self) -> RunSpec:
        """Of the run; of one that is yet to be founded, what its place asks for."""
        if self.manifest is not None:
            return self.manifest.spec
        if not isinstance(self.place, Local):
            raise RunMismatchError("the run has no manifest yet")
        return self.place.spec

    def folder(self) -> Path:
        """Where this run's state lives on this machine."""
        if self.manifest is None:
            raise RunMismatchError("the run has no manifest yet")
        return self.place.machine.run_folder(self.manifest.spec.run.name, self.manifest.run_id)

    def ticket(self) -> bytes:
        """What to show to members in order to become one."""
        if isinstance(self.place, Joined):
            return self.place.invite.ticket.encode()
        if self.owner is None or self.manifest is None:
            return b""
        expires = int(self.clock.unix_s()) + _TICKET_YEARS_S
        run_id, nonce = self.manifest.run_id, digest(self.identity.peer_id)[:NONCE_BYTES]
        return Ticket.issue(self.owner, run_id, expires_unix_s=expires, nonce=nonce).encode()

    def close(self) -> None:
        """Takes the network and the runtime down."""
        self.runtime.heed(None)
        try:
            self.runtime.call(self.network.aclose, timeout_s=10.0)
        except Exception as error:  # noqa: BLE001 - whatever ended the loop, its threads must go
            logger.warning("the network did not close in order: %s", error)
        finally:
            self.runtime.close()
            self.lock.close()
            if self.metrics is not None:
                self.metrics.close()


def enter(
    place: Place,
    meanwhile: Callable[[], None] | None = None,
    stop: threading.Event | None = None,
) -> Entrance:
    """Starts the network; finds the run's manifest on disk or asks its members.

    `meanwhile` is called before the network's start, once nothing on this machine is wrong. `stop` ends
    whatever waits for the network, from here on until the runtime heeds it no more, see `Runtime.heed`.

    Raises:
        KeyboardInterrupt: `stop` was set; everything is closed again.
        ConfigError, InputFileError, StorageError: something on this machine is wrong.
        NetworkError: nobody of the run can be reached.
        RunMismatchError: who answers is not of the run that the invite names.
    """
    machine = place.machine
    machine.prepare()
    identity = Identity.load_or_create(machine.identity_path)
    owner = (
        Identity.load_or_create(machine.home / "owner.key") if isinstance(place, Local) else None
    )
    kind = choose(machine.network)
    require_arithmetic()
    known = known_manifest(place, owner)
    if isinstance(place, Joined) and known is None:  # a member returns whenever it likes
        place.invite.require_valid(SystemClock().unix_s())
    if isinstance(place, Local) and owner is not None and known is None:
        tell_of_namesake(place, owner.peer_id)
    with ExitStack() as undo:
        lock = DirectoryLock(machine.home)  # one identity, one network: never two at once
        undo.callback(lock.close)
        clear_parts(machine.home)
        metrics = MetricsEndpoint(machine.metrics) if machine.metrics else None
        if metrics is not None:
            undo.callback(metrics.close)
        runtime = Runtime().start()
        undo.callback(runtime.close)
        runtime.heed(stop)
        if meanwhile is not None:
            meanwhile()
        if kind == DAEMON:
            remove_stale()  # a killed peer's daemon may still hold the port
        settings = _settings(place, has_run=known is not None)
        rooms = BufferPool(np.uint8, max_spare_bytes=_SPARE_ROOM_BYTES)
        network = _start(runtime, kind, settings, identity, rooms)
        entrance = Entrance(place, runtime, network, identity, owner, known, lock, metrics=metrics)
        undo.pop_all()  # the entrance closes them
        undo.callback(entrance.close)
        if not machine.dials_only:
            _keep_port(machine, network.port)
        if known is None and isinstance(place, Joined):
            entrance.manifest = runtime.call(ask_manifest, entrance, timeout_s=_ASK_S)
        undo.pop_all()
    return entrance


def _start(
    runtime: Runtime, kind: str, settings: NetworkSettings, identity: Identity, rooms: BufferPool
) -> Network:
    try:
        return runtime.call(
            start_network, kind, settings, identity, rooms.take_room, timeout_s=_START_S
        )
    except TimeoutError:
        raise NetworkError(
            f"the network did not start within {_START_S:g} s: is this machine very busy? try again"
        ) from None


def _settings(place: Place, *, has_run: bool) -> NetworkSettings:
    machine = place.machine
    bootstrap = place.invite.addresses if isinstance(place, Joined) else ()
    return NetworkSettings(
        listen_host=ANY_HOST if machine.dials_only else machine.listen_host,
        port=0 if machine.dials_only else machine.listen_port or _kept_port(machine),
        identity_path=machine.identity_path,
        bootstrap=bootstrap,
        cache_path=machine.home / "peers.json",
        announce=machine.announce,
        dial_out=machine.dials_only,
        relay=machine.relay,
        max_upload_bits_s=machine.max_upload_bits_s,
        allow_alone=has_run or isinstance(place, Local),
    )


def _kept_port(machine: MachineConfig) -> int:
    """The port of the last time if it is free, so that old invites still lead here; else 0."""
    try:
        kept = int((machine.home / _PORT_NAME).read_text(encoding="ascii"))
        return free_port(machine.listen_host, kept)
    except (OSError, ValueError, NetworkError):
        return 0


def _keep_port(machine: MachineConfig, port: int) -> None:
    write_atomically(machine.home / _PORT_NAME, str(port).encode())


def known_manifest(place: Place, owner: Identity | None) -> SignedManifest | None:
    """The manifest of a run this machine has taken part in before.

    Runs that cannot be read, as those of another version, do not keep others from theirs: one warning.
    The one that an invite names is asked of members again.

    Raises:
        InputFileError: a run that cannot be read may be the one to go on with here.
    """
    unreadable: dict[Path, InputFileError] = {}
    found = None
    for path in sorted((place.machine.home / "runs").glob("*/manifest.bin")):
        try:
            manifest = SignedManifest.read(path)
        except InputFileError as error:
            unreadable[path.parent] = error
            continue
        if found is None and _is_wanted(place, owner, manifest):
            found = manifest
    if found is None:
        for folder in [folder for folder in unreadable if _may_be_wanted(place, folder.name)]:
            if isinstance(place, Local):  # to found a second one in its stead would split the run
                raise InputFileError(
                    f"{unreadable[folder]}; or move {folder} away to start a new run of this name"
                )
            del unreadable[folder]
            logger.warning("%s holds a damaged manifest: members are asked for it", folder)
    if unreadable:
        count, first = len(unreadable), next(iter(unreadable.values()))
        logger.warning(
            "%d other runs cannot be read and are left alone; the first: %s", count, first
        )
    return found


def _is_wanted(place: Place, owner: Identity | None, manifest: SignedManifest) -> bool:
    if isinstance(place, Joined):
        return place.invite.names(manifest.run_id)
    return owner is not None and manifest.owner == owner.peer_id and _same_run(place, manifest)


def _may_be_wanted(place: Place, name: str) -> bool:
    """Whether a folder of this name may hold the run, see `MachineConfig.run_folder`."""
    run, _, digits = name.rpartition("-")
    if isinstance(place, Joined):
        return place.invite.run_id.hex().startswith(digits)
    return run == place.spec.run.name


def _same_run(place: Local, manifest: SignedManifest) -> bool:
    found = manifest.spec
    wanted = settled_like(place.spec, found).published()
    fingerprint = {"fingerprint": found.model.fingerprint}
    return wanted.model_copy(update={"model": wanted.model.model_copy(update=fingerprint)}) == found


async def ask_manifest(entrance: Entrance) -> SignedManifest:
    """Asks those whom the invite names, then those whom the directory names."""
    invite = entrance.place.invite  # type: ignore[union-attr]  # only called for Joined
    reasons: list[str] = []
    for peer in entrance.peers:
        manifest = await _ask_one(entrance, invite, peer, reasons)
        if manifest is not None:
            return manifest
    deadline = asyncio.get_running_loop().time() + _LOOKUP_S
    try:
        others = await find_peers(entrance.network, invite.run_id, deadline=deadline)
    except (NetworkError, PeerError, TimeoutError) as error:
        logger.debug("directory: %s", error)
        others = []
    for peer in others:
        manifest = await _ask_one(entrance, invite, peer, reasons)
        if manifest is not None:
            return manifest
    raise NetworkError(f"no member told the run's manifest: {'; '.join(reasons)}")


async def _ask_one(
    entrance: Entrance, invite: Invite, peer: PeerId, reasons: list[str]
) -> SignedManifest | None:
    try:
        data = await ask(entrance.network.transport, peer, run_name(invite.run_id), MANIFEST)
        manifest = SignedManifest.decode(data)
    except (NetworkError, PeerError, TimeoutError) as error:
        reasons.append(str(error) or "no answer in time")
        return None
    if not invite.names(manifest.run_id) or manifest.owner != invite.owner:
        raise RunMismatchError(
            "the member that answered serves another run than the invite names: ask its owner for a new one"
        )
    return manifest


async def find_donors(entrance: Entrance, run: bytes) -> tuple[PeerId, ...]:
    """Who may have the run's state: the invite's members first, then whom the directory names."""
    deadline = asyncio.get_running_loop().time() + _DONORS_S
    found: list[PeerId] = list(entrance.peers)
    try:
        found += await find_peers(entrance.network, run, deadline=deadline)
    except (NetworkError, PeerError, TimeoutError) as error:
        logger.debug("directory: %s", error)
    me = entrance.identity.peer_id
    return tuple(peer for peer in dict.fromkeys(found) if peer != me)
