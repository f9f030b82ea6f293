"""The bytes of everything that travels: the examples in tests/golden, in both directions, and the limits of each field."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import fields, replace
from typing import Any, cast, get_args

import pytest

from runnel.dht.blob_fetch import BlobFetcher
from runnel.dht.blob_server import BlobServer
from runnel.dht.blob_server import decode_request as decode_blob_request
from runnel.dht.blobs import split
from runnel.dht.framing import FramedStream
from runnel.dht.memory import MemoryTransport
from runnel.dht.memory_network import MemoryNetwork
from runnel.dht.virtual_loop import run_virtual
from runnel.dht.wire import pack, unpack
from runnel.errors import NetworkError, PeerError
from runnel.hashing import digest
from runnel.node import run_service
from runnel.node.branches import branch_problem
from runnel.node.bulk import Bulk, GoneError, PayloadSlice, Wanted, read_slice
from runnel.node.messages import WIRE_VERSION, Message, decode, encode
from runnel.node.records import Commitment, Record, Share, SliceResult
from runnel.node.run_service import Question, RunService
from runnel.node.ticket import Ticket
from runnel.types import Digest, PeerId
from runnel.verification.votes import (
    Decided,
    Electorate,
    Lock,
    Proposal,
    Vote,
    check_certificate,
    majority,
)
from tests.support import golden_run as run
from tests.support import wire_layouts as layouts
from tests.support.golden_wire import MAX_BYTES, all_of_them, stored
from tests.support.members import at_once
from tests.support.wire_kinds import (
    DIGEST,
    MAYBE_DIGEST,
    Kind,
    Row,
    integer,
    misfit,
    rows_in,
    variants,
)

GOLDEN = {golden.name: golden for golden in all_of_them()}
STORED = {name: bytes.fromhex(text) for name, text in stored().items()}


def test_the_file_has_an_example_of_everything_and_nothing_else() -> None:
    assert list(STORED) == list(GOLDEN)


@pytest.mark.parametrize("name", GOLDEN)
def test_a_value_has_these_bytes(name: str) -> None:
    assert GOLDEN[name].data.hex() == STORED[name].hex()


@pytest.mark.parametrize("name", GOLDEN)
def test_these_bytes_have_this_value(name: str) -> None:
    assert GOLDEN[name].read(STORED[name]) == GOLDEN[name].value


# -- layouts


def test_each_control_message_has_a_layout_and_an_example_under_its_number() -> None:
    assert {kind for kind, _ in layouts.CONTROL.values()} == set(get_args(Message))
    seen = set()
    for name, message in run.MESSAGES.items():
        version, number, of_run, body = unpack(STORED[f"control {name}"], max_bytes=MAX_BYTES)
        assert (version, of_run) == (WIRE_VERSION, run.RUN)
        assert layouts.CONTROL[number][0] is type(message)
        assert misfit(layouts.CONTROL[number][1], body, name) == ""
        seen.add(number)
    assert seen == set(layouts.CONTROL)


@pytest.mark.parametrize("name", [name for name, golden in GOLDEN.items() if golden.kind])
def test_an_example_has_its_layout(name: str) -> None:
    kind = GOLDEN[name].kind
    assert kind is not None
    assert misfit(kind, unpack(STORED[name], max_bytes=MAX_BYTES), name) == ""


def test_layouts_have_the_fields_of_the_classes_in_their_order() -> None:
    classes: dict[str, type] = {
        "vote": Vote,
        "commitment": Commitment,
        "record": Record,
        "slice result": SliceResult,
        "share": Share,
        "lock": Lock,
        "proposal": Proposal,
        "ticket": Ticket,
        "question": Question,
    } | {kind.__name__: kind for kind, _ in layouts.CONTROL.values()}
    compared = set()
    tops = [kind for _, kind in layouts.CONTROL.values()]
    for row in [r for k in (*tops, layouts.QUESTION, layouts.TICKET_FIELDS) for r in rows_in(k)]:
        if row.name not in classes:
            continue
        names = [name for name, _ in row.fields if name != "version"]
        flat = list(dict.fromkeys(name.split(".")[0] for name in names))
        assert flat == [field.name for field in fields(classes[row.name])], row.name
        compared.add(row.name)
    assert {"Hello", "ProposeSet", "BranchSign", "Records"} - compared == {"Records"}  # an array
    assert {"vote", "commitment", "record", "share", "lock", "proposal", "ticket"} <= compared


def bodies(number: int) -> Iterator[list[Any]]:
    for name, message in run.MESSAGES.items():
        if isinstance(message, layouts.CONTROL[number][0]):
            yield unpack(STORED[f"control {name}"], max_bytes=MAX_BYTES)[3]


@pytest.mark.parametrize("number", layouts.CONTROL)
def test_each_field_of_a_control_message_has_the_type_and_limits_of_its_layout(number: int) -> None:
    def read(body: object) -> bytes:
        return encode(run.RUN, decode(run.RUN, pack([WIRE_VERSION, number, run.RUN, body])))

    tried = hold(
        layouts.CONTROL[number][1],
        next(bodies(number)),
        read,
        lambda b: pack([WIRE_VERSION, number, run.RUN, b]),
    )
    assert tried >= 5


def test_each_field_of_a_slice_and_of_a_question_has_the_type_and_limits_of_its_layout() -> None:
    def of_slice(body: object) -> bytes:
        header = pack(body)
        return read_slice(memoryview(len(header).to_bytes(4, "big") + header)).header()[4:]

    header = unpack(cast("PayloadSlice", GOLDEN["slice"].value).header()[4:], max_bytes=MAX_BYTES)
    assert hold(layouts.SLICE_HEADER, header, of_slice, pack) > 20
    question = unpack(STORED["question records"], max_bytes=MAX_BYTES)
    assert hold(layouts.QUESTION, question, lambda b: Question.decode(pack(b)).encode(), pack) > 10
    request = unpack(STORED["blob request"], max_bytes=MAX_BYTES)
    assert (
        hold(
            layouts.BLOB_REQUEST,
            request,
            lambda b: pack([1, list(decode_blob_request(pack(b)))]),
            pack,
        )
        > 10
    )
    ticket = unpack(STORED["ticket"], max_bytes=MAX_BYTES)
    assert hold(layouts.TICKET_FIELDS, ticket, lambda b: Ticket.decode(pack(b)).encode(), pack) > 20


def hold(kind: Kind, body: Any, read: Any, packed: Any) -> int:
    """Changes one thing of a good message at a time; how often the decoder did what the layout says."""
    tried = 0
    for changed, good in variants(kind, body):
        refused, again = "", b""
        try:
            again = read(changed)
        except PeerError as error:
            refused = error.reason
        assert (refused == "") is good, f"{refused or 'taken'}: {changed!r}"
        assert refused in {"", "malformed", "version"}
        assert refused or again == packed(changed)
        tried += 1
    return tried


def test_a_layout_that_says_too_much_or_too_little_is_found() -> None:
    body = next(bodies(1))
    read = lambda b: encode(run.RUN, decode(run.RUN, pack([WIRE_VERSION, 1, run.RUN, b])))  # noqa: E731
    whole = lambda b: pack([WIRE_VERSION, 1, run.RUN, b])  # noqa: E731
    low = Row("Hello", (("head", DIGEST), ("number", integer(0))))
    with pytest.raises(AssertionError, match="taken"):
        hold(low, body, read, whole)
    with pytest.raises(AssertionError, match="malformed"):
        hold(
            Row("Hello", (("head", MAYBE_DIGEST), ("number", integer(-1)))),
            body,
            read,
            whole,
        )


# -- what the examples mean


def test_the_decisions_of_the_examples_are_proved_by_their_certificates() -> None:
    def signed(vote: Vote) -> bool:
        return run.BY_ID[vote.voter].verify(vote.voter, vote.statement(run.RUN), vote.signature)

    for instance, value, votes in (
        (run.SET, run.SET_VALUE, run.SET_CERTIFICATE.votes),
        (run.OUTCOME, run.RECORD.hash, run.CERTIFICATE.votes),
        (run.OUTCOME, run.RECORD.hash, run.LOCK.proof),
    ):
        electorate = Electorate.of(instance, run.VIEW, majority)
        assert check_certificate(votes, Decided(instance, value, 0, votes), electorate, signed)
        assert electorate.proposer(0) in run.VIEW
    problem = branch_problem(
        run.RECORD, run.BRANCH, run.BRANCH_CERTIFICATE, verify=signed, admits=lambda *_: False
    )
    assert problem == ""
    assert run.TICKET.check(run.OWNER.peer_id, run.RUN, 1_700_000_000.0).accepted


# -- what really goes over the streams


class Overheard:
    """A stream, and all messages that went over it in each direction."""

    def __init__(self, stream: FramedStream, heard: list[tuple[str, bytes]]) -> None:
        self._stream, self._heard = stream, heard
        self.remote, self.aclose = stream.remote, stream.aclose

    @property
    def received_bytes(self) -> int:
        return self._stream.received_bytes

    async def send(self, *parts: Any, deadline: float) -> None:
        self._heard.append((">", b"".join(bytes(part) for part in parts)))
        await self._stream.send(*parts, deadline=deadline)

    async def receive(self, **limits: Any) -> memoryview:
        data = await self._stream.receive(**limits)
        self._heard.append(("<", bytes(data)))
        return data


class Asker(MemoryTransport):
    """A transport whose streams are overheard."""

    def __init__(self, network: MemoryNetwork, peer_id: PeerId) -> None:
        super().__init__(network, peer_id)
        self.heard: list[tuple[str, bytes]] = []

    async def open(self, peer: PeerId, protocol: str, *, deadline: float) -> Any:
        return Overheard(await super().open(peer, protocol, deadline=deadline), self.heard)


def overheard(serve: Any, ask: Any) -> list[tuple[str, bytes]]:
    """What goes over the streams of whoever asks."""

    async def main() -> list[tuple[str, bytes]]:
        network = MemoryNetwork(seed=1)
        holder = MemoryTransport(network, run.ALICE.peer_id)
        asker = Asker(network, run.BOB.peer_id)
        await serve(holder)
        await ask(asker)
        await asker.aclose()
        await holder.aclose()
        return asker.heard

    return run_virtual(main)


def bulk_of(transport: MemoryTransport, held: dict[Digest, bytes]) -> Bulk:
    async def take(_peer: PeerId, piece: PayloadSlice) -> None:
        if piece.index:
            raise PeerError("round", "not expected")

    async def lookup(root: Digest) -> bytes | None:
        return held.get(root)

    return Bulk(transport, take=take, limit=lambda _: 4096, lookup=lookup)


def test_slices_and_results_travel_as_the_page_says() -> None:
    piece = cast("PayloadSlice", GOLDEN["slice"].value)

    async def serve(transport: MemoryTransport) -> None:
        await bulk_of(transport, {digest(run.PAYLOAD): run.PAYLOAD}).serve()

    async def ask(transport: MemoryTransport) -> None:
        bulk, deadline = bulk_of(transport, {}), asyncio.get_running_loop().time() + 9
        await bulk.scatter(run.ALICE.peer_id, piece, deadline=deadline)
        wanted = Wanted(
            root=digest(run.PAYLOAD),
            holders=[run.ALICE.peer_id],
            size_bytes=0,
            max_bytes=4096,
            usual_s=1.0,
            patience_s=5.0,
        )
        await bulk.fetch(wanted)
        with pytest.raises(GoneError):
            await bulk.fetch(replace(wanted, root=digest(b"unknown")))

    assert overheard(serve, ask) == [
        (">", STORED["slice"]),
        ("<", STORED["slice taken"]),
        (">", STORED["result wanted"]),
        ("<", STORED["result"]),
        (">", digest(b"unknown")),
        ("<", STORED["result not here"]),
    ]


def test_questions_and_answers_travel_as_the_page_says() -> None:
    answers = {
        "manifest": lambda _: run.MANIFEST.encode(),
        "genesis": lambda _: run.GENESIS_ROOTS,
        "records": lambda names: encode(
            run.RUN, decode(run.RUN, RECORDS_ANSWER) if names else run.MESSAGES["Leave"]
        ),
        "entries": lambda names: ENTRIES_ANSWER if names else b"",
    }

    async def serve(transport: MemoryTransport) -> None:
        await RunService(transport, run.RUN, answers, job=at_once).serve()

    async def ask(transport: MemoryTransport) -> None:
        alice = run.ALICE.peer_id
        await run_service.ask(transport, alice, run.RUN[:16], run_service.MANIFEST)
        await run_service.ask(transport, alice, run.RUN, run_service.GENESIS)
        await run_service.ask(transport, alice, run.RUN, run_service.RECORDS, [run.FIRST.hash])
        await run_service.ask(transport, alice, run.RUN, run_service.ENTRIES, [run.FIRST.hash])
        with pytest.raises(NetworkError):
            await run_service.ask(transport, alice, digest(b"another run"), run_service.GENESIS)

    heard = overheard(serve, ask)
    for place, kind in enumerate(answers):
        assert heard[2 * place] == (">", STORED[f"question {kind}"])
        assert heard[2 * place + 1] == ("<", STORED[f"answer {kind}"])
    assert heard[9] == ("<", STORED["answer refused"])


RECORDS_ANSWER: bytes = cast("list[Any]", GOLDEN["answer records"].value)[1]
ENTRIES_ANSWER: bytes = cast("list[Any]", GOLDEN["answer entries"].value)[1]


def test_blobs_travel_as_the_page_says() -> None:
    root, root_blob, chunks = split([run.STATE], chunk_bytes=256)

    class Source:
        def read(self, name: Digest) -> bytes | None:
            return {root: root_blob, digest(run.STATE): bytes(chunks[0])}.get(name)

    async def serve(transport: MemoryTransport) -> None:
        await BlobServer(transport, Source()).start()

    async def ask(transport: MemoryTransport) -> None:
        deadline = asyncio.get_running_loop().time() + 9
        room = memoryview(bytearray(len(run.STATE)))
        await BlobFetcher(transport).fetch_tree(
            root, [run.ALICE.peer_id], out=room, max_total_bytes=len(run.STATE), deadline=deadline
        )
        assert bytes(room) == run.STATE

    heard = overheard(serve, ask)
    assert heard[0] == (">", STORED["blob request"])
    assert heard[1] == ("<", STORED["blob found"])
    assert (">", STORED["blob request, the last"]) in heard
