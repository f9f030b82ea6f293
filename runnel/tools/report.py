"""A folder that tells what happened in a run: one page, its pictures, the summary as text.

Made of the peers' journals alone, after the run or in the middle of it. The page needs no network,
no script and no other file.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from html import escape
from typing import TYPE_CHECKING

from runnel.errors import InputFileError
from runnel.node.atomic import write_atomically
from runnel.node.journal import read_events
from runnel.node.wording import size_text
from runnel.tools.history import SwarmHistory
from runnel.tools.report_pictures import peer_label, pictures
from runnel.tools.report_words import summary

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from runnel.tools.peer_history import PeerHistory

_STYLE = """
body { font: 16px/1.5 system-ui, 'DejaVu Sans', Arial, sans-serif; color: #222; background: #fff;
       max-width: 900px; margin: 2em auto; padding: 0 1em; }
h1 { font-size: 1.6em; } h2 { font-size: 1.2em; margin-top: 2em; }
table { border-collapse: collapse; font-size: 0.85em; }
th, td { text-align: right; padding: 0.25em 0.7em; border-bottom: 1px solid #ddd; }
th:first-child, td:first-child { text-align: left; }
svg { max-width: 100%; height: auto; } div.wide { overflow-x: auto; }
pre { background: #f5f5f5; padding: 1em; overflow-x: auto; white-space: pre-wrap; }
li { overflow-wrap: anywhere; }
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class ReportFacts:
    """What the journals do not say.

    Args:
        run_name: for the title.
        parameters: number of the model's parameters.
        peers: in the swarm at its usual size, for the comparison with data parallel.
        settings: what to list under "Settings", as words.
        sample: text the trained model wrote, or "".
        killed: by peer name, when somebody killed it (unix seconds), where that is known.
        notes: more sentences for the summary, shown first.
    """

    run_name: str
    parameters: int
    peers: int
    settings: Mapping[str, str] = field(default_factory=dict)
    sample: str = ""
    killed: Mapping[str, float] = field(default_factory=dict)
    notes: Sequence[str] = ()


def build_report(journals: Mapping[str, Path], out_dir: Path, *, facts: ReportFacts) -> Path:
    """Writes ``report.html``, ``summary.txt`` and the pictures into `out_dir`; returns the page's path.

    Args:
        journals: by the name a reader should see for the peer ("peer 1").
        out_dir: made if missing; files of an earlier report are replaced.
        facts: what the journals do not say.

    Raises:
        InputFileError: a journal is missing, or none holds an event.
        StorageError: the folder cannot be written.
    """
    history = read_history(journals, killed=facts.killed)
    sentences = summary_of(history, facts)
    drawn = pictures(history, parameters=facts.parameters, peers=facts.peers)
    for name, svg in drawn:
        write_atomically(out_dir / f"{name}.svg", svg.encode())
    text = "\n".join([facts.run_name, "", *sentences])
    write_atomically(out_dir / "summary.txt", f"{text}\n".encode())
    page = out_dir / "report.html"
    write_atomically(page, _page(history, facts, sentences, drawn).encode())
    return page


def read_history(
    journals: Mapping[str, Path], *, killed: Mapping[str, float] | None = None
) -> SwarmHistory:
    """All journals' events in the order of their times.

    Raises:
        InputFileError: a journal is missing, or none holds an event.
    """
    history = SwarmHistory()
    told = []
    for name, path in journals.items():
        try:
            told += [
                (event.unix_s, index, name, event) for index, event in enumerate(read_events(path))
            ]
        except FileNotFoundError as error:
            raise InputFileError(
                f"{path} is missing: the journal of {name} was expected there; check the path"
            ) from error
    if not told:
        paths = ", ".join(str(path) for path in journals.values()) or "no file"
        raise InputFileError(f"{paths}: no event of a run in there; give the journals of a run")
    for _, _, name, event in sorted(told, key=lambda entry: (entry[0], entry[2], entry[1])):
        history.apply(name, event)
    for name, unix_s in (killed or {}).items():
        history.mark_killed(name, unix_s)
    history.close()
    return history


def summary_of(history: SwarmHistory, facts: ReportFacts) -> list[str]:
    """The report's sentences."""
    return [*facts.notes, *summary(history, parameters=facts.parameters, peers=facts.peers)]


def _page(
    history: SwarmHistory,
    facts: ReportFacts,
    sentences: Sequence[str],
    drawn: Sequence[tuple[str, str]],
) -> str:
    told = "".join(f"<li>{escape(sentence)}</li>\n" for sentence in sentences)
    shown = "\n".join(f'<div class="wide">{svg}</div>' for _, svg in drawn)
    parts = [
        f"<h1>{escape(facts.run_name)}</h1>",
        f"<h2>What happened</h2>\n<ul>\n{told}</ul>",
        f"<h2>Pictures</h2>\n{shown}",
        f'<h2>Peers</h2>\n<div class="wide">{_peer_table(history)}</div>',
    ]
    if facts.sample:
        parts.append(f"<h2>What the model writes now</h2>\n<pre>{escape(facts.sample)}</pre>")
    if facts.settings:
        rows = [[name, value] for name, value in facts.settings.items()]
        parts.append(f"<h2>Settings</h2>\n{_table([], rows)}")
    body = "\n".join(parts)
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(facts.run_name)}</title>\n<style>{_STYLE}</style>\n</head>\n"
        f"<body>\n{body}\n</body>\n</html>\n"
    )


def _peer_table(history: SwarmHistory) -> str:
    peers = [history.peers[name] for name in sorted(history.peers)]
    purposes = sorted({purpose for peer in peers for purpose in peer.traffic.sent})
    head = ["peer", "end", "rounds", "late", "tokens", "sent", "received"]
    rows = [_peer_row(history, peer, purposes) for peer in peers]
    return _table([*head, *(f"sent: {purpose}" for purpose in purposes)], rows)


def _peer_row(history: SwarmHistory, peer: PeerHistory, purposes: Sequence[str]) -> list[str]:
    return [
        peer_label(peer),
        peer.state,
        str(history.included(peer.peer)),
        str(peer.late),
        f"{peer.tokens:,}",
        size_text(peer.sent_bytes),
        size_text(peer.traffic.received.total()),
        *(size_text(peer.traffic.sent[purpose]) for purpose in purposes),
    ]


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = []
    if head:
        cells = "".join(f"<th>{escape(cell)}</th>" for cell in head)
        lines.append(f"<tr>{cells}</tr>")
    for row in rows:
        cells = "".join(f"<td>{escape(cell)}</td>" for cell in row)
        lines.append(f"<tr>{cells}</tr>")
    return "<table>\n" + "\n".join(lines) + "\n</table>"
