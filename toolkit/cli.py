"""The verbs that a user types. Each imports its tower when it is called, so that `toolkit --help` answers at once."""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

import toolkit
from toolkit.errors import GraphError, PlacementError, ServiceError, ToolkitError
from toolkit.spec import Outgoing, ReplicaSpec

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

Overrides = Annotated[
    list[Path] | None,
    typer.Option("-f", metavar="FILE", help="Lay this file over the graph file: production.yaml. May be repeated."),
]
Assignments = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="SVC.KEY=VALUE", help="Say this of a deployment: gpt2.replicas=2. May be repeated."),
]


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
  toolkit up graph.yaml -f production.yaml --set gpt2.replicas=2 --set gpt2.args.temperature=0.9
  toolkit up graph.yaml --dry-run --fake-gpus 2x24GiB
  NO_COLOR=1 toolkit up graph.yaml 2> up.log
"""
)
def up(
    file: GraphFile,
    override: Overrides = None,
    assign: Assignments = None,
    start_timeout: Annotated[
        str, typer.Option(metavar="DURATION", help="How long all replicas may take to become ready.")
    ] = f"{_DEFAULTS.start_timeout:g}s",
    drain_timeout: Annotated[
        str, typer.Option(metavar="DURATION", help="How long each tier may take to finish its calls at the end.")
    ] = f"{_DEFAULTS.drain_timeout:g}s",
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Start nothing; print which replica would get what, and why.")
    ] = False,
    fake_gpus: Annotated[
        str, typer.Option(metavar="NxSIZE", help="Plan as if the machine had these GPUs and no others.")
    ] = "",
) -> None:
    """Bring up a graph on this machine, watch it, and take it down.

    Ctrl-C once drains it, callers before callees; twice kills it. All that is shown goes to standard error.

    What -f and --set say is laid over the graph file: mappings are merged key by key, everything else is replaced, and ~
    takes a key away.
    """
    from toolkit.launcher.inventory import find_machine
    from toolkit.launcher.manifest import load_graph
    from toolkit.launcher.supervisor import Limits
    from toolkit.launcher.up import show_plan
    from toolkit.launcher.up import up as run_up

    limits = Limits(
        start_timeout=_duration("--start-timeout", start_timeout),
        drain_timeout=_duration("--drain-timeout", drain_timeout),
    )
    graph = load_graph(file, override or (), assign or ())
    machine = find_machine(os.environ, _fake_gpus(fake_gpus) if fake_gpus else None)
    if dry_run:
        return show_plan(graph, machine, stream=sys.stdout, environ=os.environ)
    raise typer.Exit(run_up(graph, machine, limits, stream=sys.stderr, environ=os.environ))


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
def check(file: GraphFile, override: Overrides = None, assign: Assignments = None) -> None:
    """Check a graph file and its classes; load no model.

    Its classes must import, their handles have deployments, and these serve what the handles expect; certificates and
    tokens must be there, and do what they are for.
    """
    from toolkit.launcher.edges import find_edges
    from toolkit.launcher.inspector import check_edges
    from toolkit.launcher.manifest import load_graph
    from toolkit.launcher.trust import plan_trust

    graph = load_graph(file, override or (), assign or ())
    edges = find_edges(graph, check_edges(graph))
    plan_trust(graph, edges)
    count = sum(map(len, edges.values()))
    typer.echo(f"ok: {graph.name}: deployments {len(edges)}, edges {count}")


@app.command(
    epilog="""\b
Examples:
  toolkit call GenerateScore '{"sentence": "A cat"}' --graph graph.yaml
  toolkit call services.echo.v1.Echo/Say '{"text": "hi"}' --target 127.0.0.1:50051
  echo '{"text": "hi"}' | toolkit call Say - --target unix:/tmp/echo.sock
  toolkit call Classify '{"image": "@cat.png"}' --graph graph.yaml
  toolkit call Embed '{"words": [[0.5, 1], [2, 3]]}' --graph graph.yaml --save out
  toolkit call Embed '{"words": {"dtype": "float16", "data": "@all.safetensors#words"}}' --graph graph.yaml
  toolkit call Say '{}' --graph graph.yaml --cert certs/client.crt --key certs/client.key
  toolkit call Say '{}' --target models.example:443 --tls --token-file ~/token
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
    save: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Save the replies' arrays there, each as FIELD.npy.", show_default=False),
    ] = None,
    tls: Annotated[bool, typer.Option("--tls", help="Call over TLS; --ca and --cert say so too.")] = False,
    ca: Annotated[str, typer.Option(metavar="FILE", help="Trust this authority, instead of the public ones.")] = "",
    cert: Annotated[str, typer.Option(metavar="FILE", help="Our certificate, where one is asked for.")] = "",
    key: Annotated[str, typer.Option(metavar="FILE", help="Its key.")] = "",
    server_name: Annotated[str, typer.Option(metavar="NAME", help="The name in the server's certificate.")] = "",
    token_file: Annotated[str, typer.Option(metavar="FILE", help="Send the token in its first line.")] = "",
    insecure: Annotated[
        bool, typer.Option("--insecure", help="Send the token to another machine without TLS too.")
    ] = False,
) -> None:
    """Call a method; print its replies as JSON.

    A stream of replies is one line each. A method with a stream of requests takes a JSON array. With --graph, what the
    graph file says of TLS and tokens is used; the options say more.

    A field of type toolkit.v1.Tensor takes an array file: "@cat.npy", "@cat.png" or "@cat.jpg" (uint8; height, width,
    channels), or "@all.safetensors#NAME". It takes numbers in nested lists too, which become bool, int64 or float32; and
    {"dtype", "shape", "data"}, where data is lists, a file, or base64. In every other field "@" is just text.

    --save names a file by its field, "boxes.0.crop.npy"; in a stream of replies "0000.boxes.0.crop.npy" and so on. What
    is there already is replaced. bfloat16 and float8, which .npy cannot name, are saved as their bits.
    """
    import asyncio

    from toolkit.array_files import ArrayFolder
    from toolkit.call import call as call_method

    address, outgoing = _entry(graph, target)
    given = {"ca": ca, "cert": cert, "key": key, "server_name": server_name, "token_file": token_file}
    said: dict[str, Any] = {option: value for option, value in given.items() if value}
    outgoing = replace(outgoing, insecure=insecure, **said)
    replies = call_method(
        address,
        method,
        sys.stdin.read() if payload == "-" else payload,
        timeout=_duration("--timeout", timeout),
        outgoing=replace(outgoing, tls=bool(outgoing.tls or tls or ca or cert)),
        save=None if save is None else ArrayFolder(save, say=partial(typer.echo, err=True)),
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


@app.command(
    epilog="""\b
Examples:
  toolkit certs graph.yaml
  toolkit certs graph.yaml --out certs --client alice --client dashboard --host models.internal
"""
)
def certs(
    file: GraphFile,
    out: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Where to; default: certs beside the graph file.", show_default=False),
    ] = None,
    client: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="Outsiders who call; default: client. May be repeated.")
    ] = None,
    host: Annotated[
        list[str] | None, typer.Option(metavar="HOST", help="What outsiders call the entry by, beside localhost.")
    ] = None,
    days: Annotated[int, typer.Option(min=1, max=365, help="How long a certificate lasts.")] = 30,
    new_ca: Annotated[
        bool, typer.Option("--new-ca", help="Replace the authority; all that trusts it must follow.")
    ] = False,
) -> None:
    """Make certificates and a token for a graph under development.

    An authority, and for each deployment a certificate that says who it is. Made again, it keeps what is good and renews
    what is about to expire; what runs takes the new files by itself.
    """
    from toolkit.launcher.manifest import load_graph

    try:
        from toolkit.project.certs import LOOPBACK, Wanted, advice, make_certificates
    except ImportError:
        raise ToolkitError(
            "certificates are made with the package cryptography; run: pip install 'grpc-model-toolkit[certs]'"
        ) from None

    graph = load_graph(file)
    folder = file.parent / "certs" if out is None else out
    hosts = {name: (*LOOPBACK, *(host or ())) for name in graph.services if graph.port(name)}
    wanted = [Wanted(name=name, graph=graph.name, hosts=hosts.get(name, ())) for name in graph.services]
    clients = [name for name in dict.fromkeys(client or ["client"]) if name not in graph.services]
    wanted += [Wanted(name=name, graph=graph.name, serves=False) for name in clients]
    for line in make_certificates(folder, wanted, days=days, new_ca=new_ca):
        typer.echo(line)
    shown = os.path.relpath(folder, file.parent)
    typer.echo(f"\nadd to {file}:\n{advice(shown, graph.entry, clients)}")


@app.command(
    epilog="""\b
Example:
  toolkit schema > graph.schema.json     and at the top of the graph file:
  # yaml-language-server: $schema=graph.schema.json
"""
)
def schema() -> None:
    """Print the JSON schema of the graph file, for editors."""
    text = Path(__file__).parent.joinpath("launcher", "graph.schema.json").read_text(encoding="utf-8")
    typer.echo(text, nl=False)


@app.command(
    epilog="""\b
Examples:
  toolkit export compose graph.yaml                        on standard output
  toolkit export compose graph.yaml -o .                   as docker-compose.yml
  toolkit export dockerfile graph.yaml -o .                beside the graph file, where compose looks for it
  toolkit export kubernetes graph.yaml -f production.yaml -o deploy
"""
)
def export(
    engine: Annotated[str, typer.Argument(metavar="ENGINE", help="compose, swarm, kubernetes or dockerfile.")],
    file: GraphFile,
    out: Annotated[
        Path | None, typer.Option("-o", "--out", metavar="DIR", help="Where to write the files.", show_default=False)
    ] = None,
    override: Overrides = None,
    assign: Assignments = None,
) -> None:
    """Make the files with which an engine runs a graph.

    The edges come from the classes, so the project must be importable here. Nothing is written where the engine cannot do
    what the graph file says.
    """
    from toolkit.export.write import ENGINES, write
    from toolkit.export.write import export as render
    from toolkit.launcher.manifest import load_graph

    if engine not in ENGINES:
        raise typer.BadParameter(f"ENGINE is one of {', '.join(ENGINES)}, not {engine}")
    graph = load_graph(file, override or (), assign or ())
    files = render(graph, engine, Path.cwd() if out is None else out, toolkit.__version__)
    if out is None:
        shown = [text if len(files) == 1 else f"# {name}\n{text}" for name, text in files.items()]
        typer.echo("---\n".join(shown), nl=False)
        return
    for path in write(files, out):
        typer.echo(f"wrote {path}")


def _duration(option: str, text: str) -> float:
    from toolkit.launcher.manifest import parse_duration

    try:
        return parse_duration(text)
    except ValueError as error:
        raise typer.BadParameter(f"{option} {error}") from None


def _fake_gpus(text: str) -> Any:
    from toolkit.launcher.devices import parse_fake_gpus

    try:
        return parse_fake_gpus(text)
    except ValueError as error:
        raise typer.BadParameter(f"--fake-gpus {error}") from None


def _entry(graph: Path | None, target: str | None) -> tuple[str, Outgoing]:
    """Where to call, and how: of a graph file, or of an address."""
    from toolkit.launcher.manifest import load_graph
    from toolkit.launcher.trust import entry_address, outgoing

    if graph is not None and target is None:
        loaded = load_graph(graph)
        return entry_address(loaded), outgoing(loaded, loaded.entry)
    if target is not None and graph is None:
        return target, Outgoing()
    raise typer.BadParameter("name what to call: either --graph FILE or --target HOST:PORT")
