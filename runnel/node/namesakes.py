"""Runs of one name on one machine: what is said when a launch begins another one beside them."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from runnel.errors import InputFileError
from runnel.node.budget import settled_like
from runnel.node.manifest import SignedManifest
from runnel.node.wording import count_text

if TYPE_CHECKING:
    from runnel.node.manifest import RunSpec
    from runnel.node.place import Local
    from runnel.types import PeerId

logger = logging.getLogger(__name__)

_NAMED = 3
"""Settings that are named; the others are counted."""


def tell_of_namesake(place: Local, owner: PeerId) -> None:
    """Says, in one line, which settings keep a new run apart from the newest of its name, if there is one."""
    newest = _newest(place, owner)
    if newest is None:
        return
    differing = _differing(settled_like(place.spec, newest.spec).published(), newest.spec)
    if not differing:
        return
    named = ", ".join(f"{name} {wanted}, not {had}" for name, wanted, had in differing[:_NAMED])
    more = len(differing) - _NAMED
    logger.warning(
        "a run %s with other settings is here already (%s%s): this starts a new one of the same name;"
        " with the settings of before that one goes on",
        place.spec.run.name,
        named,
        f", and {count_text(more, 'other')}" if more > 0 else "",
    )


def _newest(place: Local, owner: PeerId) -> SignedManifest | None:
    found = []
    for path in (place.machine.home / "runs").glob("*/manifest.bin"):
        try:
            manifest = SignedManifest.read(path)
        except InputFileError:  # a folder of another version, or a damaged one: nothing to compare
            continue
        if manifest.owner == owner and manifest.spec.run.name == place.spec.run.name:
            found.append(manifest)
    return max(found, key=lambda each: each.genesis.created_unix_s, default=None)


def _differing(wanted: RunSpec, had: RunSpec) -> list[tuple[str, object, object]]:
    """Settings by name with both values; not what a founder adds to them."""
    found, before = [], had.model_dump()
    for section, values in wanted.model_dump().items():
        found += [
            (f"{section}.{name}", value, before[section][name])
            for name, value in values.items()
            if value != before[section][name] and (section, name) != ("model", "fingerprint")
        ]
    return found
