"""Where a peer takes part: a run that it founds, or one that an invite names."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from runnel.dht.identity import public_key_of
from runnel.errors import ConfigError
from runnel.node.config import MachineConfig
from runnel.node.invite import Invite
from runnel.node.manifest import RunSpec, make_spec, parse_overrides
from runnel.types import DIGEST_BYTES, Digest, PeerId

NO_DATA = Digest(bytes(DIGEST_BYTES))
"""Root of the corpus of runs whose peers bring their own data."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Local:
    """A run that starts on this machine, or goes on if its folder holds it already.

    `data_root` names the corpus that all peers train on, if the run has one. `members` are those who
    found the run together with this peer; a run that goes on keeps the members it has.
    """

    spec: RunSpec
    machine: MachineConfig
    data_root: Digest = NO_DATA
    members: tuple[PeerId, ...] = ()


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
) -> Local:
    """A run of your own, open to others by `peer.invite`: ``local("outer.every_steps=50")``.

    Args:
        settings: as with ``--set``: "section.field=value".
        home: folder of keys and state; a new temporary one if not given.
        host: IP address to listen on; 0.0.0.0 lets other machines join.
        port: TCP port; 0 lets the system choose.
        members: peers that are members, with a vote, before the first round: they join by the
            invite as others do, and no round is decided before most of them have.

    Raises:
        ConfigError: an unknown setting, a value out of range, or a member that is no peer id.
    """
    tables = parse_overrides(["run.name=local", "model.kind=custom", *settings])
    spec = make_spec(tables, source="runnel.local")
    for member in members:
        _check_member(member)
    folder = Path(home) if home is not None else Path(tempfile.mkdtemp(prefix="runnel-"))
    machine = MachineConfig.at(folder, host=host, port=port)
    return Local(spec=spec, machine=machine, members=tuple(members))


def resolve(place: str | Place) -> Place:
    """The place that an author named, an invite's text included.

    Raises:
        ConfigError: an unusable invite.
    """
    if isinstance(place, str):
        return Joined(invite=Invite.parse(place), machine=MachineConfig.at())
    return place


def _check_member(member: PeerId) -> None:
    try:
        public_key_of(member)
    except ValueError as error:
        raise ConfigError(
            f"a founding member is no peer id ({error}), expected an identity's peer_id: ask each"
            " member for theirs"
        ) from None
