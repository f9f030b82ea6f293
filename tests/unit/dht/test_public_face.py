from __future__ import annotations

import importlib
import subprocess
import sys

import pytest

import runnel.dht as dht


def test_every_public_name_is_there_and_listed() -> None:
    assert sorted(dht.__all__) == sorted(dht._LAZY)
    for name in dht.__all__:
        assert name in dir(dht)


@pytest.mark.parametrize(
    "name", [name for name, home in dht._LAZY.items() if not home.endswith("hivemind")]
)
def test_names_resolve_to_their_own(name: str) -> None:
    assert getattr(dht, name) is getattr(importlib.import_module(dht._LAZY[name]), name)


def test_unknown_names_are_attribute_errors() -> None:
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = dht.no_such_name


def test_importing_the_package_imports_nothing_heavy() -> None:
    program = (
        "import sys, runnel.dht; runnel.dht.Identity, runnel.dht.MemoryTransport, runnel.dht.pack;"
        "print([name for name in ('torch', 'numpy', 'numba', 'hivemind') if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"
