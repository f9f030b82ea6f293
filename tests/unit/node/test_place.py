"""What an author may give to say where a peer takes part."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from runnel.dht.identity import Identity, to_base58
from runnel.errors import ConfigError
from runnel.hashing import digest
from runnel.node.invite import Invite
from runnel.node.place import Joined, Local, invited, local, resolve

OWNER = Identity.generate()
INVITE = Invite.issue(
    OWNER,
    digest(b"run"),
    [f"/ip4/203.0.113.1/tcp/4001/p2p/{to_base58(OWNER.peer_id)}"],
    expires_unix_s=1_800_000_000,
)


def test_settings_are_those_of_the_command_line() -> None:
    place = local("outer.every_steps=50", "end.rounds=8")
    assert (place.spec.outer.every_steps, place.spec.end.rounds) == (50, 8)
    assert place.spec.model.kind == "custom"
    assert place.machine.listen_host == "127.0.0.1"


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("outer.everysteps=50", "did you mean outer.every_steps"),
        ("outer.every_steps=0", "every_steps"),
        ("outer.every_steps", "not of the form"),
        ("outer.fragments=100", "expected"),
    ],
)
def test_a_wrong_setting_is_named(setting: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        local(setting)


def test_a_home_of_yours_is_kept_and_one_of_ours_is_scratch(tmp_path: Path) -> None:
    assert not local(home=tmp_path).scratch
    first, second = local(), local()
    assert first.scratch
    assert first.machine.home != second.machine.home


def test_nothing_is_made_on_disk_before_a_peer_starts() -> None:
    assert not local().machine.home.exists()


def test_an_invite_is_taken_as_text_or_as_an_object(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RUNNEL_HOME", str(tmp_path))
    for given in (str(INVITE), INVITE):
        place = resolve(given)
        assert isinstance(place, Joined)
        assert place.invite == INVITE
        assert place.machine.home == tmp_path


def test_an_invited_peer_may_have_a_home_of_its_own(tmp_path: Path) -> None:
    place = invited(str(INVITE), home=tmp_path / "a", host="127.0.0.1", port=4001)
    assert place.machine.home == tmp_path / "a"
    assert (place.machine.listen_host, place.machine.listen_port) == ("127.0.0.1", 4001)
    assert resolve(place) is place


@pytest.mark.parametrize("given", [None, 3, b"runnel:", Path("run.toml")], ids=repr)
def test_what_names_no_run_is_refused(given: Any) -> None:
    with pytest.raises(ConfigError, match="expected an invite"):
        resolve(given)


@pytest.mark.parametrize("given", ["", "runnel:", "runnel:xyz", str(INVITE)[:-3]])
def test_a_broken_invite_is_refused(given: str) -> None:
    with pytest.raises(ConfigError, match="copy it again"):
        resolve(given)


def test_a_local_place_stays_as_it_is() -> None:
    place = local()
    assert resolve(place) is place
    assert isinstance(place, Local)


@pytest.mark.parametrize(
    ("settings", "given", "message"),
    [
        ((5,), {}, "a setting is 5, expected a text"),
        ((None,), {}, "a setting is None"),
        ((), {"home": 5}, "home is 5, expected the path"),
        ((), {"host": 5}, "host is 5, expected an IP address"),
        ((), {"host": None}, "host is None, expected an IP address"),
        ((), {"port": "a"}, "port is 'a'"),
        ((), {"network": 5}, "network is 5"),
        ((), {"metrics": 0.5}, "metrics is 0.5"),
        ((), {"members": ["a"]}, "member 'a' is no peer id"),
        ((), {"members": 5}, "members is 5, expected a list"),
    ],
    ids=repr,
)
def test_what_is_of_another_type_is_named(settings: Any, given: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        local(*settings, **given)
    assert "\n" not in str(caught.value)
    if set(given) & {"home", "host", "port", "network", "metrics"}:
        with pytest.raises(ConfigError, match=message):
            invited(INVITE, **given)


@pytest.mark.parametrize("given", [None, 5, b"runnel:"], ids=repr)
def test_an_invite_of_another_type_is_named(given: Any) -> None:
    with pytest.raises(ConfigError, match="expected an invite"):
        invited(given)
