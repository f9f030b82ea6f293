"""scripts/install keeps what works and says in one line why it failed; a stub stands for Python and pip."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

STUB = """#!/bin/sh
# `python -m venv FOLDER` puts this stub there; `python -m pip` says what PIP_SAYS holds and fails.
case "$1 $2" in
    "-m venv") mkdir -p "$3/bin"; cp "$0" "$3/bin/python" ;;
    "-m pip") [ -z "$PIP_SAYS" ] || { printf '%b\\n' "$PIP_SAYS"; exit 1; } ;;
    "-c import sys; print"*) echo 3.11 ;;
esac
"""
ROOMY = "#!/bin/sh\necho head\necho disk 0 0 9999999 0 /\n"
CONFLICT = (
    "ERROR: Cannot install runnel because these package versions have conflicting dependencies.\\n"
    "ERROR: ResolutionImpossible: for help visit https://pip.pypa.io"
)
IGNORED = "WARNING: Location 'file:///wheels/' is ignored: it is neither a file nor a directory.\\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of what the script reads, a stub of Python, and a `df` that sees room."""
    copy = tmp_path / "copy"
    (copy / "scripts").mkdir(parents=True)
    for name in ("scripts/install", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, copy / name)
    for name, text in (("python-stub", STUB), ("df", ROOMY)):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    return copy


def install(folder: Path, *arguments: str, pip_says: str = "") -> subprocess.CompletedProcess[str]:
    places = {"RUNNEL_PYTHON": str(folder.parent / "python-stub"), "TMPDIR": str(folder.parent)}
    path = f"{folder.parent}{os.pathsep}{os.environ['PATH']}"
    return subprocess.run(
        [folder / "scripts" / "install", *arguments],
        env={**os.environ, **places, "PATH": path, "PIP_SAYS": pip_says},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def test_a_failed_first_install_leaves_no_environment(folder: Path) -> None:
    assert install(folder, pip_says="ERROR: it failed").returncode == 1
    assert not (folder / ".venv").exists()


def test_a_failed_extra_set_leaves_the_environment_and_is_tried_again(folder: Path) -> None:
    assert install(folder).returncode == 0
    (folder / ".venv" / "mine").touch()
    assert install(folder, "--dev", pip_says=CONFLICT).returncode == 1
    assert (folder / ".venv" / "mine").exists()
    assert install(folder, pip_says="ERROR: not to be asked").returncode == 0
    assert install(folder, "--dev").returncode == 0
    assert (folder / ".venv" / "mine").exists()


def test_a_failed_update_leaves_the_environment_and_is_tried_again(folder: Path) -> None:
    assert install(folder).returncode == 0
    (folder / ".venv" / "mine").touch()
    with (folder / "constraints.txt").open("a") as file:
        file.write("# another version\n")
    for _ in range(2):
        assert install(folder, pip_says=CONFLICT).returncode == 1
        assert (folder / ".venv" / "mine").exists()


def test_what_an_interrupted_first_install_left_is_made_anew(folder: Path) -> None:
    (folder / ".venv" / ".runnel-install").mkdir(parents=True)
    (folder / ".venv" / "half").touch()
    assert install(folder).returncode == 0
    assert not (folder / ".venv" / "half").exists()


@pytest.mark.parametrize(
    ("pip_says", "words"),
    [
        (CONFLICT, "the package index did not have, or could not give"),
        (IGNORED + CONFLICT, "the package index did not have, or could not give"),
        (
            "ERROR: No matching distribution found for blake3>=1.0",
            "distribution found for blake3>=",
        ),
        ("WARNING: Retrying (Retry(total=4)) after ConnectTimeoutError", "a download failed"),
        ("OSError: [Errno 28] No space left on device", "the disk filled up"),
        ("ERROR: something else", "ERROR: something else"),
    ],
)
def test_a_failure_is_explained_in_one_line(folder: Path, pip_says: str, words: str) -> None:
    told = install(folder, pip_says=pip_says).stderr.splitlines()
    assert len(told) == 2  # what begins, and what came of it
    assert words in told[-1]
    assert "conflicting dependencies" not in told[-1]
