"""The spec as people write it and the manifest as peers read it."""

from __future__ import annotations

import tomllib
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from runnel.dht.identity import Identity, null_peer_id
from runnel.dht.wire import pack, unpack
from runnel.errors import BugError, ConfigError, InputFileError, PeerError
from runnel.hashing import digest
from runnel.node.manifest import (
    MAX_MANIFEST_BYTES,
    VERSION,
    Genesis,
    RunSpec,
    SignedManifest,
    docs_table,
    load_spec,
    make_spec,
    new_run_toml,
    parse_overrides,
    spec_to_toml,
)
from runnel.node.manifest_sections import OuterSection, RunSection
from runnel.node.manifest_spec import section_kinds
from runnel.optim.codecs import CODECS, codec_named

SPEC = RunSpec(run=RunSection(name="demo"))


@pytest.fixture(scope="module")
def owner() -> Identity:
    return Identity.generate()


@pytest.fixture(scope="module")
def manifest(owner: Identity) -> SignedManifest:
    return SignedManifest.issue(owner, SPEC, genesis(owner))


def genesis(owner: Identity) -> Genesis:
    return Genesis(
        state_root=digest(b"state"),
        members=(null_peer_id(2), owner.peer_id, null_peer_id(1)),
        created_unix_s=1_700_000_000,
        data_root=digest(b"text"),
    )


def refusal(tmp_path: Path, text: str | bytes, *overrides: str) -> list[str]:
    path = tmp_path / "run.toml"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    with pytest.raises(ConfigError) as caught:
        load_spec(path, overrides)
    return str(caught.value).split("\n")


# --- what people write -------------------------------------------------------------------------


def test_a_new_file_holds_every_setting_once_and_loads_to_the_defaults(tmp_path: Path) -> None:
    path = tmp_path / "run.toml"
    path.write_text(new_run_toml("demo"))
    tables = tomllib.loads(path.read_text())
    assert {name: list(table) for name, table in tables.items()} == {
        name: list(kind.model_fields) for name, kind in section_kinds().items()
    }
    assert load_spec(path) == SPEC


def test_every_line_of_a_new_file_has_a_comment() -> None:
    lines = [line for line in new_run_toml("demo").splitlines() if line]
    assert [line for line in lines if "#" not in line] == []


def test_the_smallest_file_is_a_name(tmp_path: Path) -> None:
    path = tmp_path / "run.toml"
    path.write_text('[run]\nname = "demo"\n')
    assert load_spec(path) == SPEC


names = st.from_regex(r"\A[a-z0-9](?:[a-z0-9-]{0,38}[a-z0-9])?\Z")
one_line = st.text(st.characters(exclude_categories=["Cc", "Cs"]), max_size=200)


@given(
    name=names,
    description=one_line,
    lr=st.floats(min_value=0, max_value=10, exclude_min=True),
    tokens=st.integers(0, 2**63 - 1),
    final_averaging=st.booleans(),
)
@settings(max_examples=25, deadline=None)
def test_a_spec_written_as_toml_reads_back_equal(
    name: str, description: str, lr: float, tokens: int, final_averaging: bool
) -> None:
    spec = make_spec(
        {
            "run": {"name": name, "description": description},
            "outer": {"lr": lr, "final_averaging": final_averaging},
            "end": {"tokens": tokens},
        },
        source="test",
    )
    assert make_spec(tomllib.loads(spec_to_toml(spec)), source="test") == spec
    assert RunSpec.from_values(spec.values()) == spec


def test_overrides_replace_fields_and_the_last_one_holds(tmp_path: Path) -> None:
    path = tmp_path / "run.toml"
    path.write_text('[run]\nname = "demo"\n[outer]\nlr = 0.5\n')
    spec = load_spec(
        path,
        [
            "outer.lr=0.6",
            "outer.lr = 1",
            "outer.codec=int8",
            "run.description=a = b # c",
            'data.text="x y"',
            "outer.final_averaging=false",
            "run.name=other",
        ],
    )
    assert (spec.outer.lr, spec.outer.codec, spec.run.name) == (1.0, "int8", "other")
    assert spec.run.description == "a = b # c"
    assert spec.data.text == "x y"
    assert spec.outer.final_averaging is False


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("lr=3", "did you mean inner.lr or outer.lr or seeds.lr?"),
        ("outr.lr=3", "did you mean inner.lr or outer.lr or seeds.lr?"),
        ("outer.momentm=3", "did you mean outer.momentum?"),
        ("outer.zzz=3", "[outer] has optimizer, lr,"),
        ("outer.lr", "not of the form section.field=value: for example --set outer.lr=0.7"),
        ("outer", "not of the form section.field=value: [outer] has optimizer, lr,"),
        ("outer=3", "not of the form section.field=value: [outer] has optimizer, lr,"),
        ("outer.=3", "names no setting of a run (outer.): [outer] has optimizer, lr,"),
        ("", "not of the form section.field=value"),
        ("=", "not of the form section.field=value"),
        ("run.name.x=1", "names no setting"),
    ],
)
def test_a_malformed_override_is_refused_in_one_line(override: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_overrides([override])
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_override_cannot_smuggle_in_a_second_setting(tmp_path: Path) -> None:
    [line] = refusal(tmp_path, '[run]\nname = "demo"', "outer.lr=1\nmomentum = 0.1")
    assert line.startswith("--set outer.lr=1 momentum = 0.1: expected a number")


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (
            "[outer]\nlr = 7000",
            "run.toml: outer.lr is 7000, expected 0 < lr <= 10: edit the file or use"
            " --set outer.lr=0.7",
        ),
        (
            "[inner]\nlr = nan",
            "run.toml: inner.lr is nan, expected 0 < lr <= 1: edit the file or use"
            " --set inner.lr=0.002",
        ),
        (
            "[end]\nminutes = inf",
            "run.toml: end.minutes is inf, expected 0 <= minutes <= 10000000: edit the file or"
            " use --set end.minutes=0.0",
        ),
        (
            '[inner]\nbeta1 = "0.9"',
            'run.toml: inner.beta1 is "0.9", expected a number, 0 <= beta1 < 1: edit the file or'
            " use --set inner.beta1=0.9",
        ),
        (
            "[rounds]\nopen = true",
            "run.toml: rounds.open is true, expected a whole number, 1 <= open <= 64: edit the"
            " file or use --set rounds.open=2",
        ),
        (
            '[outer]\ncodec = "e3"',
            'run.toml: outer.codec is "e3", expected auto, fp32, fp16, bf16, int8, int4, e3m0, two-bit, sign'
            " (the last four also as hadamard+int4 and so on), top-k or random-k, or top-k:N or random-k:N for N of 4096 values, count-sketch or count-sketch:N for an even N of columns, or l-greco+ before int8, int4, e3m0 or two-bit: edit the file or use --set outer.codec=e3m0",
        ),
        (
            "[outer]\nmomentm = 1",
            "run.toml: outer.momentm is not a setting: did you mean outer.momentum?",
        ),
        ("[outr]\nlr = 1", "run.toml: outr is not a setting: did you mean outer?"),
        (
            "outer = 3",
            "run.toml: outer is 3, expected a table: write [outer] and its settings below it",
        ),
    ],
)
def test_a_wrong_field_is_named_with_what_was_seen_expected_and_to_do(
    tmp_path: Path, text: str, line: str
) -> None:
    whole = f'{text}\n[run]\nname = "demo"\n'
    assert refusal(tmp_path, whole) == [line]


def test_several_wrong_fields_get_a_line_each(tmp_path: Path) -> None:
    lines = refusal(tmp_path, '[run]\nname = "Demo"\n[outer]\nlr = -1\n', "inner.clip_norm=-3")
    assert [line.split(" ")[0:2] for line in lines] == [
        ["run.toml:", "run.name"],
        ["--set", "inner.clip_norm=-3:"],
        ["run.toml:", "outer.lr"],
    ]


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("[rounds]\nopen = 4", ["rounds.open is 4", "outer.fragments 4"]),
        ("[outer]\nfragments = 1", ["rounds.open is 2", "at most 1"]),
        ("[outer]\nevery_steps = 3", ["outer.fragments is 4"]),
        ("[outer]\noverlap_steps = 40", ["outer.overlap_steps is 40"]),
        (
            '[outer]\nwindows = "public"\nmixing = 0.5',
            ["outer.mixing is 0.5 with outer.windows public", "set outer.mixing to 0"],
        ),
        (
            '[outer]\ninner_state = "fresh"',
            ["outer.inner_state is fresh with outer.windows private", "or outer.windows to public"],
        ),
        (
            '[outer]\nresult_codec = "l-greco+e3m0"',
            ["outer.result_codec is l-greco+e3m0 with outer.codec e3m0", "set outer.codec to"],
        ),
        ('[outer]\noptimizer = "adam"', ["outer.lr is 0.7 with outer.optimizer adam"]),
        ('[outer]\noptimizer = "one-bit-adam"', ["outer.lr is 0.7", "optimizer one-bit-adam"]),
        (
            '[inner]\noptimizer = "schedule-free"\nbeta1 = 0.0',
            ["inner.beta1 is 0 with inner.optimizer schedule-free"],
        ),
        ("[rounds]\ndeadline_floor_s = 31", ["rounds.deadline_floor_s is 31"]),
        ("[rounds]\nstall_s = 10", ["rounds.stall_s is 10"]),
        ("[model]\nwidth = 100", ["model.width is 100", "set model.width to 104"]),
        ("[model]\nvocab = 65", ["model.vocab is 65"]),
        ("[model]\ncontext = 4096\n[data]\nchunk_bytes = 4096", ["model.context is 4096"]),
    ],
)
def test_settings_that_contradict_each_other_are_refused(
    tmp_path: Path, text: str, named: list[str]
) -> None:
    [line] = refusal(tmp_path, f'[run]\nname = "demo"\n{text}\n')
    assert line.startswith("run.toml: ")
    assert [words for words in named if words not in line] == []


def test_one_fragment_runs_with_one_open_round(tmp_path: Path) -> None:
    path = tmp_path / "run.toml"
    path.write_text('[run]\nname = "demo"\n[outer]\nfragments = 1\n[rounds]\nopen = 1\n')
    assert load_spec(path).rounds.open == 1


def test_sizes_of_the_gpt_do_not_bind_a_custom_model(tmp_path: Path) -> None:
    path = tmp_path / "run.toml"
    path.write_text('[run]\nname = "demo"\n[model]\nkind = "custom"\nvocab = 2\nwidth = 3\n')
    assert load_spec(path).model.vocab == 2


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (b"[run", "run.toml: "),
        (b"run: demo", "run.toml: "),
        (b"\xff\xfe", "byte 0 is not UTF-8"),
        (b"a = " + b"[" * 5000, "run.toml: "),
        (b"", "run is missing, expected a table"),
        (b"[run]", "run.name is missing"),
        (b"[run]\nname='a'\nname='b'", "run.toml: "),
    ],
)
def test_what_is_not_a_run_file_is_refused_in_one_line(
    tmp_path: Path, text: bytes, said: str
) -> None:
    [line] = refusal(tmp_path, text)
    assert said in line


def test_a_missing_file_a_folder_and_a_huge_file_are_named(tmp_path: Path) -> None:
    huge = tmp_path / "huge.toml"
    huge.write_bytes(b"#" * (2**20 + 1))
    for path, said in (
        (tmp_path / "no.toml", "does not exist"),
        (tmp_path, "directory"),
        (huge, "longer than"),
    ):
        with pytest.raises(InputFileError, match=said) as caught:
            load_spec(path)
        assert str(path) in str(caught.value)


FIELDS = [
    (section, name) for section, kind in section_kinds().items() for name in kind.model_fields
]
toml_values = st.one_of(
    st.integers(-(2**63), 2**63 - 1),
    st.floats(),
    st.booleans(),
    st.text(max_size=8),
    st.dates(),
    st.lists(st.integers(), max_size=2),
    st.dictionaries(st.text(max_size=3), st.integers(), max_size=2),
)


@given(
    st.lists(
        st.tuples(st.sampled_from([*FIELDS, ("end", "x"), ("x", "y")]), toml_values), max_size=5
    )
)
@settings(max_examples=100, deadline=None)
def test_any_values_make_a_spec_or_one_line_for_each_wrong_field(
    fields: list[tuple[tuple[str, str], object]],
) -> None:
    tables: dict[str, dict[str, object]] = {"run": {"name": "demo"}}
    for (section, name), value in fields:
        tables.setdefault(section, {})[name] = value
    try:
        spec = make_spec(tables, source="test")
    except ConfigError as error:
        lines = str(error).split("\n")
        assert [line for line in lines if not line.startswith("test: ")] == []
        assert len(lines) <= max(5, len(fields))
    else:
        assert RunSpec.from_values(spec.values()) == spec


def test_a_new_run_needs_a_name_that_can_be_a_folder() -> None:
    for name in ("", "Upper", "-a", "a-", "a/b", "..", "a b", "x" * 41, "a\n"):
        with pytest.raises(ConfigError, match="cannot be called"):
            new_run_toml(name)


def test_every_setting_is_described_and_in_the_docs_table() -> None:
    table = docs_table()
    for section, kind in section_kinds().items():
        assert kind.__doc__
        assert f"## `[{section}]`" in table
        for name, field in kind.model_fields.items():
            assert field.description, f"{section}.{name}"
            assert f"| `{name}` |" in table


def test_a_spec_cannot_be_changed() -> None:
    with pytest.raises(ValueError, match="frozen"):
        SPEC.outer.lr = 1.0


def test_a_published_spec_does_not_tell_where_the_owner_keeps_the_text() -> None:
    spec = make_spec({"run": {"name": "a"}, "data": {"text": "/home/rima/diary.txt"}}, source="t")
    assert spec.published().data.text == "diary.txt"
    assert spec.data.text == "/home/rima/diary.txt"


# --- what peers read ---------------------------------------------------------------------------


def test_a_manifest_survives_encoding_and_a_file(manifest: SignedManifest, tmp_path: Path) -> None:
    assert SignedManifest.decode(manifest.encode()) == manifest
    manifest.write(tmp_path / "a" / "manifest")
    assert SignedManifest.read(tmp_path / "a" / "manifest") == manifest
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["manifest"]


def test_the_run_id_depends_on_everything_but_the_signature(
    owner: Identity, manifest: SignedManifest
) -> None:
    spec = make_spec({"run": {"name": "demo"}, "outer": {"lr": 0.71}}, source="t")
    variants = [
        SignedManifest.issue(owner, spec, genesis(owner)),
        SignedManifest.issue(owner, SPEC, replace(genesis(owner), created_unix_s=1)),
        SignedManifest.issue(owner, SPEC, replace(genesis(owner), data_root=digest(b"x"))),
        SignedManifest.issue(owner, SPEC, replace(genesis(owner), state_root=digest(b"x"))),
        SignedManifest.issue(owner, SPEC, replace(genesis(owner), members=(owner.peer_id,))),
        SignedManifest.issue(Identity.generate(), SPEC, genesis(owner)),
    ]
    assert len({manifest.run_id, *(variant.run_id for variant in variants)}) == 7
    assert replace(manifest, signature=b"").run_id == manifest.run_id


@pytest.mark.parametrize(
    "name",
    [
        *CODECS,
        *("top-k:1", "top-k:128", "top-k:4095", "top-k:4096", "random-k:9"),
        *(f"count-sketch:{columns}" for columns in (2, 10, 98, 130, 998, 1000, 3998, 4088, 4096)),
    ],
)
def test_every_codec_can_be_chosen_for_both_ways(name: str) -> None:
    assert OuterSection(codec=name, result_codec=name).codec == codec_named(name).name
    for wrong in (f"{name} ", f"{name}:0", "top-k:4097", "top-k:5000", "top-k:064"):
        with pytest.raises(ValidationError):
            OuterSection(codec=wrong)


@pytest.mark.parametrize("columns", ["0", "1", "7", "08", "129", "4097", "4098", "5000", "10000"])
def test_a_count_sketch_has_an_even_number_of_columns(columns: str) -> None:
    with pytest.raises(ValidationError):
        OuterSection(codec=f"count-sketch:{columns}")
    with pytest.raises(ConfigError, match="count-sketch"):
        codec_named(f"count-sketch:{columns}")


FIELDS_OF_VERSION_4 = """\
run: name=str description=str trust=str seed=int
model: kind=str source=str layers=int heads=int width=int context=int vocab=int fingerprint=str
data: text=str batch_size=int chunk_bytes=int validation_share=float
inner: optimizer=str lr=float matrix_lr=float weight_decay=float beta1=float beta2=float warmup_share=float final_lr_share=float clip_norm=float
outer: optimizer=str lr=float momentum=float beta2=float epsilon=float windows=str inner_state=str fragments=int every_steps=int overlap_steps=int mixing=float codec=str result_codec=str residual_decay=float residual_cap=float aggregator=str max_weight_tokens=int wait_s=float final_averaging=bool budget=str
seeds: method=str lr=float lr_per=str final_lr_share=float epsilon=float probes=int candidates=int uneven=bool local_steps=int directions=int spot_checks=float
rounds: open=int deadline_floor_s=float deadline_ceiling_s=float stall_s=float snapshot_every=int max_members=int
end: rounds=int tokens=int minutes=float
"""


def test_the_signed_fields_of_version_4_do_not_drift() -> None:
    """Other fields are another wire format: raise `manifest.VERSION` and record them here."""
    rows = [
        f"{section}: "
        + " ".join(
            f"{name}={type(getattr(getattr(SPEC, section), name)).__name__}"
            for name in kind.model_fields
        )
        for section, kind in section_kinds().items()
    ]
    assert rows == FIELDS_OF_VERSION_4.splitlines()


def test_whole_numbers_given_for_floats_sign_like_floats(tmp_path: Path) -> None:
    whole = make_spec({"run": {"name": "a"}, "outer": {"lr": 1}}, source="t")
    point = make_spec({"run": {"name": "a"}, "outer": {"lr": 1.0}}, source="t")
    assert pack(whole.values()) == pack(point.values())


def test_another_signer_is_refused(manifest: SignedManifest) -> None:
    other = SignedManifest.issue(Identity.generate(), SPEC, manifest.genesis)
    forged = replace(manifest, signature=other.signature)
    with pytest.raises(PeerError) as caught:
        SignedManifest.decode(forged.encode())
    assert caught.value.reason == "signature"


@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_a_changed_byte_is_refused(manifest: SignedManifest, data: st.DataObject) -> None:
    encoded = bytearray(manifest.encode())
    place = data.draw(st.integers(0, len(encoded) - 1))
    encoded[place] ^= data.draw(st.integers(1, 255))
    with pytest.raises(PeerError):
        SignedManifest.decode(bytes(encoded))


@given(data=st.data())
@settings(max_examples=40, deadline=None)
def test_a_cut_or_continued_manifest_is_refused(
    manifest: SignedManifest, data: st.DataObject
) -> None:
    encoded = manifest.encode()
    length = data.draw(st.integers(0, len(encoded) - 1))
    for wrong in (encoded[:length], encoded + data.draw(st.binary(min_size=1, max_size=4))):
        with pytest.raises(PeerError):
            SignedManifest.decode(wrong)


def resigned(owner: Identity, manifest: SignedManifest, place: list[int], value: object) -> bytes:
    """The manifest with one value replaced, correctly signed: only the value is wrong."""
    body, _ = unpack(manifest.encode(), max_bytes=MAX_MANIFEST_BYTES)
    fields = unpack(body, max_bytes=MAX_MANIFEST_BYTES)
    target = fields
    for index in place[:-1]:
        target = target[index]
    target[place[-1]] = value
    body = pack(fields)
    return pack([body, owner.sign(b"runnel.manifest.1" + digest(body))])


@pytest.mark.parametrize(
    ("place", "value", "reason"),
    [
        ([0], VERSION - 1, "version"),
        ([0], VERSION + 1, "version"),
        ([0], True, "malformed"),
        ([1, 4, 1], 7000.0, "value"),
        ([1, 4, 1], 1, "malformed"),
        ([1, 4, 1], float("inf"), "value"),
        ([1, 0], [], "value"),
        ([1, 0], "demo", "malformed"),
        ([1], [], "value"),
        ([1, 5, 0], 63, "value"),
        ([2], b"short", "malformed"),
        ([3], b"short", "malformed"),
        ([4], [], "malformed"),
        ([4, 0], null_peer_id(7) + b"x", "malformed"),
        ([4], [[1]], "malformed"),
        ([4], sorted((null_peer_id(1), null_peer_id(2)), reverse=True), "malformed"),
        ([4], [null_peer_id(1), null_peer_id(1)], "malformed"),
        ([4], sorted(null_peer_id(number) for number in range(65)), "malformed"),
        ([5], -1, "malformed"),
        ([6], b"", "malformed"),
    ],
)
def test_a_well_signed_manifest_with_a_wrong_value_is_refused(
    owner: Identity, manifest: SignedManifest, place: list[int], value: object, reason: str
) -> None:
    with pytest.raises(PeerError) as caught:
        SignedManifest.decode(resigned(owner, manifest, place, value))
    assert caught.value.reason == reason


@given(st.binary(max_size=200))
@settings(max_examples=60, deadline=None)
def test_random_bytes_are_refused(data: bytes) -> None:
    with pytest.raises(PeerError):
        SignedManifest.decode(data)


def test_a_missing_or_damaged_file_is_an_input_file_error(tmp_path: Path) -> None:
    path = tmp_path / "manifest"
    with pytest.raises(InputFileError, match="cannot be read"):
        SignedManifest.read(path)
    path.write_bytes(b"x" * 100)
    with pytest.raises(InputFileError, match="not a manifest"):
        SignedManifest.read(path)


def test_what_nobody_could_read_is_not_signed(owner: Identity) -> None:
    seeds = SPEC.seeds.model_copy(update={"lr": 50.0})
    with pytest.raises(ConfigError, match=r"read by nobody \(value: .*seeds\.lr") as caught:
        SignedManifest.issue(owner, SPEC.model_copy(update={"seeds": seeds}), genesis(owner))
    assert "\n" not in str(caught.value)


def test_a_genesis_without_members_is_our_own_bug(owner: Identity) -> None:
    with pytest.raises(BugError):
        SignedManifest.issue(owner, SPEC, replace(genesis(owner), members=()))


@pytest.mark.parametrize(
    ("kind", "source", "sound"),
    [("hf", "org/name", True), ("hf", "", False), ("gpt", "", True), ("custom", "name", False)],
)
def test_a_source_belongs_to_models_of_transformers(kind: str, source: str, *, sound: bool) -> None:
    tables = {"run": {"name": "a"}, "model": {"kind": kind, "source": source}}
    if sound:
        assert make_spec(tables, source="t").model.source == source
        return
    with pytest.raises(ConfigError, match=r"model.source is .* if, and only if, the kind is hf"):
        make_spec(tables, source="t")


@pytest.mark.parametrize(
    ("source", "seen"),
    [("org/name", "org/name"), ("/home/me/tiny", "./tiny"), ("./a/tiny", "./tiny"), ("~/t", "./t")],
)
def test_others_see_the_name_of_a_model_and_no_path_of_this_machine(source: str, seen: str) -> None:
    spec = make_spec({"run": {"name": "a"}, "model": {"kind": "hf", "source": source}}, source="t")
    assert spec.published().model.source == seen
