"""Memory comes back when nobody holds it, and not before."""

from __future__ import annotations

import numpy as np
import torch

from runnel.optim.buffers import BufferPool

NUMEL = 1 << 16
SIZE_BYTES = 4 * NUMEL


def pool(arrays: int = 4) -> BufferPool:
    return BufferPool(np.float32, max_spare_bytes=arrays * SIZE_BYTES)


def test_an_array_that_ended_is_given_out_again() -> None:
    spare = pool()
    array = spare.take(NUMEL)
    address = array.ctypes.data
    del array
    assert spare.spare_bytes == SIZE_BYTES
    assert spare.take(NUMEL).ctypes.data == address


def test_whatever_still_looks_at_an_array_keeps_it() -> None:
    spare = pool()
    array = spare.take(NUMEL)
    array[:] = 1
    part, view, tensor = array[5:9][1:], memoryview(array.data), torch.from_numpy(array)
    del array
    assert spare.spare_bytes == 0
    spare.take(NUMEL)[:] = 2
    assert part.tolist() == [1, 1, 1]
    del part
    assert spare.spare_bytes == SIZE_BYTES  # the one that was filled with 2
    view.release()
    assert spare.spare_bytes == SIZE_BYTES
    del view, tensor
    assert spare.spare_bytes == 2 * SIZE_BYTES


def test_no_more_waits_than_is_allowed() -> None:
    spare = pool(arrays=2)
    arrays = [spare.take(NUMEL) for _ in range(5)]
    del arrays
    kept = spare.take(NUMEL)
    assert spare.spare_bytes <= 2 * SIZE_BYTES
    assert kept.size == NUMEL


def test_another_size_is_another_array() -> None:
    spare = pool()
    del_me = spare.take(NUMEL)
    del del_me
    other = spare.take(2 * NUMEL)
    assert other.size == 2 * NUMEL
    assert spare.spare_bytes == SIZE_BYTES


def test_small_arrays_are_plain_ones() -> None:
    spare = pool()
    array = spare.take(3)
    assert array.shape == (3,)
    assert array.base is None


def test_rooms_are_bytes_of_any_number() -> None:
    spare = BufferPool(np.float32, max_spare_bytes=SIZE_BYTES)
    for size in (0, 1, 7, SIZE_BYTES - 1, SIZE_BYTES):
        room = spare.take_room(size)
        room[:] = b"x" * size
        assert bytes(room) == b"x" * size


def test_a_room_that_nobody_looks_at_any_more_is_given_out_again() -> None:
    spare = BufferPool(np.uint8, max_spare_bytes=SIZE_BYTES)
    part = spare.take_room(SIZE_BYTES)[7:9]
    assert not spare.spare_bytes
    del part
    assert spare.spare_bytes == SIZE_BYTES
