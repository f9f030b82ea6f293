"""The way to a run without what trains: network, manifest and text, while others load torch.

Nothing here imports torch, so that the seconds of both pass beside each other.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass

from runnel.errors import ConfigError
from runnel.node.config import LaunchPlan
from runnel.node.corpus import Corpus
from runnel.node.entrance import Entrance, enter, find_donors
from runnel.node.manifest import RunSpec
from runnel.node.place import Joined, Local
from runnel.node.text_source import corpus_of_run, own_corpus


@dataclass(frozen=True, slots=True)
class Approach:
    """A started network, what is known of the run, and the text to train on. Close the entrance in the end."""

    entrance: Entrance
    corpus: Corpus

    @property
    def spec(self) -> RunSpec:
        """Of the run."""
        return self.entrance.spec


def approach(
    plan: LaunchPlan, stop: threading.Event, meanwhile: Callable[[], None] | None = None
) -> Approach:
    """Reaches the run that `plan` founds or joins; setting `stop` ends every wait for others.

    `meanwhile` is called before the first wait for others, once nothing on this machine is wrong.

    Raises:
        RunnelError: nothing can be started or reached, or the run's model is its author's own.
        KeyboardInterrupt: `stop` was set.
    """
    if plan.spec is not None:
        _check_kind(plan.spec, "launch")
    own = own_corpus(plan.spec) if plan.spec is not None else None
    entrance = enter(_place(plan, own), meanwhile, stop)
    try:
        _check_kind(entrance.spec, "join")
        return Approach(entrance, _corpus(entrance, own, stop))
    except BaseException:
        entrance.close()
        raise


def _place(plan: LaunchPlan, own: Corpus | None) -> Local | Joined:
    machine = plan.machine
    if plan.invite is not None:
        return Joined(invite=plan.invite, machine=machine)
    if plan.spec is None or own is None:
        raise ConfigError("expected either a run file to launch or an invite to join")
    return Local(spec=plan.spec, machine=machine, data_root=own.root)


def _check_kind(spec: RunSpec, command: str) -> None:
    if spec.model.kind == "custom":
        raise ConfigError(
            f"the run has a model of its own, expected the built-in one: {command} it from its"
            f" author's program (runnel.Peer), not with `runnel {command}`"
        )


def _corpus(entrance: Entrance, own: Corpus | None, stop: threading.Event) -> Corpus:
    manifest = entrance.manifest
    run = manifest.run_id if manifest else b""
    return corpus_of_run(entrance, own, lambda: find_donors(entrance, run), stop)
