"""Checkpoints: complete or not there, the same bytes for the same state, nothing else accepted."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runnel.errors import InputFileError, StorageError
from runnel.hashing import digest
from runnel.node.checkpoint import (
    CheckpointContent,
    CheckpointMeta,
    latest_checkpoint,
    read_checkpoint,
    read_manifest,
    write_checkpoint,
)
from runnel.node.checkpoint_manifest import CheckpointManifest
from runnel.node.checkpoint_tensors import FileEntry
from runnel.protocols import Float32
from runnel.types import Digest

ONE_TWO: Float32 = np.array([1, 2], dtype=np.float32)


def meta(round_number: int = 7) -> CheckpointMeta:
    return CheckpointMeta(
        run_id=digest(b"run"),
        round=round_number,
        tokens=123_456,
        record_hash=digest(b"record"),
        state_root=digest(b"state"),
    )


def content(round_number: int = 7, seed: int = 0) -> CheckpointContent:
    rng = np.random.default_rng(seed)
    parameters: dict[str, Float32] = {
        "head.weight": rng.standard_normal((3, 5), dtype=np.float32),
        "blocks.0.norm": rng.standard_normal(4, dtype=np.float32),
        "scale": np.array(0.5, dtype=np.float32),
        "empty": np.zeros((0, 3), dtype=np.float32),
        "größe/β": np.full(1, np.pi, dtype=np.float32),
    }
    momentum: dict[str, Float32] = {name: -2 * value for name, value in parameters.items()}
    return CheckpointContent(parameters, momentum, meta(round_number))


def assert_same(seen: CheckpointContent, expected: CheckpointContent) -> None:
    assert seen.meta == expected.meta
    for ours, theirs in (
        (seen.parameters, expected.parameters),
        (seen.momentum, expected.momentum),
    ):
        assert set(ours) == set(theirs)
        for name, tensor in ours.items():
            assert tensor.dtype == np.float32
            assert tensor.shape == theirs[name].shape
            assert tensor.tobytes() == theirs[name].tobytes()


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_what_is_written_is_read_back_bit_for_bit(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path, content())
    assert_same(read_checkpoint(folder), content())
    assert_same(read_checkpoint(tmp_path), content())
    assert latest_checkpoint(tmp_path) == folder
    assert folder.name.startswith("round-00000007-")
    assert folder.name.endswith(read_manifest(folder).seal.hex()[:16])


@settings(max_examples=25)
@given(
    st.dictionaries(
        st.text(min_size=1, max_size=8).filter(lambda name: name != "__metadata__"),
        st.tuples(st.lists(st.integers(0, 4), max_size=3), st.booleans()),
        max_size=5,
    )
)
def test_any_names_and_shapes_come_back(
    tmp_path_factory: pytest.TempPathFactory, shapes: dict[str, tuple[list[int], bool]]
) -> None:
    parameters: dict[str, Float32] = {
        name: np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
        for name, (shape, _) in shapes.items()
    }
    momentum = {name: parameters[name] + 1 for name, (_, has) in shapes.items() if has}
    written = CheckpointContent(parameters, momentum, meta(-1))
    folder = write_checkpoint(tmp_path_factory.mktemp("any"), written)
    assert folder.name.startswith("initial-")
    assert_same(read_checkpoint(folder), written)


def test_other_programs_read_the_parameters_under_their_own_names(tmp_path: Path) -> None:
    from safetensors.numpy import load_file

    folder = write_checkpoint(tmp_path, content())
    parameters = load_file(folder / "parameters.safetensors")
    momentum = load_file(folder / "momentum.safetensors")
    assert set(parameters) == set(content().parameters)
    assert set(momentum) == {f"outer.momentum/{name}" for name in parameters}
    assert parameters["head.weight"].tobytes() == content().parameters["head.weight"].tobytes()


def test_equal_states_make_equal_bytes_in_whatever_order_and_layout(tmp_path: Path) -> None:
    ours, theirs = content(), content()
    reordered = CheckpointContent(
        dict(sorted(theirs.parameters.items(), reverse=True)),
        {name: np.array(value, order="F") for name, value in theirs.momentum.items()},
        theirs.meta,
    )
    first = write_checkpoint(tmp_path / "a", ours)
    second = write_checkpoint(tmp_path / "b", reordered)
    assert first.name == second.name
    assert files_of(first) == files_of(second)


def test_the_format_of_known_values_never_changes(tmp_path: Path) -> None:
    """If this fails, the format has changed: give it a new version."""
    known = CheckpointContent({"w": ONE_TWO}, {}, meta(0))
    folder = write_checkpoint(tmp_path, known)
    header = b'{"w":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}'
    header += b" " * (-len(header) % 8)
    expected = len(header).to_bytes(8, "little") + header + ONE_TWO.tobytes()
    assert files_of(folder)["parameters.safetensors"] == expected
    manifest = json.loads(files_of(folder)["manifest.json"])
    seal = manifest.pop("seal")
    assert manifest == {
        "format": "runnel-checkpoint",
        "version": 1,
        "run": digest(b"run").hex(),
        "round": 0,
        "tokens": 123_456,
        "record": digest(b"record").hex(),
        "state_root": digest(b"state").hex(),
        "files": {
            "parameters.safetensors": {
                "blake3": digest(expected).hex(),
                "size_bytes": len(expected),
            }
        },
        "parameters": {"w": [2]},
        "momentum": {},
    }
    assert folder.name == f"round-00000000-{seal[:16]}"


def test_earlier_ones_are_kept_as_told_and_latest_is_the_last_written(tmp_path: Path) -> None:
    written = []
    for number in (1, 2, 3, 4):
        written.append(write_checkpoint(tmp_path, content(number), keep=2))
        os.utime(written[-1], ns=(number, number))
    assert sorted(p for p in tmp_path.iterdir() if p.is_dir()) == written[1:]
    rolled_back = write_checkpoint(tmp_path, content(1, seed=9), keep=0)
    assert [p for p in tmp_path.iterdir() if p.is_dir()] == [rolled_back]
    assert latest_checkpoint(tmp_path) == rolled_back


def test_other_files_in_the_folder_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "round-notes").mkdir()
    (tmp_path / "notes.txt").write_text("mine")
    write_checkpoint(tmp_path, content(), keep=0)
    assert (tmp_path / "round-notes").is_dir()
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_the_same_state_twice_is_one_checkpoint_and_heals_a_damaged_one(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path, content())
    before = files_of(folder)
    assert write_checkpoint(tmp_path, content()) == folder
    (folder / "momentum.safetensors").write_bytes(b"rotten")
    assert write_checkpoint(tmp_path, content()) == folder
    assert files_of(folder) == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["latest", folder.name]


def write_on_a_failing_disk(directory: Path, written: CheckpointContent, calls: int) -> None:
    """Writes on a disk that refuses after `calls` writes and syncs."""
    left = calls

    def counted(original: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any) -> Any:
            nonlocal left
            left -= 1
            if left < 0:
                raise OSError(28, "No space left on device")
            return original(*args)

        return call

    with pytest.MonkeyPatch.context() as patched:
        for name in ("write", "fsync"):
            patched.setattr(os, name, counted(getattr(os, name)))
        write_checkpoint(directory, written)


def test_a_disk_that_fails_at_any_point_leaves_the_previous_one_intact(tmp_path: Path) -> None:
    for calls in range(100):
        directory = tmp_path / str(calls)
        previous = write_checkpoint(directory, content(1))
        before = files_of(previous)
        with contextlib.suppress(StorageError):
            write_on_a_failing_disk(directory, content(2), calls)
            break
        assert files_of(previous) == before
        latest = read_checkpoint(directory)
        assert_same(latest, content(latest.meta.round))
        assert not [path for path in directory.iterdir() if path.name.startswith(".")]
        assert_same(read_checkpoint(write_checkpoint(directory, content(2))), content(2))
    assert 10 < calls < 99
    with pytest.raises(StorageError, match=r"(?i)no space left on device"):
        write_on_a_failing_disk(tmp_path / "full", content(2), 0)
    assert read_checkpoint(tmp_path / str(calls)).meta.round == 2


def test_what_a_crash_left_behind_is_never_read_and_goes_with_the_next_write(
    tmp_path: Path,
) -> None:
    folder = write_checkpoint(tmp_path, content(1))
    for leftover in (".new-0123456789ab", ".old-0123456789ab"):
        shutil.copytree(folder, tmp_path / leftover)
        (tmp_path / leftover / "parameters.safetensors").write_bytes(b"half")
    assert_same(read_checkpoint(tmp_path), content(1))
    write_checkpoint(tmp_path, content(2))
    assert not [p.name for p in tmp_path.iterdir() if p.name.startswith(".")]


# What is not ours to write


@pytest.mark.parametrize(
    ("parameters", "momentum", "message"),
    [
        ({"w": np.zeros(2)}, {}, "'w' is float64, expected float32"),
        ({"__metadata__": np.zeros(2, np.float32)}, {}, "safetensors keeps that name"),
        ({"outer.momentum/w": np.zeros(2, np.float32)}, {}, "begins like a momentum"),
        ({}, {"w": np.zeros(2, np.float32)}, "its parameter None"),
        (
            {"w": np.zeros(3, np.float32)},
            {"w": np.zeros(2, np.float32)},
            r"shape \(2,\), its parameter \(3,\)",
        ),
    ],
)
def test_a_state_that_no_run_has_is_refused_and_leaves_nothing(
    tmp_path: Path, parameters: Any, momentum: Any, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        write_checkpoint(tmp_path, CheckpointContent(parameters, momentum, meta()))
    assert list(tmp_path.iterdir()) == []


def test_a_negative_number_to_keep_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="keep -1"):
        write_checkpoint(tmp_path, content(), keep=-1)


def test_a_place_in_no_run_is_refused() -> None:
    short = Digest(b"short")
    with pytest.raises(ValueError, match="32 bytes each"):
        CheckpointMeta(run_id=digest(), round=0, tokens=0, record_hash=short, state_root=digest())
    with pytest.raises(ValueError, match="round -2"):
        meta(-2)


# What is not ours to read


@settings(max_examples=60)
@given(st.data())
def test_one_changed_or_missing_byte_anywhere_is_refused(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    folder = write_checkpoint(tmp_path_factory.mktemp("damage"), content())
    path = folder / data.draw(st.sampled_from(sorted(files_of(folder))), label="file")
    original = path.read_bytes()
    position = data.draw(st.integers(0, len(original) - 1), label="position")
    if data.draw(st.booleans(), label="truncate"):
        path.write_bytes(original[:position])
    else:
        changed = bytearray(original)
        changed[position] ^= data.draw(st.integers(1, 255), label="bits")
        path.write_bytes(changed)
    with pytest.raises(InputFileError) as caught:
        read_checkpoint(folder)
    assert "\n" not in str(caught.value)
    assert str(folder) in str(caught.value)


@pytest.mark.parametrize("name", ["parameters.safetensors", "momentum.safetensors"])
def test_a_missing_file_is_named(tmp_path: Path, name: str) -> None:
    folder = write_checkpoint(tmp_path, content())
    (folder / name).unlink()
    with pytest.raises(InputFileError, match=rf"{name} is missing"):
        read_checkpoint(folder)


def test_a_link_to_another_place_is_no_file_of_a_checkpoint(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "checkpoints", content())
    secret = tmp_path / "elsewhere"
    (folder / "parameters.safetensors").rename(secret)
    (folder / "parameters.safetensors").symlink_to(secret)
    with pytest.raises(InputFileError, match="no plain file"):
        read_checkpoint(folder)


def forged(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Changes the manifest and seals it again, as somebody who knows the format would."""
    path = folder / "manifest.json"
    values = json.loads(path.read_text())
    del values["seal"]
    change(values)
    body = json.dumps(values, indent=1, sort_keys=True, ensure_ascii=False) + "\n"
    values["seal"] = digest(body.encode()).hex()
    path.write_text(json.dumps(values, indent=1, sort_keys=True, ensure_ascii=False) + "\n")


def test_a_manifest_sealed_by_hand_is_read(tmp_path: Path) -> None:
    """So that the refusals below are for what they claim, not for the forging."""
    folder = write_checkpoint(tmp_path, content())
    forged(folder, lambda values: values.update(tokens=9))
    assert read_checkpoint(folder).meta.tokens == 9


def _renamed(name: str) -> Callable[[dict[str, Any]], None]:
    def change(values: dict[str, Any]) -> None:
        values["files"][name] = values["files"].pop("parameters.safetensors")

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_renamed("../elsewhere.safetensors"), "not a plain .safetensors name in this folder"),
        (_renamed("/tmp/elsewhere.safetensors"), "not a plain .safetensors name in this folder"),
        (_renamed("a\\b.safetensors"), "not a plain .safetensors name in this folder"),
        (_renamed(".safetensors"), "not a plain .safetensors name in this folder"),
        (_renamed("x.safetensors\n"), "not a plain .safetensors name in this folder"),
        (_renamed("other.safetensors"), "other.safetensors is missing"),
        (lambda v: v.update(version=2), "version 2, expected 1: update runnel"),
        (lambda v: v.update(version=True), "version True, expected 1"),
        (lambda v: v.update(format="other"), "format is not 'runnel-checkpoint'"),
        (lambda v: v.update(extra=1), "missing or unknown"),
        (lambda v: v.pop("tokens"), "missing or unknown"),
        (lambda v: v.update(round=1.5), "1.5 where an integer"),
        (lambda v: v.update(round=True), "True where an integer"),
        (lambda v: v.update(tokens=-1), "-1 where an integer"),
        (lambda v: v.update(run="xyz"), "64 hex digits"),
        (lambda v: v.update(run=digest().hex().upper()), "64 hex digits"),
        (lambda v: v.update(files=[]), "where an object was expected"),
        (lambda v: v.update(parameters={"w": 3}), "where a list was expected"),
        (lambda v: v["parameters"].pop("scale"), "'scale' has shape"),
        (lambda v: v["parameters"].update(extra=[1]), "its manifest says"),
        (lambda v: v["parameters"].update({"head.weight": [15]}), "its manifest says"),
        (lambda v: v["momentum"].update(extra=[1]), "momentum 'extra' has shape None"),
    ],
)
def test_a_forged_manifest_is_refused_for_what_it_says(
    tmp_path: Path, change: Callable[[dict[str, Any]], None], message: str
) -> None:
    folder = write_checkpoint(tmp_path, content())
    shutil.copy(folder / "parameters.safetensors", tmp_path / "elsewhere.safetensors")
    forged(folder, change)
    with pytest.raises(InputFileError) as caught:
        read_checkpoint(folder)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "data", [b"", b"{", b"[]", b"null", b"\xff\xfe", b"[" * 100_000, b'{"version":1}', b"9" * 9_000]
)
def test_a_manifest_that_is_none_is_one_clear_line(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "manifest.json").write_bytes(data)
    with pytest.raises(InputFileError) as caught:
        read_checkpoint(tmp_path)
    assert "damaged or no manifest of runnel" in str(caught.value)
    assert "\n" not in str(caught.value)


def _sealed(folder: Path, file: bytes, parameters: dict[str, tuple[int, ...]]) -> None:
    (folder / "parameters.safetensors").write_bytes(file)
    entry = FileEntry(len(file), digest(file))
    files = {"parameters.safetensors": entry}
    manifest = CheckpointManifest(meta(), files, parameters, {})
    (folder / "manifest.json").write_bytes(manifest.encode())


def _safetensors(header: object, values: bytes) -> bytes:
    encoded = json.dumps(header).encode()
    return len(encoded).to_bytes(8, "little") + encoded + values


@pytest.mark.parametrize(
    ("file", "message"),
    [
        (b"", "no safetensors file"),
        (b"\xff" * 8, "no safetensors file"),
        (_safetensors({}, b"values"), "no safetensors file"),
        (
            _safetensors({"w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 80]}}, bytes(8)),
            "no safetensors file",
        ),
        (
            _safetensors({"w": {"dtype": "F64", "shape": [2], "data_offsets": [0, 16]}}, bytes(16)),
            "is F64, expected F32",
        ),
        (
            _safetensors({"w": {"dtype": "BF16", "shape": [2], "data_offsets": [0, 4]}}, bytes(4)),
            "is BF16, expected F32",
        ),
    ],
)
def test_files_with_the_right_hash_and_the_wrong_inside_are_refused(
    tmp_path: Path, file: bytes, message: str
) -> None:
    _sealed(tmp_path, file, {"w": (2,)})
    with pytest.raises(InputFileError) as caught:
        read_checkpoint(tmp_path)
    assert message in str(caught.value)


def test_a_folder_without_checkpoints_is_said_to_be_one(tmp_path: Path) -> None:
    with pytest.raises(InputFileError, match="expected the folder of a checkpoint"):
        read_checkpoint(tmp_path)
    with pytest.raises(InputFileError, match="expected the folder of a checkpoint"):
        read_checkpoint(tmp_path / "none")
    with pytest.raises(InputFileError, match="holds no checkpoint"):
        latest_checkpoint(tmp_path)


@pytest.mark.parametrize("name", ["../else", "round-00000001-0123456789abcdef", "", "/", "\xff"])
def test_a_pointer_to_nothing_here_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "else").mkdir()
    (tmp_path / "checkpoints" / "latest").write_bytes(name.encode("latin-1"))
    with pytest.raises(InputFileError, match="expected a checkpoint beside it"):
        read_checkpoint(tmp_path / "checkpoints")
