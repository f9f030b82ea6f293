"""Options about this machine, which every command that starts a peer has."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer

if TYPE_CHECKING:
    from runnel.node.config import MachineConfig

HomeOption = Annotated[
    Path | None,
    typer.Option(help="Folder of your key and of the runs' state; default: $RUNNEL_HOME."),
]


@dataclass(frozen=True, slots=True)
class MachineOptions:
    """What was given of them."""

    home: HomeOption = None
    port: Annotated[
        int, typer.Option(min=0, max=65_535, help="TCP port to listen on; 0: the system chooses.")
    ] = 0
    host: Annotated[
        str,
        typer.Option(
            help="IP address to listen on; 0.0.0.0: all of them; none: nowhere, this peer dials the others."
        ),
    ] = "0.0.0.0"  # noqa: S104 - a peer that others cannot reach is of little use
    announce: Annotated[
        list[str] | None,
        typer.Option(help="Address for others, such as /ip4/203.0.113.5/tcp/4001. Repeatable."),
    ] = None
    metrics: Annotated[
        str,
        typer.Option(
            metavar="PORT", help="Serve figures for Prometheus to this machine; or HOST:PORT."
        ),
    ] = ""
    max_upload: Annotated[
        str,
        typer.Option(metavar="RATE", help='The most that this peer sends, such as "2 Mbit/s".'),
    ] = ""
    catch_up: Annotated[
        str,
        typer.Option(
            metavar="HOW",
            help="How a shared-seed run's state comes: log, state, or auto (what is faster at home).",
        ),
    ] = ""

    def config(self, *, threads: int = 1) -> MachineConfig:
        """The configuration that they make.

        Raises:
            ConfigError: a value out of range.
        """
        from runnel.node.config import MachineConfig

        return (
            MachineConfig.at(
                self.home,
                port=self.port,
                host=self.host,
                announce=self.announce or (),
                threads=threads,
            )
            .serving(self.metrics)
            .sending(self.max_upload)
            .catching_up(self.catch_up)
        )


def takes_machine(command: Callable[..., None]) -> Callable[..., None]:
    """A command with these options in place of its parameter `machine`."""
    hints = get_type_hints(MachineOptions, include_extras=True)
    own = inspect.signature(command, eval_str=True).parameters.values()
    added = [
        inspect.Parameter(
            option.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=option.default,
            annotation=hints[option.name],
        )
        for option in fields(MachineOptions)
    ]

    @functools.wraps(command)
    def called(**given: Any) -> None:
        options = {option.name: given.pop(option.name) for option in fields(MachineOptions)}
        command(**given, machine=MachineOptions(**options))

    shown = [parameter for parameter in own if parameter.name != "machine"] + added
    called.__signature__ = inspect.Signature(shown)  # type: ignore[attr-defined]
    called.__annotations__ = {parameter.name: parameter.annotation for parameter in shown}
    return called
