"""Where a peer takes part: a run that it founds, or one that an invite names."""

from __future__ import annotations

import os
import secrets
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from runnel.dht.identity import public_key_of
from runnel.errors import ConfigError
from runnel.node.config import ANY_HOST, MachineConfig
from runnel.node.invite import Invite
from runnel.node.manifest import RunSpec, make_spec, parse_overrides
from runnel.types import DIGEST_BYTES, Digest, PeerId

NO_DATA = Digest(bytes(DIGEST_BYTES))
"""Root of the corpus of runs whose peers bring their own data."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Local:
    """A run that starts on this machine, or goes on if its folder holds it already.

    `data_root` names the corpus that all peers train on, if the run has one. `members` are those who
    found the run together with this peer; a run that goes on keeps the members it has. A `scratch`
    home is removed when its peer leaves.
    """

    spec: RunSpec
    machine: MachineConfig
    data_root: Digest = NO_DATA
    members: tuple[PeerId, ...] = ()
    scratch: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Joined:
    """A run that an invite names."""

    invite: Invite
    machine: MachineConfig


Place = Local | Joined


def local(
    *settings: str,
    home: str | Path | None = None,
    host: str = "127.0.0.1",
    port: int = 0,
    members: Sequence[PeerId] = (),
    network: str | None = None,
    metrics: str | int | None = None,
) -> Local:
    """A run of your own, open to others by `peer.invite`: ``local("outer.every_steps=50")``.

    Args:
        settings: as with ``--set``: "section.field=value".
        home: folder of keys and state, in which the run goes on if it is there already; if not
            given, a temporary one that is removed when the peer leaves.
        host: IP address to listen on; 0.0.0.0 lets other machines join.
        port: TCP port; 0 lets the system choose.
        members: peers that are members, with a vote, from the start: they come by the invite as
            others do, and until most of them have, no round is decided within ``rounds.stall_s``.
        network: "daemon", "libp2p", or "auto" for what is installed; see `MachineConfig.at`.
        metrics: port of this machine, or "HOST:PORT", at which figures for Prometheus are served.

    Raises:
        ConfigError: an unknown setting, a value out of range, or a member that is no peer id.
    """
    for setting in settings:
        if not isinstance(setting, str):
            raise ConfigError(
                f'a setting is {setting!r}, expected a text such as "outer.every_steps=50"'
            )
    tables = parse_overrides(["run.name=local", "model.kind=custom", *settings])
    spec = make_spec(tables, source="runnel.local")
    if not isinstance(members, Iterable):
        raise ConfigError(f"members is {members!r}, expected a list of peer ids")
    founders = tuple(members)
    for member in founders:
        _check_member(member)
    folder = _folder(home) or _scratch_folder()
    machine = MachineConfig.at(folder, host=host, port=port, network=network).serving(metrics)
    return Local(spec=spec, machine=machine, members=founders, scratch=home is None)


def invited(
    invite: str | Invite,
    *,
    home: str | Path | None = None,
    host: str = ANY_HOST,
    port: int = 0,
    network: str | None = None,
    metrics: str | int | None = None,
) -> Joined:
    """The run that an invite names, where the invite's text alone is not enough.

    Args:
        invite: "runnel:...".
        home: folder of keys and state; the user's own if not given. One peer at a time uses a home:
            a second peer on this machine needs another one.
        host: IP address to listen on; 127.0.0.1 stays on this machine.
        port: TCP port; 0 lets the system choose.
        network: "daemon", "libp2p", or "auto" for what is installed; see `MachineConfig.at`.
        metrics: port of this machine, or "HOST:PORT", at which figures for Prometheus are served.

    Raises:
        ConfigError: an unusable invite, or a value out of range.
    """
    parsed = Invite.parse(invite) if isinstance(invite, str) else invite
    if not isinstance(parsed, Invite):
        raise ConfigError(f'{invite!r} is given, expected an invite ("runnel:...")')
    return Joined(
        invite=parsed,
        machine=MachineConfig.at(_folder(home), host=host, port=port, network=network).serving(
            metrics
        ),
    )


def resolve(place: str | Invite | Place) -> Place:
    """The place that an author named, an invite's text included.

    Raises:
        ConfigError: an unusable invite, or nothing that names a run.
    """
    if isinstance(place, str | Invite):
        return invited(place)
    if not isinstance(place, Local | Joined):
        raise ConfigError(
            f'the run is given as a {type(place).__name__}, expected an invite ("runnel:...") or'
            " runnel.local()"
        )
    return place


def _folder(home: str | Path | None) -> Path | None:
    if home is None or isinstance(home, str | os.PathLike):
        return None if home is None else Path(home)
    raise ConfigError(f'home is {home!r}, expected the path of a folder, such as "~/swarm"')


def _scratch_folder() -> Path:
    """A path of its own for a home that is made, private, when its peer starts."""
    return Path(tempfile.gettempdir()) / f"runnel-{secrets.token_hex(8)}"


def _check_member(member: PeerId) -> None:
    problem = "" if isinstance(member, bytes) else f"a {type(member).__name__} in place of bytes"
    if not problem:
        try:
            public_key_of(member)
        except ValueError as error:
            problem = str(error)
    if problem:
        raise ConfigError(
            f"the founding member {member!r:.40} is no peer id ({problem}), expected an identity's peer_id:"
            " ask each member for theirs"
        )
