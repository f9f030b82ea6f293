"""Which implementation does the arithmetic."""

from __future__ import annotations

import logging
import subprocess
import sys
from collections.abc import Iterator

import pytest

from runnel.errors import ConfigError
from runnel.kernels import dispatch, implementation, require_arithmetic, warm_up


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv("RUNNEL_KERNELS", raising=False)
    dispatch._load.cache_clear()
    yield
    dispatch._load.cache_clear()


def test_numba_is_chosen_where_it_can_be_imported() -> None:
    assert implementation().name == warm_up() == "numba"


def test_the_environment_and_an_argument_force_the_reference(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert implementation("reference").name == "reference"
    monkeypatch.setenv("RUNNEL_KERNELS", "reference")
    assert implementation().name == "reference"
    assert implementation("numba").name == "numba"


def test_both_implementations_hold_the_same_codecs() -> None:
    for kind in ("blocks", "sparse", "halves", "rotations", "sketches"):
        fast, slow = (getattr(implementation(by), kind) for by in ("numba", "reference"))
        assert set(fast) == set(slow)


def test_without_numba_the_reference_is_chosen_and_said_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def missing() -> None:
        raise ImportError("No module named 'numba'")

    monkeypatch.setattr(dispatch, "_numba", missing)
    with caplog.at_level(logging.INFO):
        assert implementation().name == "reference"
        assert implementation().name == "reference"
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert "numba is missing" in caplog.text
    with pytest.raises(ConfigError, match="cannot be imported"):
        implementation("numba")


def test_an_unknown_implementation_is_a_config_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RUNNEL_KERNELS", "fortran")
    with pytest.raises(ConfigError, match=r"'fortran'.*numba, reference"):
        implementation()


def test_importing_the_package_imports_no_numba() -> None:
    code = (
        "import sys, runnel.kernels, runnel.optim.codecs, runnel.optim.outer, "
        "runnel.verification.aggregators, runnel.verification.screening\n"
        "sys.exit('numba' in sys.modules or 'torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_compiled_code_lets_other_threads_run() -> None:
    numba = implementation("numba")
    kernels = [
        getattr(block, field)
        for block in numba.blocks.values()
        for field in ("encode", "decode", "accumulate", "canonical")
    ]
    kernels += [
        getattr(some, f) for some in numba.halves.values() for f in ("encode", "accumulate")
    ]
    kernels += [getattr(some.sent, f) for some in numba.sparse.values() for f in ("send", "add")]
    kernels += [numba.sparse["random-k"].places.read, numba.sparse["top-k"].places.canonical]
    kernels += [numba.rotations["hadamard"].forward, numba.rotations["hadamard"].backward]
    kernels += [numba.sketches["count-sketch"].sketch, numba.sketches["count-sketch"].read]
    kernels += [getattr(numba.elements, field) for field in type(numba.elements).__slots__]
    assert all(kernel.targetoptions["nogil"] for kernel in kernels)
    assert not any(
        kernel.targetoptions.get(option)
        for kernel in kernels
        for option in ("fastmath", "parallel")
    )
    assert all(len(kernel.signatures) == 1 for kernel in kernels)


def test_what_cannot_be_had_is_told_without_loading_it(monkeypatch: pytest.MonkeyPatch) -> None:
    require_arithmetic()
    monkeypatch.setenv("RUNNEL_KERNELS", "fortran")
    with pytest.raises(ConfigError, match=r"'fortran'.*numba, reference"):
        require_arithmetic()
    monkeypatch.setenv("RUNNEL_KERNELS", "numba")
    monkeypatch.setattr(dispatch, "find_spec", lambda _: None)
    with pytest.raises(ConfigError, match="not installed"):
        require_arithmetic()
