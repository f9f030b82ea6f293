#!/usr/bin/env python3
"""Renews the tables and examples in docs/protocol.md, from the code and from tests/golden; --bytes renews those bytes first."""

from __future__ import annotations

import re
import sys
import textwrap
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from runnel.node.manifest_spec import section_kinds  # noqa: E402 - needs the path
from tests.support import agreement_table, golden_run, golden_wire, life_table, round_table  # noqa: E402
from tests.support import wire_layouts as layouts  # noqa: E402
from tests.support.wire_kinds import Kind, Many, Row, rows_in  # noqa: E402

PAGE = ROOT / "docs" / "protocol.md"
BLOCK = re.compile(r"(<!-- drawn: ([a-z ]+) -->\n).*?(<!-- end of drawn -->)", re.DOTALL)
PARTS: tuple[Row, ...] = (
    layouts.INSTANCE,
    layouts.VOTE,
    layouts.JOIN_REQUEST,
    layouts.MOVE,
    layouts.WINDOW,
    layouts.COMMITMENT,
    layouts.SHARE,
    layouts.RESULT,
    layouts.RECORD,
    layouts.CERTIFICATE,
    layouts.RECORD_WITH_PROOF,
    layouts.LOCK,
    layouts.PROPOSAL,
)
FORMULAS = {
    "signed: commitment": '`"runnel1" | run id | "commitment/" |` the commitment without its last field, packed',
    "signed: vote": '`"runnel1" | run id | "vote/KIND/ROUND/BASE/ATTEMPT/STEP/" | value`: numbers in decimal, BASE in'
    " hexadecimal",
    "signed: branch": 'a vote of kind `"branch"`: ROUND is the number after the head that it is called from, BASE that'
    ' head, ATTEMPT 0, STEP 2, and the value is the digest of `"branch" |` the array `[nonce, group]`, packed',
    "signed: proposal": '`"runnel1" | run id | "proposal/KIND/ROUND/BASE/ATTEMPT/LOCK_ATTEMPT/" | value`',
    "signed: manifest": '`"runnel.manifest.1" | run id`, by the owner',
    "signed: ticket": '`"runnel.ticket.1" | run_id, 16 bytes | nonce | expires_unix_s u32, big-endian | 01 or 00'
    " (grants_vote) | binding`, by the owner",
    "signed: directory record": 'the array `["rec1", key id, author, packed value, expires_s]`, packed; here the key id is'
    " 20 zero bytes",
}


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """A Markdown table, with a line before and after it."""
    lines = [head, ["---"] * len(head), *rows]
    return ["", *("| " + " | ".join(cell or " " for cell in line) + " |" for line in lines), ""]


def field_table(row: Row) -> list[str]:
    """The fields of a row."""
    places = ((str(i), f"`{n}`", k.words) for i, (n, k) in enumerate(row.fields))
    return table(("", "field", "type and limit"), places)


def example(name: str) -> list[str]:
    """The bytes of an example."""
    data = golden_wire.stored()[name]
    told = f"{name} ({len(data) // 2} bytes)"
    body = textwrap.wrap(data, 96)
    if name == "invite":
        told, body = f"{name}, one line", textwrap.wrap(bytes.fromhex(data).decode(), 96)
    return ["", f"*{told}*", "", "```text", *body, "```", ""]


def examples(*names: str) -> list[str]:
    """Several examples, each with its formula if it has one."""
    lines: list[str] = []
    for name in names:
        if name in FORMULAS:
            lines += ["", f"- {name.removeprefix('signed: ')}: {FORMULAS[name]}."]
        lines += example(name)
    return lines


def beginning(prefix: str) -> list[str]:
    """Names of all examples that begin so."""
    return [name for name in golden_wire.stored() if name.startswith(prefix)]


def described(kind: Kind) -> list[str]:
    """What the fields of a control message are, where they have no heading of their own."""
    if (isinstance(kind, Row) and kind in PARTS) or isinstance(kind, Many):
        return ["", f"Fields: {kind.words}."]
    assert isinstance(kind, Row)
    return field_table(kind) if kind.fields else ["", "Fields: none, `[]`."]


def control() -> list[str]:
    """All control messages."""
    lines: list[str] = []
    for number, (message, kind) in layouts.CONTROL.items():
        lines += ["", f"### {number}: {message.__name__}", *described(kind)]
        lines += examples(*beginning(f"control {message.__name__}"))
    return lines


def parts() -> list[str]:
    """What control messages are made of."""
    used = {row.name for _, kind in layouts.CONTROL.values() for row in rows_in(kind)}
    named = {message.__name__ for message, _ in layouts.CONTROL.values()}
    assert used - named == {row.name for row in PARTS}, "a part without a heading, or one too many"
    lines: list[str] = []
    for row in PARTS:
        lines += ["", f"### {row.name}", *field_table(row)]
        lines += examples(row.name) if row.name in golden_wire.stored() else []
    return lines


def settings() -> list[str]:
    """The values of a manifest in their order."""
    words = {"str": "text", "int": "integer", "float": "float", "bool": "boolean"}
    rows = []
    for section, kind in section_kinds().items():
        fields = kind.model_fields
        defaults = kind.model_validate({"name": "golden"} if section == "run" else {}).model_dump()
        rows.append(
            (
                f"`{section}`",
                ", ".join(f"`{name}` {words[type(defaults[name]).__name__]}" for name in fields),
            )
        )
    return table(("section", "values, in order"), rows)


def keys() -> list[str]:
    """Who signs in the examples."""
    rows = [
        (who, f"32 times `{seed:02x}`", f"`{golden_run.identity_of(seed).peer_id.hex()}`")
        for who, seed in golden_run.SEEDS.items()
    ]
    names = {
        "the run": golden_run.RUN,
        "the first record": golden_run.FIRST.hash,
        "the commitment": golden_run.COMMITMENT.id,
        "the record": golden_run.RECORD.hash,
    }
    named = ((what, f"`{name.hex()}`") for what, name in names.items())
    return [*table(("who", "private key", "peer id"), rows), *table(("what", "name"), named)]


def agreement() -> list[str]:
    """The agreement machine."""
    return table(("on, in", *agreement_table.STATES), agreement_table.rows())


def rounds() -> list[str]:
    """A round, by role."""
    lines: list[str] = []
    for role in round_table.COURSES:
        lines += ["", f"*{role}*", *table(("in", "on", "to", "and"), round_table.rows(role))]
    return lines


BLOCKS: dict[str, Callable[[], list[str]]] = {
    "keys": keys,
    "frames": lambda: examples(*beginning("frame ")),
    "control": lambda: [*control(), *examples("control frame")],
    "parts": lambda: [*parts(), *examples("branch record")],
    "signed": lambda: examples(*beginning("signed: ")),
    "bulk": lambda: [
        *field_table(layouts.SLICE_HEADER),
        *examples("slice", "slice taken", "result wanted", "result", "result not here"),
    ],
    "questions": lambda: [
        *field_table(layouts.QUESTION),
        *examples(*beginning("question "), *beginning("answer ")),
    ],
    "blobs": lambda: [
        *field_table(layouts.BLOB_REQUEST),
        *examples(*beginning("blob ")),
        "",
        "### corpus index",
        *field_table(layouts.CORPUS_INDEX),
        *examples("corpus index"),
    ],
    "manifest": lambda: [
        *field_table(layouts.MANIFEST_BODY),
        *examples("manifest body", "manifest"),
        "",
        "### settings",
        *settings(),
    ],
    "ticket": lambda: [*field_table(layouts.TICKET_FIELDS), *examples("ticket")],
    "invite": lambda: examples("invite"),
    "directory": lambda: examples(*beginning("directory ")),
    "payloads": lambda: examples(*beginning("payload ")),
    "agreement": agreement,
    "rounds": rounds,
    "views": lambda: table(("a decided set says", *life_table.STANDINGS), life_table.view_rows()),
    "greetings": lambda: table(("it is", "every second it sends"), life_table.greeting_rows()),
    "waits": lambda: table(("on", "waited for", "overdue"), life_table.seen_rows()),
    "unheard": lambda: table(("a member is", "listed"), life_table.unheard_rows()),
    "branches": lambda: table(("a peer", *life_table.STALLS), life_table.branch_rows()),
    "choices": lambda: table(("ours, theirs", *life_table.ENDS), life_table.choice_rows()),
}


def drawn(name: str) -> str:
    """A block's text."""
    text = "\n".join(BLOCKS[name]()).strip("\n")
    return re.sub(r"\n{3,}", "\n\n", text) + "\n"


def main(arguments: Sequence[str]) -> int:
    """Writes the page, or with --check only compares; returns an exit code."""
    if "--bytes" in arguments:
        golden_wire.write()
    text = PAGE.read_text()
    missing = set(BLOCKS) ^ {found[1] for found in BLOCK.findall(text)}
    if missing:
        print(f"blocks that are drawn and not in the page, or the reverse: {sorted(missing)}")
        return 1
    renewed = BLOCK.sub(lambda m: f"{m[1]}{drawn(m[2])}{m[3]}", text)
    if "--check" in arguments:
        return int(renewed != text)
    PAGE.write_text(renewed)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
