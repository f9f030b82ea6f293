"""Train models together over home connections.

The names below are the whole public interface. They are imported when first used, so that
``import runnel`` costs milliseconds and does not load torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from runnel.errors import RunnelError
    from runnel.node.check import check
    from runnel.node.export import load_checkpoint
    from runnel.node.invite import Invite
    from runnel.node.session import Peer, invited, local

__version__ = "0.1.0"

__all__ = [
    "Invite",
    "Peer",
    "RunnelError",
    "__version__",
    "check",
    "invited",
    "load_checkpoint",
    "local",
]

_HOMES = {
    "Invite": "runnel.node.invite",
    "Peer": "runnel.node.session",
    "RunnelError": "runnel.errors",
    "check": "runnel.node.check",
    "invited": "runnel.node.session",
    "load_checkpoint": "runnel.node.export",
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
