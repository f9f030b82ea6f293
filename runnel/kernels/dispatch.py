"""Chooses who does the arithmetic: numba's compiled code where it can be imported, else plain numpy.

Both give the same bits; numpy takes roughly five to ten times as long. The environment variable
``RUNNEL_KERNELS`` (``numba``, ``reference``) or an argument decides otherwise.
"""

from __future__ import annotations

import functools
import logging
import os
from collections.abc import Iterator, Mapping
from importlib import import_module
from importlib.util import find_spec
from typing import TypeVar

from runnel.errors import ConfigError
from runnel.kernels.signatures import ElementwiseKernels, Implementation

T = TypeVar("T")

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


def require_arithmetic() -> None:
    """Checks what the environment chooses, without loading it.

    Raises:
        ConfigError: the name is unknown, or numba is asked for and is not installed.
    """
    choice = os.environ.get(ENVIRONMENT_VARIABLE) or ""
    _require_known(choice)
    if choice == "numba" and find_spec("numba") is None:
        raise ConfigError(_missing("it is not installed"))


def warm_up(*names: str) -> str:
    """Loads or compiles now what single values need, and what these codecs and outer optimizers do.

    Gives the name of the implementation.

    Those without kernels of their own (fp32, nesterov) are fine, and so are numbers behind a name (top-k:64).
    l-greco chooses from all codecs with blocks; a count sketch's cells are encoded by e3m0.
    """
    loaded = implementation()
    for given in names:
        name = given.partition(":")[0]
        parts = [*name.split("+"), *(loaded.blocks if name.startswith("l-greco+") else ())]
        parts += ["e3m0"] if name in loaded.sketches else []
        for part in parts:
            for kind in (
                loaded.blocks,
                loaded.sparse,
                loaded.halves,
                loaded.rotations,
                loaded.sketches,
            ):
                kind.get(part)
            loaded.steps.get(part)
    return loaded.name


class _OnDemand(Mapping[str, T]):
    """Kernels by the codec's name, each loaded or compiled when it is first asked for."""

    def __init__(self, homes: Mapping[str, tuple[str, str]]) -> None:
        self._homes = homes

    def __getitem__(self, name: str) -> T:
        module, attribute = self._homes[name]
        found: T = getattr(import_module(f"runnel.kernels.{module}"), attribute)
        return found

    def __iter__(self) -> Iterator[str]:
        return iter(self._homes)

    def __len__(self) -> int:
        return len(self._homes)


@functools.cache
def _load(choice: str) -> Implementation:
    _require_known(choice)
    if choice == "reference":
        log.info("arithmetic by plain numpy, as asked for: several times slower than numba")
        return _reference()
    try:
        loaded = _numba()
    except ImportError as error:
        if choice:
            raise ConfigError(_missing(str(error))) from error
        log.warning("arithmetic by plain numpy, several times slower: numba is missing (%s)", error)
        return _reference()
    log.debug("arithmetic by numba")
    return loaded


def _require_known(choice: str) -> None:
    if choice not in ("", *NAMES):
        raise ConfigError(
            f"{ENVIRONMENT_VARIABLE}={choice!r} names no arithmetic; use one of {', '.join(NAMES)}"
        )


def _missing(why: str) -> str:
    return f"{ENVIRONMENT_VARIABLE}=numba, but numba cannot be imported ({why}); install it"


def _numba() -> Implementation:
    from runnel.kernels.first_compile import tell_when_compiling

    tell_when_compiling()
    from runnel.kernels import elementwise_numba

    return _assembled("numba", elementwise_numba.ELEMENTS)


def _reference() -> Implementation:
    from runnel.kernels import elementwise_reference

    return _assembled("reference", elementwise_reference.ELEMENTS)


def _assembled(by: str, elements: ElementwiseKernels) -> Implementation:
    e3m0 = "e3m0_numba" if by == "numba" else "blockwise_reference"
    blocks = {
        "int8": (f"blockwise_{by}", "INT8"),
        "int4": (f"blockwise_{by}", "INT4"),
        "e3m0": (e3m0, "E3M0"),
        "two-bit": (f"few_bits_{by}", "TWO_BIT"),
        "sign": (f"few_bits_{by}", "SIGN"),
    }
    sparse = {"top-k": (f"top_k_{by}", "TOP_K"), "random-k": (f"random_k_{by}", "RANDOM_K")}
    halves = {"fp16": (f"halves_{by}", "FP16"), "bf16": (f"halves_{by}", "BF16")}
    rotations = {"hadamard": (f"hadamard_{by}", "HADAMARD")}
    sketches = {"count-sketch": (f"count_sketch_{by}", "COUNT_SKETCH")}
    return Implementation(
        name=by,
        blocks=_OnDemand(blocks),
        sparse=_OnDemand(sparse),
        halves=_OnDemand(halves),
        rotations=_OnDemand(rotations),
        sketches=_OnDemand(sketches),
        steps=_OnDemand(dict.fromkeys(("adam", "one-bit-adam"), (f"adam_{by}", "adam_step"))),
        elements=elements,
    )
