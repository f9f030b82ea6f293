"""The command `runnel`. Nothing heavy is imported before a command needs it."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

import runnel
from runnel.tools.cli_errors import exit_code_of
from runnel.tools.cli_machine import HomeOption, MachineOptions, takes_machine
from runnel.tools.cli_signals import exit_on_interrupt

SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="SECTION.FIELD=VALUE", help="Replaces a setting. Repeatable."),
]
SourceOption = Annotated[
    str,
    typer.Option(help="Where this machine has the run's transformers model, if not on the hub."),
]
RunArgument = Annotated[
    str, typer.Argument(help="Name, id or folder of a run; not needed if there is only one.")
]

app = typer.Typer(
    name="runnel",
    help="Train models together over home connections: a swarm without a server.",
    add_completion=False,
    invoke_without_command=True,
)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line `argv` (default: this process's) and returns its exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    for output in (sys.stdout, sys.stderr):  # not every console has every sign
        if isinstance(output, io.TextIOWrapper):
            output.reconfigure(errors="replace")
    command = typer.main.get_command(app)
    return exit_code_of(
        lambda: command.main(args=arguments, prog_name="runnel", standalone_mode=False)
    )


def _show_version(wanted: bool) -> None:
    if wanted:
        print(f"runnel {runnel.__version__}")
        raise typer.Exit


@app.callback()
def _root(
    context: typer.Context,
    *,
    version: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Version and exit."),
    ] = False,
    network: Annotated[
        str | None,
        typer.Option(
            help="auto (default; or $RUNNEL_NETWORK), daemon, or libp2p: without the daemon."
        ),
    ] = None,
) -> None:
    del version
    if network is not None:  # one for the process, and for those that it starts
        from runnel.node.config import NETWORK_VARIABLE

        os.environ[NETWORK_VARIABLE] = network
    if context.invoked_subcommand is None:
        print(context.get_help())


@app.command()
def new(
    name: Annotated[str, typer.Argument(help="Lower-case letters, digits and hyphens.")],
    out: Annotated[Path, typer.Option(help="The file to write; never replaced.")] = Path(
        "run.toml"
    ),
    method: Annotated[
        str, typer.Option(help="streaming, or with shared seeds: spsa, fedkseed, ferret.")
    ] = "streaming",
    overrides: SetOption = None,
) -> None:
    """Write a commented run.toml for a new run."""
    from runnel.node.atomic import write_atomically
    from runnel.node.manifest_text import method_settings, new_run_toml

    text = new_run_toml(name, [*method_settings(method), *(overrides or ())])
    write_atomically(out, text.encode(), overwrite=False)
    print(f"wrote {out}: edit it, then start the run with: runnel launch {out}")


@app.command()
def plan(
    file: Annotated[Path, typer.Argument(help="The run's file, as `runnel new` writes it.")],
    links: Annotated[
        str, typer.Option(help="Who takes part: phone, home, fiber, lab, or UP/DOWN in Mbit/s.")
    ] = "home:4",
    step_s: Annotated[
        float | None, typer.Option(help="Seconds of an inner step; measured here by default.")
    ] = None,
    parameters: Annotated[int, typer.Option(min=0, help="Values of a model of yours.")] = 0,
    overrides: SetOption = None,
    *,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
) -> None:
    """Show what a run will ask of its members' links, before it begins."""
    from runnel.node.manifest_text import load_spec

    spec = load_spec(file, overrides or ())
    from runnel.tools.cli_plan import plan_run, show_plan

    planned = plan_run(spec, links, step_s=step_s, parameters=parameters)
    show_plan(*planned, as_json=as_json)


@app.command()
@takes_machine
def launch(
    file: Annotated[Path, typer.Argument(help="The run's file, as `runnel new` writes it.")],
    base: Annotated[
        Path | None,
        typer.Option(help="Start from these weights: what `checkpoint` wrote, or safetensors."),
    ] = None,
    source: SourceOption = "",
    overrides: SetOption = None,
    *,
    machine: MachineOptions,
) -> None:
    """Start a run: its first peer trains here and prints the invite for others."""
    with exit_on_interrupt():
        from runnel.node.config import LaunchPlan
        from runnel.node.manifest_text import load_spec

        spec = load_spec(file, overrides or ())
        config = machine.config()
        from runnel.tools.cli_run import run
    run(LaunchPlan(machine=config, spec=spec, base=base, source=source))


@app.command()
@takes_machine
def join(
    invite: Annotated[str, typer.Argument(help="The text that starts with runnel:")],
    threads: Annotated[int, typer.Option(min=1, max=16, help="For encoding and decoding.")] = 1,
    base: Annotated[
        Path | None,
        typer.Option(
            help="What a shared-seed run began with, if you have it: its log is enough then."
        ),
    ] = None,
    source: SourceOption = "",
    *,
    machine: MachineOptions,
) -> None:
    """Train with a swarm until Ctrl-C (first: leave in order; second: exit now)."""
    with exit_on_interrupt():
        from runnel.clock import SystemClock
        from runnel.node.config import LaunchPlan
        from runnel.node.invite import Invite

        parsed = Invite.parse(invite)
        parsed.require_valid(SystemClock().unix_s())
        config = machine.config(threads=threads)
        from runnel.tools.cli_run import run
    run(LaunchPlan(machine=config, invite=parsed, base=base, source=source))


@app.command()
def status(
    run: RunArgument = "",
    home: HomeOption = None,
    *,
    as_json: Annotated[
        bool, typer.Option("--json", help="One JSON object per line and peer.")
    ] = False,
) -> None:
    """Show the runs on this machine: peers, rounds, loss, bytes."""
    from runnel.clock import SystemClock
    from runnel.tools.cli_status import (
        cap_lines,
        check_lines,
        diary_lines,
        find_runs,
        json_lines,
        reach_lines,
        status_lines,
    )

    found, now_unix_s = find_runs(_home(home), run), SystemClock().unix_s()
    if as_json:
        lines = json_lines(found, now_unix_s)
    else:
        lines = status_lines(found, now_unix_s)
        if len(found) == 1:
            one = found[0]
            lines += [*cap_lines(one), *check_lines(one), *reach_lines(one), *diary_lines(one)]
    print("\n".join(lines))


@app.command()
def checkpoint(
    run: RunArgument = "",
    out: Annotated[
        Path | None, typer.Option(help="Folder to write; default: NAME-checkpoint.")
    ] = None,
    home: HomeOption = None,
) -> None:
    """Write the newest state that the swarm agreed on, as safetensors with a manifest."""
    from runnel.tools.cli_status import find_run

    found = find_run(_home(home), run)
    name = str(found.status.get("run", found.folder.name))
    from runnel.tools.cli_run import save_checkpoint

    print(f"wrote {save_checkpoint(found.folder, out or Path(f'{name}-checkpoint'))}")


@app.command()
def sample(
    run: Annotated[
        str, typer.Argument(help="As for `runnel status`, or a folder that `checkpoint` wrote.")
    ] = "",
    prompt: Annotated[str, typer.Option(help="Text to continue.")] = "\n",
    tokens: Annotated[int, typer.Option(min=1, max=100_000, help="How many to add.")] = 300,
    seed: Annotated[int, typer.Option(min=0, help="The same seed gives the same text.")] = 0,
    home: HomeOption = None,
) -> None:
    """Let the model write."""
    from runnel.node.checkpoint import is_checkpoint
    from runnel.tools.cli_status import find_run

    expected = (
        "the name or folder of a run, or a folder that `runnel checkpoint` wrote, where the run's settings"
        " are beside the weights: weights alone, as `apply` writes them, are for your own program"
    )
    given = run and is_checkpoint(Path(run))
    folder = Path(run) if given else find_run(_home(home), run, expected=expected).folder
    from runnel.tools.cli_run import sample_text

    print(sample_text(folder, prompt=prompt, tokens=tokens, seed=seed))


@app.command()
def export(
    run: RunArgument = "",
    kind: Annotated[
        str,
        typer.Option(
            "--as", help="log = a shared-seed run in kilobytes, hf = a transformers model."
        ),
    ] = "log",
    out: Annotated[
        Path | None, typer.Option(help="What to write; default: NAME.seeds or NAME-hf.")
    ] = None,
    source: SourceOption = "",
    home: HomeOption = None,
) -> None:
    """Write a shared-seed run as what `apply` makes its weights of, or a model for transformers."""
    from runnel.errors import ConfigError
    from runnel.tools.cli_status import find_run

    if kind not in ("log", "hf"):
        raise ConfigError(
            f"--as {kind!r} is no form of export, expected log or hf: `runnel checkpoint` writes weights"
        )
    found = find_run(_home(home), run)
    name = str(found.status.get("run", found.folder.name))
    from runnel.tools.cli_run import export_hf, export_log

    if kind == "hf":
        print(export_hf(found.folder, out or Path(f"{name}-hf"), source))
    else:
        print(export_log(found.folder, out or Path(f"{name}.seeds")))


@app.command("apply")
def apply_(
    base: Annotated[
        Path, typer.Argument(help="A folder that `checkpoint` wrote, or a file of safetensors.")
    ],
    log: Annotated[Path, typer.Argument(help="The log of a run that shared seeds.")],
    out: Annotated[
        Path | None, typer.Option(help="File to write; default: LOG with .safetensors.")
    ] = None,
) -> None:
    """Rebuild the weights of a shared-seed run from its base and its log, bit for bit."""
    from runnel.tools.cli_run import apply_log

    print(apply_log(base, log, out or log.parent / f"{log.stem}.safetensors"))


@app.command(
    context_settings={
        "allow_extra_args": True,
        "ignore_unknown_options": True,
        "help_option_names": [],
    }
)
def demo(context: typer.Context) -> int:
    """Train with a swarm of peers on this machine, and write a report (demo --help says more)."""
    from runnel.tools.demo import main as run_demo

    return run_demo(context.args)


def _home(home: Path | None) -> Path:
    from runnel.node.config import MachineConfig

    return MachineConfig.at(home).home


if __name__ == "__main__":
    sys.exit(main())
