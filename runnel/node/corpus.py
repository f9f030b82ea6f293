"""Text to train on: bytes cut into chunks with digests, and a part held out for validation.

The training part is cut into blocks of a few thousand bytes, the blocks are shuffled by a seed and
joined into chunks. So each chunk is a sample of the whole text, and a peer that trains on a few
chunks in a window sees the same distribution as everybody else.
"""

from __future__ import annotations

import os
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from runnel.errors import InputFileError
from runnel.hashing import digest, merkle_root
from runnel.types import Digest

MIN_CORPUS_BYTES = 64 * 1024
"""Less text gives chunks too small to train on."""

MAX_CHUNK_BYTES = 1024 * 1024
MIN_CHUNK_BYTES = 4096
BLOCK_BYTES = 4096
STDLIB_MAX_BYTES = 12 * 1024 * 1024

_TARGET_CHUNKS = 16
_SKIPPED_FOLDERS = frozenset(
    {
        "__pycache__",
        "dist-packages",
        "ensurepip",
        "idlelib",
        "lib2to3",
        "pydoc_data",
        "site-packages",
        "test",
        "tests",
        "turtledemo",
    }
)


@dataclass(frozen=True, slots=True)
class CorpusIndex:
    """What names a corpus: a run's manifest carries its `root`, members serve the chunks by digest.

    Attributes:
        chunk_digests: of the training chunks, in order.
        held_out_digests: of the validation chunks, in order.
    """

    chunk_digests: tuple[Digest, ...]
    held_out_digests: tuple[Digest, ...]

    @property
    def root(self) -> Digest:
        """Merkle root over two: the roots of the training and of the validation chunks."""
        return merkle_root((merkle_root(self.chunk_digests), merkle_root(self.held_out_digests)))


@dataclass(frozen=True, slots=True)
class Corpus:
    """Training and validation text in chunks.

    Attributes:
        chunks: shuffled training text, in pieces of about equal size.
        held_out: the validation text in its own order, in pieces of about equal size.
    """

    chunks: tuple[bytes, ...]
    held_out: tuple[bytes, ...]

    @property
    def validation(self) -> bytes:
        """The held-out text in one piece (a copy)."""
        return b"".join(self.held_out)

    @property
    def size_bytes(self) -> int:
        """Training and validation bytes."""
        return sum(map(len, self.chunks)) + sum(map(len, self.held_out))

    @property
    def chunk_digests(self) -> tuple[Digest, ...]:
        """blake3-256 of each training chunk; one pass over the text."""
        return tuple(digest(chunk) for chunk in self.chunks)

    @property
    def index(self) -> CorpusIndex:
        """The corpus's name; one pass over the text."""
        return CorpusIndex(self.chunk_digests, tuple(digest(chunk) for chunk in self.held_out))

    @property
    def root(self) -> Digest:
        """See `CorpusIndex.root`."""
        return self.index.root


def cut_corpus(
    text: bytes,
    *,
    seed: int = 0,
    validation_share: float = 0.05,
    max_chunk_bytes: int = MAX_CHUNK_BYTES,
) -> Corpus:
    """Holds out the end of `text` and cuts the rest into shuffled chunks. Pure; every byte is kept.

    Args:
        text: at least `MIN_CORPUS_BYTES`.
        seed: of the shuffle.
        validation_share: share of the text held out, 0 < share <= 0.5.
        max_chunk_bytes: largest chunk, at least `MIN_CHUNK_BYTES`. Short texts get smaller ones, so
            that there are about 16; none has less than half of `MIN_CHUNK_BYTES`.

    Raises:
        ValueError: too little text or a number out of range.
    """
    if len(text) < MIN_CORPUS_BYTES or not 0 < validation_share <= 0.5:
        raise ValueError(
            f"{len(text)} bytes with validation share {validation_share}: expected at least"
            f" {MIN_CORPUS_BYTES} bytes and 0 < share <= 0.5"
        )
    if max_chunk_bytes < MIN_CHUNK_BYTES:
        raise ValueError(f"max_chunk_bytes {max_chunk_bytes}, expected >= {MIN_CHUNK_BYTES}")
    held_out_bytes = max(int(len(text) * validation_share), MIN_CHUNK_BYTES)
    cut = len(text) - held_out_bytes
    chunk_bytes = max(MIN_CHUNK_BYTES, min(max_chunk_bytes, cut // _TARGET_CHUNKS))
    return Corpus(
        _cut(_shuffled_blocks(text[:cut], seed), chunk_bytes), _cut(text[cut:], max_chunk_bytes)
    )


def file_corpus(
    path: str | os.PathLike[str],
    *,
    seed: int = 0,
    validation_share: float = 0.1,
    max_chunk_bytes: int = MAX_CHUNK_BYTES,
) -> Corpus:
    """A file's bytes as a corpus, cut as by `cut_corpus`; any bytes will do.

    Raises:
        InputFileError: missing, unreadable, not a file, or under `MIN_CORPUS_BYTES`.
    """
    try:
        text = Path(path).read_bytes()
    except (OSError, ValueError) as error:  # ValueError: a null byte in the path
        reason = getattr(error, "strerror", None) or error
        raise InputFileError(
            f"text file {os.fspath(path)!r}: {reason}; give the path of a readable file"
        ) from error
    if len(text) < MIN_CORPUS_BYTES:
        raise InputFileError(
            f"text file {os.fspath(path)!r} has {len(text)} bytes, expected at least"
            f" {MIN_CORPUS_BYTES}; give a longer text"
        )
    return cut_corpus(
        text, seed=seed, validation_share=validation_share, max_chunk_bytes=max_chunk_bytes
    )


def stdlib_corpus(
    max_bytes: int = STDLIB_MAX_BYTES,
    *,
    seed: int = 0,
    validation_share: float = 0.05,
    max_chunk_bytes: int = MAX_CHUNK_BYTES,
    folder: Path | None = None,
) -> Corpus:
    """The Python standard library's sources as a corpus: text that every machine with Python has.

    Whole files in an order shuffled by their names and `seed`, tests and generated files left out,
    until `max_bytes`; then `cut_corpus`. So the held-out text is of files that the training part
    does not contain, but for the one that the cut goes through. Two machines with the same Python
    version usually have the same bytes; the corpus's root tells.

    Args:
        max_bytes: cap of the text.
        seed: of the order of files and blocks.
        validation_share: see `cut_corpus`.
        max_chunk_bytes: see `cut_corpus`.
        folder: instead of the running Python's library.

    Raises:
        InputFileError: the library's sources are not on this machine.
    """
    folder = folder or Path(sysconfig.get_path("stdlib"))
    text = _joined_sources(folder, max_bytes, _seed_bytes(seed))
    if len(text) < MIN_CORPUS_BYTES:
        raise InputFileError(
            f"the Python library in {str(folder)!r} has {len(text)} bytes of readable sources,"
            f" expected at least {MIN_CORPUS_BYTES}; give a text file instead"
        )
    return cut_corpus(
        text, seed=seed, validation_share=validation_share, max_chunk_bytes=max_chunk_bytes
    )


def _cut(text: bytes, chunk_bytes: int) -> tuple[bytes, ...]:
    """Pieces of equal size, give or take a byte, of at most `chunk_bytes`."""
    count = -(-len(text) // chunk_bytes)
    edges = [index * len(text) // count for index in range(count + 1)]
    return tuple(text[start:stop] for start, stop in pairwise(edges))


def _joined_sources(folder: Path, max_bytes: int, key: bytes) -> bytes:
    names = sorted(_source_names(folder), key=lambda name: digest(key, os.fsencode(name)))
    pieces: list[bytes] = []
    size = 0
    for name in names:
        if size >= max_bytes:
            break
        pieces.append(_read_source(folder / name)[: max_bytes - size])
        size += len(pieces[-1])
    return b"".join(pieces)


def _shuffled_blocks(text: bytes, seed: int) -> bytes:
    """`text` with its blocks in the order of a keyed hash of their numbers."""
    blocks = _cut(text, BLOCK_BYTES)
    key = _seed_bytes(seed)
    order = sorted(range(len(blocks)), key=lambda i: digest(key, i.to_bytes(8, "little")))
    return b"".join(blocks[index] for index in order)


def _seed_bytes(seed: int) -> bytes:
    return digest(b"runnel.corpus.1", seed.to_bytes(16, "little", signed=True))


def _source_names(folder: Path) -> Iterator[str]:
    """Slash-separated names of the .py files below `folder` that are text worth learning."""
    for parent, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if name not in _SKIPPED_FOLDERS]
        for name in files:
            # _sysconfigdata holds the build machine's paths: it differs between equal versions.
            if name.endswith(".py") and not name.startswith("_sysconfigdata"):
                yield Path(parent, name).relative_to(folder).as_posix()


def _read_source(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputFileError(
            f"{str(path)!r}: {error.strerror}; the Python library cannot serve as text here,"
            " give a text file instead"
        ) from error
