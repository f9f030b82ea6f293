"""Says that arithmetic is being compiled, when it is: once for each installed version, then numba's cache has it."""

from __future__ import annotations

import functools
import logging

from numba.core import event

log = logging.getLogger(__name__)

_COMPILE = "numba:compile"
"""numba's event of a function that its cache does not hold."""


class _Listener(event.Listener):
    """Writes one line at the first function of ours."""

    def __init__(self) -> None:
        self._told = False

    def on_start(self, event: event.Event) -> None:
        function = getattr((event.data or {}).get("dispatcher"), "py_func", None)
        ours = getattr(function, "__module__", "").startswith("runnel.")
        if ours and not self._told:
            self._told = True
            log.info(
                "compiling arithmetic, once: the first rounds wait for it, up to a minute; later starts"
                " load it"
            )

    def on_end(self, event: event.Event) -> None:
        """Nothing."""


@functools.cache
def tell_when_compiling() -> None:
    """From now on the first function of this process that must be compiled is told of in the log."""
    event.register(_COMPILE, _Listener())
