from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runnel.errors import InputFileError
from runnel.hashing import digest, merkle_root
from runnel.node.corpus import (
    BLOCK_BYTES,
    MIN_CHUNK_BYTES,
    MIN_CORPUS_BYTES,
    cut_corpus,
    file_corpus,
    stdlib_corpus,
)

TEXT = bytes(range(256)) * 400


def numbered(size: int) -> bytes:
    return b"".join(index.to_bytes(4, "little") for index in range(size // 4 + 1))[:size]


@settings(max_examples=25)
@given(
    st.integers(MIN_CORPUS_BYTES, 5 * MIN_CORPUS_BYTES),
    st.floats(0.01, 0.5),
    st.integers(-5, 5),
    st.integers(MIN_CHUNK_BYTES, 30_000),
)
def test_every_byte_is_in_one_chunk_or_held_out(
    size: int, share: float, seed: int, max_chunk_bytes: int
) -> None:
    text = numbered(size)
    corpus = cut_corpus(text, seed=seed, validation_share=share, max_chunk_bytes=max_chunk_bytes)
    assert corpus.size_bytes == size
    assert text.endswith(corpus.validation)
    assert sorted(b"".join(corpus.chunks) + corpus.validation) == sorted(text)
    assert all(MIN_CHUNK_BYTES / 2 <= len(one) <= max_chunk_bytes for one in corpus.chunks)
    assert all(MIN_CHUNK_BYTES / 2 <= len(one) <= max_chunk_bytes for one in corpus.held_out)


def test_blocks_are_shuffled_whole() -> None:
    text = numbered(64 * BLOCK_BYTES + 4000)
    corpus = cut_corpus(text, validation_share=0.01)
    joined = b"".join(corpus.chunks)
    train = text[: len(joined)]
    count = -(-len(train) // BLOCK_BYTES)
    edges = [index * len(train) // count for index in range(count + 1)]
    blocks = [train[edges[index] : edges[index + 1]] for index in range(count)]
    assert joined != train
    assert all(block in joined for block in blocks)


def test_equal_texts_and_seeds_have_equal_roots() -> None:
    assert cut_corpus(TEXT, seed=1).root == cut_corpus(TEXT, seed=1).root
    assert cut_corpus(TEXT, seed=1).root != cut_corpus(TEXT, seed=2).root
    assert cut_corpus(TEXT, seed=1).root != cut_corpus(TEXT + b"x", seed=1).root


def test_the_root_covers_chunks_and_validation() -> None:
    corpus = cut_corpus(TEXT)
    assert corpus.chunk_digests == tuple(digest(chunk) for chunk in corpus.chunks)
    held_out = merkle_root([digest(chunk) for chunk in corpus.held_out])
    assert corpus.root == corpus.index.root
    assert corpus.root == merkle_root([merkle_root(corpus.chunk_digests), held_out])


def test_a_short_text_still_gives_many_chunks() -> None:
    assert len(cut_corpus(numbered(MIN_CORPUS_BYTES)).chunks) >= 8
    assert 16 <= len(cut_corpus(numbered(1_100_000)).chunks) <= 17


def test_a_file_of_any_bytes_is_a_corpus(tmp_path: Path) -> None:
    path = tmp_path / "binary"
    path.write_bytes(TEXT)
    corpus = file_corpus(path)
    assert corpus == cut_corpus(TEXT, validation_share=0.1)
    assert abs(len(corpus.validation) - len(TEXT) / 10) <= 1


@pytest.mark.parametrize("kind", ["missing", "folder", "empty", "short", "null"])
def test_a_file_that_will_not_do_is_an_input_file_error(tmp_path: Path, kind: str) -> None:
    path: Path | str = tmp_path / kind
    if kind == "folder":
        Path(path).mkdir()
    elif kind in ("empty", "short"):
        Path(path).write_bytes(b"" if kind == "empty" else b"x" * (MIN_CORPUS_BYTES - 1))
    elif kind == "null":
        path = "a\0b"
    with pytest.raises(InputFileError, match="text file") as caught:
        file_corpus(path)
    assert "\n" not in str(caught.value)
    assert "; give " in str(caught.value)


@pytest.mark.parametrize(
    "numbers", [{"validation_share": 0.0}, {"validation_share": 0.6}, {"max_chunk_bytes": 10}]
)
def test_numbers_out_of_range_are_refused(numbers: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="expected"):
        cut_corpus(TEXT, **numbers)  # type: ignore[arg-type]


def test_too_little_text_is_refused() -> None:
    with pytest.raises(ValueError, match="expected at least"):
        cut_corpus(b"short")


def test_this_pythons_library_is_a_corpus_within_its_cap() -> None:
    corpus = stdlib_corpus(1_000_000)
    assert corpus.size_bytes == 1_000_000
    assert corpus.root == stdlib_corpus(1_000_000).root
    assert corpus.root != stdlib_corpus(1_000_000, seed=1).root
    assert b"import" in b"".join(corpus.chunks)


def library(folder: Path) -> Path:
    for name in ("a.py", "pkg/b.py", "pkg/test/t.py", "site-packages/s.py", "_sysconfigdata_x.py"):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode() * 8000)
    (folder / "notes.txt").write_bytes(b"not python" * 8000)
    return folder


def test_only_sources_that_people_wrote_are_taken(tmp_path: Path) -> None:
    corpus = stdlib_corpus(folder=library(tmp_path))
    assert corpus.size_bytes == 8000 * (len("a.py") + len("pkg/b.py"))


def test_a_python_without_sources_is_an_input_file_error(tmp_path: Path) -> None:
    with pytest.raises(InputFileError, match="give a text file"):
        stdlib_corpus(folder=tmp_path / "nothing")


def test_an_unreadable_source_is_an_input_file_error(tmp_path: Path) -> None:
    (library(tmp_path) / "broken.py").symlink_to(tmp_path / "nowhere.py")
    with pytest.raises(InputFileError, match=r"broken\.py"):
        stdlib_corpus(folder=tmp_path)
