"""A peer of a run: manifest, rounds, state on disk, and what ties them to network and trainer.

`Peer` and `local` are what authors use; `runnel` itself re-exports them.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from runnel.node.check import check
    from runnel.node.invite import Invite
    from runnel.node.manifest import RunSpec, SignedManifest
    from runnel.node.session import Peer, invited, local

__all__ = ["Invite", "Peer", "RunSpec", "SignedManifest", "check", "invited", "local"]

_HOMES = {
    "Invite": "runnel.node.invite",
    "Peer": "runnel.node.session",
    "RunSpec": "runnel.node.manifest",
    "SignedManifest": "runnel.node.manifest",
    "check": "runnel.node.check",
    "invited": "runnel.node.session",
    "local": "runnel.node.session",
}


def __getattr__(name: str) -> object:
    """Imports a public name from its home on first use (PEP 562)."""
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value: object = getattr(import_module(home), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """The public names, also those not imported yet."""
    return sorted({*globals(), *__all__})
