"""Chooses who does the arithmetic: numba's compiled code where it can be imported, else plain numpy.

Both give the same bits; numpy takes roughly five to ten times as long. The environment variable
``RUNNEL_KERNELS`` (``numba``, ``reference``) or an argument decides otherwise.
"""

from __future__ import annotations

import functools
import logging
import os

from runnel.errors import ConfigError
from runnel.kernels.signatures import Implementation

log = logging.getLogger(__name__)

ENVIRONMENT_VARIABLE = "RUNNEL_KERNELS"
NAMES = ("numba", "reference")


def implementation(name: str | None = None) -> Implementation:
    """The arithmetic called `name`; by default what the environment names, else the fastest there is.

    The first call for numba loads compiled code from numba's cache (0.3 s) or compiles it (some
    seconds), holding the interpreter lock now and then; later calls are dictionary look-ups.

    Raises:
        ConfigError: the name is unknown, or numba is asked for and cannot be imported.
    """
    return _load(name or os.environ.get(ENVIRONMENT_VARIABLE) or "")


def warm_up() -> str:
    """Loads or compiles everything now; the name of the implementation. For the codec thread's start."""
    return implementation().name


@functools.cache
def _load(choice: str) -> Implementation:
    if choice not in ("", *NAMES):
        raise ConfigError(
            f"{ENVIRONMENT_VARIABLE}={choice!r} names no arithmetic; use one of {', '.join(NAMES)}"
        )
    if choice == "reference":
        log.info("arithmetic by plain numpy, as asked for: several times slower than numba")
        return _reference()
    try:
        loaded = _numba()
    except ImportError as error:
        if choice:
            raise ConfigError(
                f"{ENVIRONMENT_VARIABLE}=numba, but numba cannot be imported ({error}); install it"
            ) from error
        log.warning("arithmetic by plain numpy, several times slower: numba is missing (%s)", error)
        return _reference()
    log.debug("arithmetic by numba")
    return loaded


def _numba() -> Implementation:
    from runnel.kernels import (
        blockwise_numba,
        e3m0_numba,
        elementwise_numba,
        few_bits_numba,
        top_k_numba,
    )

    blocks = {
        "int8": blockwise_numba.INT8,
        "int4": blockwise_numba.INT4,
        "e3m0": e3m0_numba.E3M0,
        "two-bit": few_bits_numba.TWO_BIT,
        "sign": few_bits_numba.SIGN,
    }
    sparse = {"top-k": top_k_numba.TOP_K}
    return Implementation("numba", blocks, sparse, elementwise_numba.ELEMENTS)


def _reference() -> Implementation:
    from runnel.kernels import (
        blockwise_reference,
        elementwise_reference,
        few_bits_reference,
        top_k_reference,
    )

    blocks = {
        "int8": blockwise_reference.INT8,
        "int4": blockwise_reference.INT4,
        "e3m0": blockwise_reference.E3M0,
        "two-bit": few_bits_reference.TWO_BIT,
        "sign": few_bits_reference.SIGN,
    }
    sparse = {"top-k": top_k_reference.TOP_K}
    return Implementation("reference", blocks, sparse, elementwise_reference.ELEMENTS)
