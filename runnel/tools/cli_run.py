"""Where the commands meet the peer: everything heavy is imported here, and only when it is called."""

from __future__ import annotations

import os
import sys
import threading
from concurrent.futures import Future, ThreadPoolExecutor, wait
from importlib import import_module
from pathlib import Path
from types import ModuleType

from rich.console import Console

from runnel.errors import EXIT_INTERRUPTED
from runnel.node.config import LaunchPlan
from runnel.tools.cli_screen import Screen
from runnel.tools.cli_signals import exit_on_interrupt, stop_on_signals

_LOOK_S = 0.1


def run(plan: LaunchPlan) -> None:
    """Trains until the run ends or somebody presses Ctrl-C, and says what came of it.

    Raises:
        RunnelError: what the peer could not do, sorted by who must act.
        KeyboardInterrupt: a signal came before this peer took part; everything is closed again.
    """
    plan.machine.prepare()
    with exit_on_interrupt():
        from runnel.node.approach import approach

    stop, loading = threading.Event(), _Loading("runnel.node.volunteer")  # torch takes seconds
    try:
        with (
            stop_on_signals(stop),
            Screen(Console(stderr=True), log_level=plan.machine.log_level) as it,
        ):
            way = approach(plan, stop, loading.begin)
            try:
                train = loading.result(stop).run_peer
            except BaseException:
                way.entrance.close()
                raise
            summary = train(plan, way, stop=stop, on_event=it.on_event, on_invite=show_invite)
    except KeyboardInterrupt:
        print("runnel: interrupted before it took part in the run", file=sys.stderr, flush=True)
        if loading.is_underway:  # nothing ends an import, and the interpreter would wait for it
            os._exit(EXIT_INTERRUPTED)
        raise
    print(summary)


class _Loading:
    """Imports a module in a thread of its own, from `begin` on."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._module: Future[ModuleType] | None = None

    def begin(self) -> None:
        """Starts; nobody has to wait for its end."""
        pool = ThreadPoolExecutor(1, "runnel-loading")
        self._module = pool.submit(import_module, self._name)
        pool.shutdown(wait=False)

    @property
    def is_underway(self) -> bool:
        """Whether it has begun and not ended."""
        return self._module is not None and not self._module.done()

    def result(self, stop: threading.Event) -> ModuleType:
        """The module, once it is there; KeyboardInterrupt once `stop` is set."""
        if self._module is None:
            self.begin()
        assert self._module is not None  # begun
        while not wait([self._module], _LOOK_S).done:
            if stop.is_set():
                raise KeyboardInterrupt
        return self._module.result()


def show_invite(invite: str) -> None:
    """Prints what the owner sends to others, on stdout."""
    print(f"Others join with:\n\n  runnel join {invite}\n", flush=True)


def save_checkpoint(folder: Path, out: Path) -> Path:
    """Writes the newest certified state of the run in `folder` to `out`; the path of what was written.

    Raises:
        RunnelError: there is none, or it cannot be written.
    """
    from runnel.node.export import save_checkpoint as save

    return save(folder, out)


def sample_text(folder: Path, *, prompt: str, tokens: int, seed: int) -> str:
    """`prompt` continued by `tokens` tokens from the newest state of the run in `folder`.

    `folder` may also be one that `save_checkpoint` wrote.

    Raises:
        RunnelError: there is no state yet, it is damaged, or the model makes no text.
    """
    from runnel.node.export import sample_text as sample

    return sample(folder, prompt=prompt, tokens=tokens, seed=seed)


def export_log(folder: Path, out: Path) -> str:
    """What was written to `out` of the shared-seed run in `folder`, in words.

    Raises:
        RunnelError: the run is none, its history is not whole, or `out` cannot be written.
    """
    from runnel.node.seed_export import export_log as export

    return export(folder, out)


def export_hf(folder: Path, out: Path, source: str) -> str:
    """What was written to the folder `out` of the run in `folder`, in words.

    Raises:
        RunnelError: the run is none of kind hf, its source is not here, or `out` cannot be written.
    """
    from runnel.node.export import export_hf as export

    return export(folder, out, source)


def apply_log(base: Path, log: Path, out: Path) -> str:
    """What came of a base and a log of seeds, after it was written to `out`.

    Raises:
        RunnelError: one of them is missing, damaged or not for the other, or `out` cannot be written.
    """
    from runnel.node.seed_history import apply_log as rebuild

    made = rebuild(base, log, out)
    return f"wrote {made.path}: {made.steps} steps, {made.directions} directions, state {made.state.hex()}"
