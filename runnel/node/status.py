"""status.json: what a running peer says of itself, for `runnel status` and for people."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

from runnel.clock import Clock
from runnel.errors import StorageError
from runnel.node.atomic import write_atomically
from runnel.node.events import (
    Evaluated,
    Event,
    InnerProgress,
    RoundCommitted,
    ScalarRefuted,
    TrafficCounted,
)
from runnel.node.mailbox import ChainView
from runnel.protocols import Traffic

logger = logging.getLogger(__name__)


class StatusFile:
    """Collects what events say, and writes it whole."""

    def __init__(self, path: Path, fixed: dict[str, Any], traffic: Traffic, clock: Clock) -> None:
        self._path, self._traffic, self._clock = path, traffic, clock
        self._refused = False
        self._checks: dict[str, Any] = {}
        self._values: dict[str, Any] = {
            **fixed,
            "state": "training",
            "loss": None,
            "step": 0,
            "tokens_per_s": 0.0,
        }

    def take(self, event: Event) -> None:
        """Notes what an event says of this peer."""
        if isinstance(event, InnerProgress):
            self._values |= {
                "loss": event.loss,
                "step": event.step,
                "tokens_per_s": event.tokens_per_s,
                "forwards_per_s": event.forwards_per_s,
            }
            if event.checked:
                self._checks = {
                    **self._checks,
                    "scalars": event.checked,
                    "share_of_forwards": event.checking_share,
                }
        elif isinstance(event, ScalarRefuted):
            refuted = self._checks.get("refuted", {})
            more = {**refuted, event.peer: refuted.get(event.peer, 0) + 1}
            self._checks = {**self._checks, "refuted": more}
        elif isinstance(event, RoundCommitted):
            self._values |= {
                "uplink_mbit": event.uplink_mbit,
                "sent_slices": event.slices - event.withheld,
                "slices": event.slices,
            }
        elif isinstance(event, Evaluated):
            self._values["validation_loss"] = event.loss

    def reach(self, facts: dict[str, Any]) -> None:
        """Notes how members are reached; see `runnel.node.reach`."""
        self._values["reach"] = facts

    def traffic(self) -> TrafficCounted:
        """Bytes by purpose so far, as an event; any thread."""
        ledger, names = self._traffic, self._traffic.purposes()
        return TrafficCounted(
            unix_s=0.0,
            sent={name: ledger.sent(name) for name in names},
            received={name: ledger.received(name) for name in names},
        )

    def describe(self, chain: ChainView, state: str | None = None) -> dict[str, Any]:
        """Everything known, as `runnel status --json` shows it."""
        if state is not None:
            self._values["state"] = state
        checks = {"spot_checks": self._checks} if self._checks else {}
        return {
            **self._values,
            **checks,
            "round": chain.number,
            "progress": chain.progress,
            "members": list(chain.members),
            "tokens": chain.tokens,
            "sent_bytes": self._traffic.sent(),
            "received_bytes": self._traffic.received(),
            "sent_by_purpose": {
                name: self._traffic.sent(name) for name in self._traffic.purposes()
            },
            "received_by_purpose": {
                name: self._traffic.received(name) for name in self._traffic.purposes()
            },
            "updated_unix_s": self._clock.unix_s(),
        }

    def keep(self, chain: ChainView, state: str | None = None) -> None:
        """Replaces the file; a disk that refuses is named once, until it takes one again. Blocking."""
        content = json.dumps(self.describe(chain, state), allow_nan=False, indent=1).encode()
        try:
            write_atomically(self._path, content, overwrite=True)
        except StorageError as error:
            if not self._refused:
                logger.warning("%s; until then `runnel status` shows what was", error)
            self._refused = True
        else:
            self._refused = False
