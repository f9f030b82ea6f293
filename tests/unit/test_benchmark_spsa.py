"""The benchmarks of shared seeds run, and say what they promise."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import perturb, spsa
from benchmarks.spsa_task import read_halves
from runnel.kernels import perturb_torch

WORDS = b"The quick Brown fox jumps over the Lazy dog; "


def test_bits_agree_and_every_operation_runs() -> None:
    assert perturb.bits_agree()
    found = perturb.measure(1 << 14, 1, lambda line: None)
    assert found["identical_bits"]
    assert all(value > 0 for value in found.values())


def test_a_difference_between_implementations_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(perturb_torch, "materialise", lambda *_, **__: None)
    assert not perturb.bits_agree()


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_bytes(WORDS * 4000)
    return path


def test_the_second_half_is_lowercased_and_keeps_its_end_for_validation(text: Path) -> None:
    halves = read_halves(text)
    assert halves.vocab == len(set(WORDS + WORDS.lower()))
    assert set(halves.second) < set(halves.first) | set(halves.second)
    assert len(set(halves.second)) == len(set(WORDS.lower()))
    assert halves.second.size == 9 * halves.validation.size


@pytest.mark.slow
def test_each_method_learns_counts_its_bytes_and_can_be_caught_up_with(
    text: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(spsa, "QUICK_SHARE", 50)
    assert spsa.main(["--quick", "--json", "--text", str(text)]) == 0
    found = json.loads(capsys.readouterr().out)
    for name in spsa.METHODS:
        assert found[name]["late_joiner_identical"]
        assert found[name]["log_bytes"] > 0
        assert found[name]["loss"] < found["start_loss"] + 0.1
    assert found["just_one_byte"]["upload_bytes"] == 16
    assert found["exact"]["upload_bytes"] == 64
    assert found["fedkseed"]["upload_bytes"] == 48
    assert found["ferret"]["loss"] < found["start_loss"]
    assert found["streaming_e3m0"]["loss"] < found["start_loss"]
    assert found["streaming_e3m0"]["upload_bytes"] > 100 * found["ferret"]["upload_bytes"] / 8
    assert "streaming_e3m0" in spsa.picture(found)
