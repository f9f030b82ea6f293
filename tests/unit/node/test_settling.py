"""What a run's settings leave open is chosen where it is founded, and kept when it goes on."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from runnel.errors import BugError, ConfigError
from runnel.node.budget import settled_like
from runnel.node.config import MachineConfig
from runnel.node.manifest import RunSpec, make_spec, parse_overrides
from runnel.node.manifest_text import method_settings
from runnel.node.place import Local
from runnel.node.settling import Trials, settle_place
from runnel.types import Digest


@dataclass
class Founded:
    """As much of an entrance as settling needs."""

    place: Local

    @property
    def spec(self) -> RunSpec:
        return self.place.spec


def spec_of(*more: str) -> RunSpec:
    return make_spec(parse_overrides(["run.name=tune", *more]), source="test")


def never() -> float:
    raise BugError("nobody asked for this")


def settled(spec: RunSpec, trials: Trials | None, folder: Path) -> RunSpec:
    place = Local(spec=spec, machine=MachineConfig.at(folder), data_root=Digest(bytes(32)))
    founded = Founded(place)
    settle_place(founded, 100, trials)  # type: ignore[arg-type]
    return founded.place.spec


def test_an_open_rate_is_measured_for_one_members_scalars(tmp_path: Path) -> None:
    spec = spec_of("seeds.method=spsa", "seeds.lr=0", "seeds.probes=8")
    found = settled(spec, Trials(never, lambda: 1000.0), tmp_path).seeds
    assert (found.lr, found.lr_per) == (1e-3, "member")
    spec = spec_of("seeds.method=fedkseed", "seeds.lr=0")
    found = settled(spec, Trials(never, lambda: 1000.0), tmp_path).seeds
    assert (found.lr, found.lr_per) == (5e-4, "step")


def test_a_measured_rate_stays_in_its_range_and_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    spec = spec_of("seeds.method=spsa", "seeds.lr=0", "seeds.probes=4")
    found = settled(spec, Trials(never, lambda: 0.01), tmp_path)
    assert found.seeds.lr == 10
    assert "would take steps of 50, and seeds.lr is at most 10" in caplog.text
    assert RunSpec.from_values(found.values()) == found


def test_a_rate_that_was_set_stays(tmp_path: Path) -> None:
    spec = spec_of("seeds.method=spsa", "seeds.lr=0.002")
    assert settled(spec, Trials(never, never), tmp_path) == spec
    spec = spec_of("seeds.lr=0")  # nobody tunes
    assert settled(spec, None, tmp_path) == spec


def test_an_authors_program_is_told_to_set_the_rate(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"seeds\.lr is 0, which `runnel launch` measures"):
        settled(spec_of("seeds.method=spsa", "seeds.lr=0"), None, tmp_path)


def test_a_run_with_an_open_rate_is_the_one_that_measured_it() -> None:
    spec = spec_of("seeds.method=spsa", "seeds.lr=0")
    going_on = spec_of("seeds.method=spsa", "seeds.lr=3e-5", "seeds.lr_per=member")
    assert settled_like(spec, going_on) == going_on
    assert settled_like(going_on, spec) == going_on


def test_each_method_begins_with_a_rate_that_suits_it() -> None:
    assert "seeds.lr=0" in method_settings("spsa")
    assert "seeds.lr=0" in method_settings("fedkseed")
    assert "seeds.lr=0.1" in method_settings("ferret")
    with pytest.raises(ConfigError, match=r"seeds\.lr is 0 with seeds\.method ferret"):
        spec_of("seeds.method=ferret", "seeds.lr=0")
    with pytest.raises(ConfigError, match=r"seeds\.lr_per is member with seeds\.method fedkseed"):
        spec_of("seeds.method=fedkseed", "seeds.lr_per=member")
