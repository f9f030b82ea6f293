"""The manifest: what a run is, signed by its owner. The run id is the hash of its encoding.

Also the public face of the spec: what a run agrees on (`manifest_spec`) and how people write it
(`manifest_text`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from runnel.dht.identity import SIGNATURE_BYTES, Identity, public_key_of
from runnel.dht.wire import pack, unpack
from runnel.errors import BugError, ConfigError, InputFileError, PeerError
from runnel.hashing import digest
from runnel.node.atomic import write_atomically
from runnel.node.manifest_patterns import AUTO
from runnel.node.manifest_sections import MAX_MEMBERS
from runnel.node.manifest_spec import RunSpec
from runnel.node.manifest_text import (
    docs_table,
    load_spec,
    make_spec,
    new_run_toml,
    parse_overrides,
    spec_to_toml,
)
from runnel.types import DIGEST_BYTES, Digest, PeerId

__all__ = [
    "MAX_MANIFEST_BYTES",
    "MAX_MEMBERS",
    "VERSION",
    "Genesis",
    "RunSpec",
    "SignedManifest",
    "docs_table",
    "load_spec",
    "make_spec",
    "new_run_toml",
    "parse_overrides",
    "spec_to_toml",
    "statement",
]

VERSION = 4
"""Of the encoding: another order, number or type of values needs another one."""

MAX_MANIFEST_BYTES = 16_384
_MAX_UNIX_S = 2**40
_DOMAIN = b"runnel.manifest.1"


@dataclass(frozen=True, kw_only=True, slots=True)
class Genesis:
    """Where a run starts.

    Attributes:
        state_root: of the initial outer state.
        members: the first view, ascending, 1 to 64 peers.
        created_unix_s: when the owner launched the run, seconds since 1970; for people only.
        data_root: of the corpus that all peers train on.
    """

    state_root: Digest
    members: tuple[PeerId, ...]
    created_unix_s: int
    data_root: Digest


@dataclass(frozen=True, kw_only=True, slots=True)
class SignedManifest:
    """Spec, owner and genesis of a run with the owner's signature over all of it.

    Made by `issue`, `decode` or `read`, which check everything; two are equal if their bytes are.
    """

    spec: RunSpec
    owner: PeerId
    genesis: Genesis
    signature: bytes

    @classmethod
    def issue(cls, owner: Identity, spec: RunSpec, genesis: Genesis) -> Self:
        """The manifest of a new run, signed by `owner`; members are sorted.

        Raises:
            BugError: the genesis is malformed.
            ConfigError: the spec holds what `decode` refuses, so that nobody could read the manifest.
        """
        members = tuple(sorted(set(genesis.members)))
        sorted_genesis = Genesis(
            state_root=genesis.state_root,
            members=members,
            created_unix_s=genesis.created_unix_s,
            data_root=genesis.data_root,
        )
        if problem := _genesis_problem(sorted_genesis):
            raise BugError(f"genesis: {problem}")
        if spec.outer.codec == AUTO:
            raise BugError("a run begins with a codec that was not chosen")
        body = _body(spec, owner.peer_id, sorted_genesis)
        signature = owner.sign(statement(digest(body)))
        manifest = cls(spec=spec, owner=owner.peer_id, genesis=sorted_genesis, signature=signature)
        try:
            cls.decode(manifest.encode())
        except PeerError as error:  # `model_copy`, by which settings are filled in, checks nothing
            raise ConfigError(
                f"the run's manifest would be read by nobody ({error}): correct this setting"
            ) from None
        return manifest

    @property
    def run_id(self) -> Digest:
        """The hash of everything but the signature: fixed by what the run is. Hashed anew each time."""
        return digest(_body(self.spec, self.owner, self.genesis))

    def encode(self) -> bytes:
        """The canonical bytes: a list of the body's bytes and the signature."""
        return pack([_body(self.spec, self.owner, self.genesis), self.signature])

    @classmethod
    def decode(cls, data: bytes) -> SignedManifest:
        """The manifest whose encoding is exactly `data`, its values and signature checked.

        Raises:
            PeerError: "malformed"; "version": made for another version of runnel; "value": a
                setting that this version refuses; "signature": not signed by the owner it names.
        """
        body, signature = _row(unpack(data, max_bytes=MAX_MANIFEST_BYTES), (bytes, bytes), "frame")
        fields = unpack(body, max_bytes=MAX_MANIFEST_BYTES)
        if not isinstance(fields, list) or not fields or type(fields[0]) is not int:
            raise PeerError("malformed", "a manifest without a version")
        if fields[0] != VERSION:
            raise PeerError("version", f"manifest version {fields[0]}, this runnel reads {VERSION}")
        kinds = (int, list, bytes, bytes, list, int, bytes)
        _, values, owner, state_root, members, created_unix_s, data_root = _row(
            fields, kinds, "body"
        )
        genesis = Genesis(
            state_root=Digest(state_root),
            members=tuple(members),
            created_unix_s=created_unix_s,
            data_root=Digest(data_root),
        )
        if problem := _peer_problem(owner) or _genesis_problem(genesis):
            raise PeerError("malformed", problem)
        manifest = cls(
            spec=_spec_of(values), owner=PeerId(owner), genesis=genesis, signature=signature
        )
        # Values that pydantic converts (an int where a float belongs) would encode differently.
        if _body(manifest.spec, manifest.owner, genesis) != body:
            raise PeerError("malformed", "not the canonical encoding of its values")
        if len(signature) != SIGNATURE_BYTES or not Identity.verify(
            manifest.owner, statement(digest(body)), signature
        ):
            raise PeerError("signature", "not signed by the owner it names")
        return manifest

    def write(self, path: Path) -> None:
        """Puts the encoding at `path`, complete or not at all.

        Raises:
            StorageError: the disk refused.
        """
        write_atomically(path, self.encode())

    @classmethod
    def read(cls, path: Path) -> SignedManifest:
        """The manifest in the file `path`.

        Raises:
            InputFileError: missing, unreadable, or not exactly one manifest.
        """
        try:
            with path.open("rb") as file:
                data = file.read(MAX_MANIFEST_BYTES + 1)
        except OSError as error:
            reason = (error.strerror or str(error)).lower()
            raise InputFileError(
                f"{path} cannot be read ({reason}), expected the manifest of a run: join again"
                " with the invite"
            ) from None
        try:
            return cls.decode(data)
        except PeerError as error:
            raise InputFileError(
                f"{path} is not a manifest of this version ({error}), expected what launch or join"
                " wrote: join again with the invite"
            ) from None


def _body(spec: RunSpec, owner: PeerId, genesis: Genesis) -> bytes:
    return pack(
        [
            VERSION,
            spec.values(),
            owner,
            genesis.state_root,
            list(genesis.members),
            genesis.created_unix_s,
            genesis.data_root,
        ]
    )


def statement(run_id: Digest) -> bytes:
    """The bytes that the owner signs."""
    return _DOMAIN + run_id


def _spec_of(values: list[Any]) -> RunSpec:
    if not all(isinstance(section, list) for section in values):
        raise PeerError("malformed", "a section that is no list")
    try:
        spec = RunSpec.from_values(values)
    except ValueError as error:
        reason = " ".join(str(error).split())
        raise PeerError("value", reason[:200]) from None
    if spec.outer.codec == AUTO:
        raise PeerError("value", "outer.codec is auto in a run that has begun")
    return spec


def _row(value: Any, kinds: Sequence[type], what: str) -> list[Any]:
    """`value` as a list of exactly these types."""
    if not isinstance(value, list) or [type(item) for item in value] != list(kinds):
        raise PeerError("malformed", f"the manifest's {what} has other fields than expected")
    return value


def _genesis_problem(genesis: Genesis) -> str:
    members = genesis.members
    if len(genesis.state_root) != DIGEST_BYTES or len(genesis.data_root) != DIGEST_BYTES:
        return f"a root that is not {DIGEST_BYTES} bytes"
    if not 1 <= len(members) <= MAX_MEMBERS:
        return f"{len(members)} members, expected 1 to {MAX_MEMBERS}"
    for member in members:
        if problem := _peer_problem(member):
            return problem
    if list(members) != sorted(set(members)):
        return "members that are not in ascending order"
    if not 0 <= genesis.created_unix_s <= _MAX_UNIX_S:
        return f"created at {genesis.created_unix_s}, expected seconds since 1970"
    return ""


def _peer_problem(peer: object) -> str:
    try:
        public_key_of(PeerId(peer) if isinstance(peer, bytes) else PeerId(b""))
    except ValueError as error:
        return str(error)
    return ""
