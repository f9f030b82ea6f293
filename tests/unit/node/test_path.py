"""Paths that share their old names: sequences like any other."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from runnel.node.path import Names, Path
from runnel.types import Digest
from tests.support.members import name

ALL = [name(f"record {index}") for index in range(40)]
ROW = 4


def path_of(count: int, shared: int) -> Path:
    """The first `count` names, of which up to `shared` are in whole rows."""
    rows = [b"".join(ALL[i : i + ROW]) for i in range(0, len(ALL), ROW)]
    low = min(count, shared) // ROW * ROW
    return Path(Names(ROW, rows), low, ALL[low:count])


@given(st.integers(0, 40), st.integers(0, 40), st.integers(-50, 50), st.integers(-50, 50))
def test_a_path_is_the_sequence_of_its_names(count: int, shared: int, low: int, high: int) -> None:
    path, names = path_of(count, shared), ALL[:count]
    assert len(path) == count
    assert list(path) == names
    assert list(path[low:high]) == names[low:high]
    assert list(path[low:]) == names[low:]
    assert [path[i] for i in range(-count, count)] == names + names
    assert list(path.upto(min(shared, count))) == names[:shared]
    assert list(path.then(*ALL[:2])) == [*names, *ALL[:2]]
    assert bool(path) == bool(names)


@given(st.integers(0, 20), st.integers(-60, 60))
def test_beyond_its_ends_there_is_nothing(count: int, index: int) -> None:
    path = path_of(count, count)
    if -count <= index < count:
        assert path[index] == ALL[:count][index]
    else:
        try:
            found = path[index]
        except IndexError:
            return
        raise AssertionError(f"{found!r} at {index} of {count}")


@given(st.integers(0, 12), st.integers(0, 12), st.integers(0, 12), st.integers(0, 12))
def test_paths_are_equal_as_their_names_are(one: int, two: int, low: int, high: int) -> None:
    first, second = path_of(one, low), path_of(two, high)
    assert (first == second) == (one == two)
    assert (first == ALL[:two]) == (ALL[:one] == second) == (one == two)
    if one == two:
        assert hash(first) == hash(second)
    assert first != 7


def test_a_name_is_found_where_it_is_and_not_across_two_others() -> None:
    names = Names(2, [bytes(range(64)), bytes(range(64, 128))])
    assert len(names) == 4
    assert [names.find(names[index]) for index in range(4)] == [0, 1, 2, 3]
    assert names.find(Digest(bytes(range(16, 48)))) == -1
    assert names.find(Digest(bytes(32))) == -1
