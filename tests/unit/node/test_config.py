"""What is particular to one machine."""

from __future__ import annotations

from pathlib import Path

import pytest

from runnel.errors import ConfigError, InputFileError, StorageError
from runnel.node.config import LaunchPlan, MachineConfig, default_home
from runnel.node.manifest_sections import RunSection
from runnel.node.manifest_spec import RunSpec

SPEC = RunSpec(run=RunSection(name="demo"))


def test_the_home_folder_is_the_first_that_the_environment_names() -> None:
    user = {"HOME": "/home/rima"}
    assert default_home(user, platform="linux") == Path("/home/rima/.local/share/runnel")
    windows = {"LOCALAPPDATA": "/c/Rima", "HOME": "/elsewhere"}
    assert default_home(windows, platform="win32") == Path("/c/Rima/runnel")
    assert default_home(user, platform="darwin") == Path(
        "/home/rima/Library/Application Support/runnel"
    )
    xdg = {**user, "XDG_DATA_HOME": "/data"}
    assert default_home(xdg, platform="linux") == Path("/data/runnel")
    relative = {**user, "XDG_DATA_HOME": "data"}
    assert default_home(relative, platform="linux") == Path("/home/rima/.local/share/runnel")
    assert default_home({**xdg, "RUNNEL_HOME": "/x"}, platform="linux") == Path("/x")


def test_without_any_folder_of_the_user_the_variable_to_set_is_named() -> None:
    with pytest.raises(ConfigError, match="RUNNEL_HOME"):
        default_home({})


def test_a_given_home_wins_over_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RUNNEL_HOME", "/x")
    monkeypatch.setenv("RUNNEL_LOG", "debug")
    assert MachineConfig.at().home == Path("/x")
    machine = MachineConfig.at(tmp_path / "a")
    assert machine.log_level == "DEBUG"
    assert machine.home == tmp_path / "a"
    assert machine.identity_path == tmp_path / "a" / "identity.key"
    assert machine.run_folder("demo", bytes(range(32))) == tmp_path / "a/runs/demo-00010203"


def test_a_given_network_wins_over_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RUNNEL_NETWORK", raising=False)
    assert MachineConfig.at(tmp_path).network == "auto"
    monkeypatch.setenv("RUNNEL_NETWORK", "libp2p")
    assert MachineConfig.at(tmp_path).network == "libp2p"
    assert MachineConfig.at(tmp_path, network="daemon").network == "daemon"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"listen_port": 65_536}, "port is 65536"),
        ({"listen_port": -1}, "port is -1"),
        ({"codec_threads": 0}, "threads is 0"),
        ({"codec_threads": True}, "threads is True"),
        ({"log_level": "loud"}, "log level is 'loud'"),
        ({"network": "quic"}, "network is 'quic'"),
        ({"listen_host": "localhost"}, "host is 'localhost'"),
        ({"announce": ("203.0.113.5:4001",)}, "announced address is '203.0.113.5:4001'"),
        ({"announce": ("/ip4/203.0.113.5/tcp/0",)}, "announced address"),
    ],
)
def test_a_value_out_of_range_is_named(change: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        MachineConfig(home=Path("/x"), identity_path=Path("/x/key"), **change)  # type: ignore[arg-type]


def test_preparing_makes_a_private_folder_and_leaves_nothing_in_it(tmp_path: Path) -> None:
    machine = MachineConfig.at(tmp_path / "a" / "b")
    machine.prepare()
    machine.prepare()
    assert list(machine.home.iterdir()) == []
    assert machine.home.stat().st_mode & 0o777 == 0o700


def test_a_home_that_is_a_file_is_a_storage_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for home in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(StorageError, match="--home or RUNNEL_HOME"):
            MachineConfig.at(home).prepare()


def test_a_home_without_rights_is_a_storage_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path, content: bytes) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("runnel.node.config.write_new", refuse)
    with pytest.raises(StorageError, match="permission denied"):
        MachineConfig.at(tmp_path).prepare()


def test_a_plan_has_a_spec_or_an_invite() -> None:
    machine = MachineConfig.at(Path("/x"))
    assert LaunchPlan(machine=machine, spec=SPEC).spec == SPEC
    with pytest.raises(ConfigError):
        LaunchPlan(machine=machine)


@pytest.mark.parametrize("host", ["8.8.8.8", "2001:db8::1"])
def test_a_host_that_is_not_this_machines_names_the_option_to_change(
    tmp_path: Path, host: str
) -> None:
    with pytest.raises(ConfigError, match=rf"host is '{host}'.*another --host") as caught:
        MachineConfig.at(tmp_path / "home", host=host).prepare()
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "home").exists()


def test_a_folder_in_the_place_of_the_key_file_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "identity.key").mkdir()
    with pytest.raises(InputFileError, match=r"is a folder.*move the folder away"):
        MachineConfig.at(tmp_path, host="127.0.0.1").prepare()


def test_a_run_that_nobody_could_join_is_not_launched(tmp_path: Path) -> None:
    machine = MachineConfig.at(tmp_path, host="none")
    with pytest.raises(ConfigError, match="nobody could join"):
        LaunchPlan(machine=machine, spec=RunSpec(run=RunSection(name="lonely")))


def test_a_cap_is_given_as_people_write_it_or_not_at_all(tmp_path: Path) -> None:
    machine = MachineConfig.at(tmp_path)
    assert machine.max_upload_mbit is None
    assert machine.sending("") == machine.sending(None) == machine
    assert machine.sending("500 kbit/s").max_upload_bits_s == 5e5
    assert machine.sending("500 kbit/s").max_upload_mbit == 0.5
    with pytest.raises(ConfigError, match="max upload is '2 MB/s'"):
        machine.sending("2 MB/s")
