"""The documentation builds without a warning, and its pages name what the code has."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from runnel.node import messages

ROOT = Path(__file__).parents[2]


def test_the_documentation_builds_without_a_warning(tmp_path: Path) -> None:
    pytest.importorskip("sphinx", reason="scripts/install --docs brings it")
    outcome = subprocess.run(
        [
            sys.executable,
            "-m",
            "sphinx",
            "-W",
            "--keep-going",
            "-q",
            "-b",
            "html",
            "docs",
            tmp_path,
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=110,
    )
    assert outcome.returncode == 0, outcome.stderr
    assert (tmp_path / "protocol.html").exists()


def test_each_message_type_is_in_the_protocol_page_under_its_number() -> None:
    page = (ROOT / "docs" / "protocol.md").read_text()
    table = page.split("## Control messages")[1].split("\n## ")[0]
    rows = {int(n): name for n, name in re.findall(r"^\| (\d+) \| `(\w+)`", table, re.MULTILINE)}
    sources = (ROOT / "runnel" / "node" / "messages.py").read_text()
    coded = {
        int(n): name
        for name, n in re.findall(r"^    (\w+): lambda \w+: \(\s*(\d+),", sources, re.M)
    }
    assert coded, "messages.py is written differently now: adapt this test"
    assert rows == coded
    assert f"Version {messages.WIRE_VERSION}" in page


def test_the_tables_and_examples_of_the_protocol_page_are_those_of_the_code() -> None:
    command = [sys.executable, str(ROOT / "scripts" / "protocol.py"), "--check"]
    outcome = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=110)
    assert outcome.returncode == 0, f"run scripts/protocol.py: {outcome.stdout}{outcome.stderr}"


def sources() -> str:
    return "\n".join(path.read_text() for path in sorted((ROOT / "runnel").rglob("*.py")))


def test_each_kind_of_stream_is_in_the_protocol_page() -> None:
    coded = set(re.findall(r'^(?:[A-Z]+_)?PROTOCOL = "([a-z]+)"', sources(), re.MULTILINE))
    page = (ROOT / "docs" / "protocol.md").read_text().split("## Streams")[1].split("\n## ")[0]
    assert coded == set(re.findall(r"^\| `([a-z]+)` \|.*\| `runnel/", page, re.MULTILINE))


def test_each_reason_for_refusing_a_peer_is_explained() -> None:
    coded = set(re.findall(r'PeerError\(\s*"([a-z-]+)"', sources()))
    page = (ROOT / "docs" / "bad-input.md").read_text().split("## What strangers send")[1]
    explained = set(re.findall(r"`([a-z-]+)`", page))
    assert coded
    assert sorted(coded - explained) == []


@pytest.mark.parametrize(
    "page", ["ARCHITECTURE.md", "CONTRIBUTING.md", "docs/protocol.md"], ids=lambda p: Path(p).stem
)
def test_each_module_that_a_page_names_exists(page: str) -> None:
    named = set(
        re.findall(
            r"`((?:runnel|tests|docs|scripts|benchmarks)/[\w./-]+)`", (ROOT / page).read_text()
        )
    )
    assert named
    assert sorted(name for name in named if not (ROOT / name).exists()) == []
