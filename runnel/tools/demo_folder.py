"""The folder that a demo leaves: run.toml, journals, report, checkpoint and a sample of text."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from runnel.errors import RunnelError
from runnel.node.atomic import write_atomically
from runnel.node.corpus import file_corpus
from runnel.node.events import TrafficCounted
from runnel.node.journal import read_events
from runnel.node.manifest_text import spec_to_toml
from runnel.tools.demo_options import TEXT_NAME, DemoOptions, run_spec
from runnel.tools.demo_outcome import Outcome, catch_up, find_problems, kill_cost
from runnel.tools.report import ReportFacts, build_report, read_history, summary_of

if TYPE_CHECKING:
    from runnel.node.events import Event
    from runnel.tools.peer_processes import PeerProcess

_SAMPLE_TOKENS = 300
_PROMPTS = {True: "def ", False: "\n"}


def prepare(options: DemoOptions) -> Path:
    """Makes the folder with its run.toml, and a copy of the text; the path of run.toml.

    Raises:
        ConfigError: the model is unknown or impossible.
        InputFileError: the text cannot be read or is too short.
        StorageError: the folder cannot be written.
    """
    spec = run_spec(options)
    if options.text is not None:
        file_corpus(options.text)
    run_file = options.out / "run.toml"
    write_atomically(run_file, spec_to_toml(spec).encode())
    if options.text is not None:
        shutil.copyfile(options.text, options.out / TEXT_NAME)
    return run_file


def collect_journals(peers: Mapping[int, PeerProcess], out: Path) -> dict[str, Path]:
    """Copies each peer's journal to ``journals/``; by the peer's name, those that wrote one."""
    kept = {}
    for _, peer in sorted(peers.items()):
        source = next(iter(sorted(peer.home.glob("runs/*/journal.jsonl"))), None)
        if source is None:
            continue
        target = out / "journals" / f"{peer.home.name}.jsonl"
        target.parent.mkdir(exist_ok=True)
        for path in source.parent.glob("journal.jsonl*"):  # rotated ones too
            shutil.copyfile(
                path, target.with_name(target.name + path.name.removeprefix(source.name))
            )
        kept[peer.fate.name] = target
    return kept


def judge(
    peers: Mapping[int, PeerProcess],
    journals: Mapping[str, Path],
    *,
    parameters: int,
    late: int | None,
) -> Outcome:
    """What the journals say of a demo; `late` is the number of the peer that was to join late."""
    fates = [peer.fate for peer in peers.values()]
    killed = {fate.name: fate.killed_unix_s for fate in fates if fate.killed_unix_s is not None}
    history = read_history(journals, killed=killed)
    events = {name: list(read_events(path)) for name, path in journals.items()}
    outcome = Outcome(
        history=history,
        parameters=parameters,
        peers=len(peers),
        sent={peer.fate.name: _sent(peer, events) for peer in peers.values()},
        problems=find_problems(history, fates),
    )
    for fate in fates:
        if fate.killed_unix_s is not None:
            outcome.cost = kill_cost(history, events, fate)
    if late is not None and late in peers:
        fate = peers[late].fate
        outcome.catch_up = catch_up(history, events.get(fate.name, ()), fate)
        if outcome.catch_up.first_round is None:
            outcome.problems.append(f"{fate.name} joined late and has no part in any round")
    return outcome


def take_checkpoint(outcome: Outcome, home: Path, options: DemoOptions) -> str:
    """Writes ``checkpoint/`` and ``sample.txt`` from a surviving peer's home; the sample.

    What fails becomes one of the outcome's problems.
    """
    # torch: only now that the peers no longer need the processors.
    from runnel.tools.cli_run import sample_text, save_checkpoint

    folder = next(iter(sorted(home.glob("runs/*"))), home)
    try:
        save_checkpoint(folder, options.out / "checkpoint")
        prompt = _PROMPTS[options.text is None]
        sample = sample_text(folder, prompt=prompt, tokens=_SAMPLE_TOKENS, seed=options.seed)
    except RunnelError as error:
        outcome.problems.append(f"no checkpoint or sample: {error}")
        return ""
    write_atomically(options.out / "sample.txt", f"{sample}\n".encode())
    return sample


def write_report(
    outcome: Outcome, journals: Mapping[str, Path], options: DemoOptions, sample: str
) -> list[str]:
    """Writes ``report.html`` with its pictures and ``outcome.json``; the summary's sentences."""
    facts = ReportFacts(
        run_name="A demo of runnel",
        parameters=outcome.parameters,
        peers=outcome.peers,
        settings=_settings(options),
        sample=sample,
        killed={
            name: life.ended_s or 0.0
            for name, peer in outcome.history.peers.items()
            for life in peer.lives
            if life.how == "killed"
        },
        notes=[*(f"PROBLEM: {problem}" for problem in outcome.problems), *outcome.notes()],
    )
    build_report(journals, options.out, facts=facts)
    figures = json.dumps(outcome.as_json(), indent=1)
    write_atomically(options.out / "outcome.json", f"{figures}\n".encode())
    return summary_of(outcome.history, facts)


def tidy(peers: Mapping[int, PeerProcess]) -> None:
    """Removes the homes but for the first peer's: from that one the model can still be sampled."""
    for index, peer in peers.items():
        if index:
            shutil.rmtree(peer.home, ignore_errors=True)


def _settings(options: DemoOptions) -> dict[str, str]:
    spec = run_spec(options)
    model, outer = spec.model, spec.outer
    return {
        "peers": str(options.peers),
        "minutes": f"{options.minutes:g}",
        "seed": str(options.seed),
        "text": "Python's standard library" if options.text is None else options.text.name,
        "model": f"{model.layers} layers, width {model.width}, context {model.context}",
        "inner steps between two rounds of a fragment": str(outer.every_steps),
        "fragments": str(outer.fragments),
        "codecs": f"{outer.codec} up, {outer.result_codec} down",
    }


def _sent(peer: PeerProcess, events: Mapping[str, list[Event]]) -> dict[str, int]:
    """Bytes by purpose: as the journal says, or else the status that the peer wrote last."""
    counted = [e for e in events.get(peer.fate.name, ()) if isinstance(e, TrafficCounted)]
    if counted:
        return dict(counted[-1].sent)
    path = peer.status_path()
    if path is not None:
        with suppress(OSError, ValueError, AttributeError, TypeError):
            sent = json.loads(path.read_bytes()).get("sent_by_purpose", {})
            return {str(name): int(size) for name, size in sent.items()}
    return {}
