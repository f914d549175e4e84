"""The verbs that a user types. Each imports its tower when it is called, so that `toolkit --help` answers at once."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

import toolkit
from toolkit.errors import GraphError, PlacementError, ServiceError, ToolkitError
from toolkit.spec import ReplicaSpec

EXIT_CODES: dict[type[Exception], int] = {GraphError: 2, PlacementError: 3}
"""Of what is wrong before the first call; everything else is 1."""
_DEFAULTS = ReplicaSpec(service="")

app = typer.Typer(
    name="toolkit",
    help="Compose machine-learning models as typed gRPC microservices.",
    epilog="\b\nStart here:\n  toolkit new my_project && cd my_project && toolkit generate && toolkit up graph.yaml",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)


def main() -> None:
    """The command `toolkit`. What is wrong is one line a problem on standard error, never a traceback."""
    try:
        app()
    except (ToolkitError, ServiceError) as error:
        for line in str(error).splitlines():
            typer.echo(f"error: {line}", err=True)
        sys.exit(EXIT_CODES.get(type(error), 1))
    except KeyboardInterrupt:
        sys.exit(130)  # before `up` catches signals, or after it has


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"toolkit {toolkit.__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    pass


GraphFile = Annotated[Path, typer.Argument(metavar="FILE", help="The graph file.", show_default=False)]


@app.command(
    epilog="""\b
Exit codes:
  0    stopped by Ctrl-C or SIGTERM, every call finished
  1    a replica failed, or died later
  2    the graph file, or the command, is wrong
  3    this machine lacks a device that the graph asks for
  4    not ready within --start-timeout
  8    calls were still in flight after --drain-timeout; their replicas were killed
  130  killed by a second Ctrl-C; 143 by a second SIGTERM, 129 by a second SIGHUP

\b
Examples:
  toolkit up graph.yaml
  toolkit up graph.yaml --start-timeout 20m
  NO_COLOR=1 toolkit up graph.yaml 2> up.log
"""
)
def up(
    file: GraphFile,
    start_timeout: Annotated[
        str, typer.Option(metavar="DURATION", help="How long all replicas may take to become ready.")
    ] = f"{_DEFAULTS.start_timeout:g}s",
    drain_timeout: Annotated[
        str, typer.Option(metavar="DURATION", help="How long each tier may take to finish its calls at the end.")
    ] = f"{_DEFAULTS.drain_timeout:g}s",
) -> None:
    """Bring up a graph on this machine, watch it, and take it down.

    Ctrl-C once drains it, callers before callees; twice kills it. All that is shown goes to standard error.
    """
    from toolkit.launcher.supervisor import Limits
    from toolkit.launcher.up import up as run_up

    limits = Limits(
        start_timeout=_duration("--start-timeout", start_timeout),
        drain_timeout=_duration("--drain-timeout", drain_timeout),
    )
    raise typer.Exit(run_up(file, limits, stream=sys.stderr, environ=os.environ))


@app.command(
    epilog="""\b
Exit codes:
  0  all is well
  2  something is wrong; one line a problem, FILE:LINE: KEY: what and the cure

\b
Example:
  toolkit check graph.yaml
"""
)
def check(file: GraphFile) -> None:
    """Check a graph file and its classes; load no model.

    Its classes must import, their handles have deployments, and these serve what the handles expect.
    """
    from toolkit.launcher.edges import find_edges
    from toolkit.launcher.inspector import check_edges
    from toolkit.launcher.manifest import load_graph

    graph = load_graph(file)
    edges = find_edges(graph, check_edges(graph))
    count = sum(map(len, edges.values()))
    typer.echo(f"ok: {graph.name}: deployments {len(edges)}, edges {count}")


@app.command(
    epilog="""\b
Examples:
  toolkit call GenerateScore '{"sentence": "A cat"}' --graph graph.yaml
  toolkit call services.echo.v1.Echo/Say '{"text": "hi"}' --target 127.0.0.1:50051
  echo '{"text": "hi"}' | toolkit call Say - --target unix:/tmp/echo.sock
"""
)
def call(
    method: Annotated[str, typer.Argument(metavar="METHOD", help="Its name, or package.Service/Method.")],
    payload: Annotated[str, typer.Argument(metavar="JSON", help="The request; - reads it from standard input.")] = "{}",
    graph: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Call the entry of this graph file.", show_default=False)
    ] = None,
    target: Annotated[
        str | None, typer.Option(metavar="HOST:PORT", help="Call what listens there.", show_default=False)
    ] = None,
    timeout: Annotated[
        str, typer.Option(metavar="DURATION", help="How long the call may take.")
    ] = f"{_DEFAULTS.timeout:g}s",
) -> None:
    """Call a method; print its replies as JSON.

    A stream of replies is one line each. A method with a stream of requests takes a JSON array.
    """
    import asyncio

    from toolkit.call import call as call_method

    replies = call_method(
        _address(graph, target),
        method,
        sys.stdin.read() if payload == "-" else payload,
        timeout=_duration("--timeout", timeout),
    )

    async def print_replies() -> None:
        async for reply in replies:
            typer.echo(reply)

    asyncio.run(print_replies())


@app.command(
    epilog="""\b
Exit codes:
  0  all is current
  1  a .proto is wrong; with --check, or something is not current

\b
Examples:
  toolkit generate
  toolkit generate --check     in CI: says what would change, and writes nothing
"""
)
def generate(
    check: Annotated[bool, typer.Option("--check", help="Write nothing; fail and show the difference.")] = False,
) -> None:
    """Make Python of every .proto under protos/."""
    from protoc_gen_toolkit import generate as render

    from toolkit.project.generate import find_project, generate_project

    outcome = generate_project(find_project(Path.cwd()), render, check=check)
    for warning in outcome.warnings:
        typer.echo(f"warning: {warning}", err=True)
    if check:
        typer.echo(outcome.diff, nl=False)
        raise typer.Exit(0 if outcome.is_current else 1)
    for path in outcome.written:
        typer.echo(f"wrote {path}")
    for path in outcome.removed:
        typer.echo(f"removed {path}")


@app.command(
    epilog="""\b
Example:
  toolkit new my_project
"""
)
def new(name: Annotated[str, typer.Argument(metavar="NAME", help="The folder, and the package in it.")]) -> None:
    """Make a project that runs.

    It has a .proto, a service, a test and a graph file.
    """
    from toolkit.project.scaffold import create_project

    create_project(Path.cwd(), name)
    typer.echo(f"made {name}/; next:\n  cd {name}\n  toolkit generate\n  toolkit up graph.yaml")


def _duration(option: str, text: str) -> float:
    from toolkit.launcher.manifest import parse_duration

    try:
        return parse_duration(text)
    except ValueError as error:
        raise typer.BadParameter(f"{option} {error}") from None


def _address(graph: Path | None, target: str | None) -> str:
    from toolkit.launcher.addresses import LOOPBACK
    from toolkit.launcher.manifest import load_graph

    if graph is not None and target is None:
        loaded = load_graph(graph)
        return f"{LOOPBACK}:{loaded.port(loaded.entry)}"
    if target is not None and graph is None:
        return target
    raise typer.BadParameter("name what to call: either --graph FILE or --target HOST:PORT")
