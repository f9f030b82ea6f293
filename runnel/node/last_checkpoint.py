"""The checkpoint that ends a run: every member writes it, and all of them write the same bytes."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

from runnel.errors import RunnelError
from runnel.node.checkpoint import read_manifest, write_checkpoint
from runnel.node.durable import DurableLog
from runnel.node.events import Checkpointed, Event, PeerWarned
from runnel.node.manifest import SignedManifest
from runnel.node.outer_state import outer_state

FOLDER_NAME = "checkpoints"

Job = Callable[[Callable[[], Checkpointed]], Awaitable[Checkpointed]]


class LastCheckpoint:
    """Writes the newest outer state to ``FOLDER/checkpoints``, once.

    Args:
        folder: of the run on this machine.
        manifest: of the run.
        log: the peer's own, open.
        disk: runs a job on the thread that writes.
        note: takes events; any thread.
    """

    def __init__(
        self,
        folder: Path,
        manifest: SignedManifest,
        log: DurableLog,
        *,
        disk: Job,
        note: Callable[[Event], None],
    ) -> None:
        self._folder, self._manifest, self._log = folder, manifest, log
        self._disk, self._note = disk, note
        self._begun, self._turn = False, asyncio.Lock()

    async def write(self) -> None:
        """Returns once it is on the disk, whoever asked first; a failure becomes a warning.

        Call it on the I/O thread when the run is over: then the log holds the last state.
        """
        async with self._turn:
            if self._begun:
                return
            self._begun = True
            try:
                written = await self._disk(self._write)
            except (RunnelError, ValueError) as error:  # ValueError: a name no checkpoint can hold
                text = f"the run's last checkpoint is not written: {error}; then run `runnel checkpoint`"
                self._note(PeerWarned(unix_s=0.0, text=text))
            else:
                self._note(written)

    def _write(self) -> Checkpointed:
        content = outer_state(self._manifest, self._log.load(), self._log.read_blob)
        path = write_checkpoint(self._folder / FOLDER_NAME, content, run=self._manifest.encode())
        return Checkpointed(
            unix_s=0.0,
            round=content.meta.round,
            path=str(path),
            digest=read_manifest(path).seal.hex(),
        )
