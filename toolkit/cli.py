"""The verbs that a user types. Each imports its tower when it is called, so that `toolkit --help` answers at once."""

from __future__ import annotations

import os
import sys
from contextlib import ExitStack, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

import toolkit
from toolkit.errors import (
    ConflictError,
    GraphError,
    NotRunningError,
    PlacementError,
    RunningError,
    ServiceError,
    ToolkitError,
    UsageError,
)
from toolkit.spec import Outgoing, ReplicaSpec, check_port, check_target

EXIT_CODES: dict[type[Exception], int] = {
    GraphError: 2,
    UsageError: 2,
    PlacementError: 3,
    ConflictError: 5,
    RunningError: 6,
    NotRunningError: 7,
}
"""Of what is wrong before the first call; everything else is 1."""
_DEFAULTS = ReplicaSpec(service="")

app = typer.Typer(
    name="toolkit",
    help="Compose machine-learning models as typed gRPC microservices.",
    epilog="""\b
Start here:
  toolkit new my_project && cd my_project && toolkit generate && toolkit up graph.yaml

\b
Exit codes:
  0  done                                   5  a port or folder is taken
  1  it failed                              6  the graph is up already
  2  the command or a file is wrong         7  the graph is not up
  3  the machine lacks what is asked for    8  calls were cut off at the end
  4  not ready in time                      130, 143  killed by a second Ctrl-C, SIGTERM""",
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
        sys.exit(_complain(str(error), EXIT_CODES.get(type(error), 1)))
    except KeyboardInterrupt:
        sys.exit(130)  # before `up` catches signals, or after it has
    except OSError as error:  # a disk that is full, a file that may not be read: no fault of ours
        sys.exit(_complain(_tell(error), 1))


def _tell(error: OSError) -> str:
    what = error.strerror or str(error) or type(error).__name__
    return what if error.filename is None else f"{os.fsdecode(error.filename)}: {what}"


def _complain(text: str, code: int) -> int:
    """Say what is wrong, where that can be written."""
    with suppress(OSError):
        for line in text.splitlines():
            typer.echo(f"error: {line}", err=True)
    return code


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
  1    a replica could not start, or was given up after it had died too often
  2    the graph file, or the command, is wrong
  3    this machine lacks a device that the graph asks for
  4    not ready within --start-timeout
  5    a port is taken, or the state folder cannot be written
  6    it is up already
  8    calls were still in flight after --drain-timeout; their replicas were killed
  130  killed by a second Ctrl-C; 143 by a second SIGTERM, 129 by a second SIGHUP

\b
Examples:
  toolkit up graph.yaml
  toolkit up graph.yaml --start-timeout 20m
  toolkit up graph.yaml -f production.yaml --set gpt2.replicas=2 --set gpt2.args.temperature=0.9
  toolkit up graph.yaml --dry-run --fake-gpus 2x24GiB
  toolkit up graph.yaml -d --wait
  toolkit up graph.yaml --watch
  toolkit up graph.yaml --metrics 127.0.0.1:9464
  toolkit up graph.yaml classifier     this one, and what it calls
  NO_COLOR=1 toolkit up graph.yaml 2> up.log
"""
)
def up(
    file: GraphFile,
    services: Annotated[
        list[str] | None,
        typer.Argument(metavar="[SERVICE]...", help="These alone, and what they call.", show_default=False),
    ] = None,
    detach: Annotated[bool, typer.Option("-d", "--detach", help="Leave it running, and return.")] = False,
    wait: Annotated[bool, typer.Option("--wait", help="With -d: return when all is ready.")] = False,
    as_json: Annotated[
        bool,
        typer.Option("--json", help="Each event as a line of JSON, on standard output; with -d as ps --json does."),
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Show errors alone; toolkit logs has the rest.")] = False,
    watch: Annotated[
        bool,
        typer.Option(
            "--watch",
            help="Replace replicas when their files change, or what the graph file says of them; generate from a changed .proto.",
        ),
    ] = False,
    no_deps: Annotated[bool, typer.Option("--no-deps", help="Leave out what the named SERVICEs call.")] = False,
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
    hang_timeout: Annotated[
        str, typer.Option(metavar="DURATION", help="A replica whose event loop stands still for so long is replaced.")
    ] = "10s",
    metrics: Annotated[
        str | None,
        typer.Option(
            metavar="HOST:PORT",
            help="Serve http://HOST:PORT/metrics of the whole graph, for Prometheus.",
            show_default=False,
        ),
    ] = None,
    one_process: Annotated[
        bool,
        typer.Option(
            "--one-process", help="All in one process that has this terminal, for a debugger; none is mended."
        ),
    ] = False,
    stop_with_input: Annotated[
        bool,
        typer.Option(
            "--stop-with-input", help="Stop when standard input ends, as it does when a program that holds it dies."
        ),
    ] = False,
) -> None:
    """Bring up a graph on this machine, watch it, and take it down.

    Ctrl-C once drains it, callers before callees; twice kills it. All that is shown goes to standard error.

    What -f and --set say is laid over the graph file: mappings are merged key by key, everything else is replaced, and ~
    takes a key away.
    """
    from toolkit.launcher.edges import find_edges, select
    from toolkit.launcher.inspector import check_edges
    from toolkit.launcher.inventory import find_machine
    from toolkit.launcher.manifest import Graph, load_graph
    from toolkit.launcher.supervisor import Limits
    from toolkit.launcher.up import Style, Watch, show_plan
    from toolkit.launcher.up import up as run_up

    if stop_with_input:
        from toolkit import lifeline

        if detach:
            raise typer.BadParameter("--stop-with-input: a graph that is left running has no input; leave out -d")
        lifeline.stop_with_input()
    limits = Limits(
        start_timeout=_duration("--start-timeout", start_timeout),
        drain_timeout=_duration("--drain-timeout", drain_timeout),
        hang_timeout=_duration("--hang-timeout", hang_timeout),
    )
    graph = load_graph(file, override or (), assign or ())
    if services:
        graph = select(graph, services, {} if no_deps else find_edges(graph, check_edges(graph, sys.stderr)))
    machine = find_machine(os.environ, _fake_gpus(fake_gpus) if fake_gpus else None)
    if dry_run:
        return show_plan(graph, machine, stream=sys.stdout, environ=os.environ)
    where = _metrics_address(graph.metrics, metrics)
    if one_process:
        from toolkit.launcher.one_process import up_in_one_process

        raise typer.Exit(
            up_in_one_process(
                graph,
                machine,
                drain_timeout=limits.drain_timeout,
                stream=sys.stderr,
                environ=os.environ,
                metrics=where,
            )
        )
    if detach:
        raise typer.Exit(_detach(file, wait=wait, as_json=as_json))
    style: Style = "json" if as_json else "quiet" if quiet else "full"
    stream = sys.stdout if as_json else sys.stderr
    follow: Watch | None = None

    def load() -> Graph:
        """What is said now, of the same deployments."""
        said = load_graph(file, override or (), assign or ())
        services = {name: each for name, each in said.services.items() if name not in graph.absent}
        return replace(said, services=services, absent=graph.absent)

    if watch:
        from toolkit.launcher.watch import watched

        follow = watched
    raise typer.Exit(
        run_up(
            graph,
            machine,
            limits,
            stream=stream,
            environ=os.environ,
            style=style,
            watch=follow,
            load=load,
            metrics=where,
        )
    )


def _detach(file: Path, *, wait: bool, as_json: bool) -> int:
    """The same command once more, in a process of its own."""
    from toolkit.launcher.attach import read_said, start_detached
    from toolkit.launcher.desk import ask
    from toolkit.launcher.state import state_folder
    from toolkit.launcher.waiting import busy, shown

    ours = ("-d", "--detach", "--wait", "--json", "--quiet")
    arguments = ["up", "--quiet", *(each for each in sys.argv[2:] if each not in ours)]
    with busy(str(file), sys.stderr, os.environ) as report:
        report("start")
        code, said = start_detached(file, arguments, os.environ)
    if code == 0 and wait:
        socket = said
        try:
            with shown(state_folder(file, os.environ), sys.stderr, os.environ):
                answer = ask(said, {"do": "wait"})
        except KeyboardInterrupt:
            typer.echo(f"{file} goes on starting; toolkit down takes it down", err=True)
            raise
        code = answer["code"]
        said = read_said(file, os.environ) if code else socket
    if code:
        typer.echo(said, err=True, nl=False)
        return code
    if as_json:
        _print_rows(said, as_json=True)
    else:
        typer.echo(f"{'ready' if wait else 'starting'}: {file}; see toolkit ps, toolkit logs -f, toolkit down")
    return 0


GraphOption = Annotated[
    Path | None,
    typer.Option(
        "--graph",
        metavar="FILE",
        help="Its graph file; default: graph.yaml, or the only one that is up.",
        show_default=False,
    ),
]
_RUNNING_CODES = """\b
Exit codes:
  0  done
  1  it could not be done; what ran goes on
  2  the command is wrong
  7  the graph is not up
"""


@app.command(
    epilog=_RUNNING_CODES
    + """
\b
Examples:
  toolkit ps
  toolkit ps --json | jq -r 'select(.state != "ready") | .name'
"""
)
def ps(
    graph: GraphOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="One object a line and replica.")] = False,
) -> None:
    """Show the replicas of a running graph.

    CALLS are those that a replica handles at this moment, QUEUED those that wait there.
    """
    from toolkit.launcher.state import find_run

    _print_rows(find_run(graph, os.environ)[1].socket, as_json=as_json)


@app.command(
    epilog="""\b
Exit codes:
  0  done
  2  the command is wrong
  7  the graph is not up, and never was

\b
Examples:
  toolkit logs -f
  toolkit logs gpt2 --since 10m
  toolkit logs gpt2 --previous     what it said before it was restarted
"""
)
def logs(
    services: Annotated[
        list[str] | None, typer.Argument(metavar="[SERVICE]...", help="Deployments or replicas; default: all.")
    ] = None,
    graph: GraphOption = None,
    follow: Annotated[bool, typer.Option("-f", "--follow", help="Go on until the graph is down.")] = False,
    since: Annotated[
        str | None, typer.Option(metavar="DURATION", help="Only what was said in the last 10m.", show_default=False)
    ] = None,
    previous: Annotated[bool, typer.Option("--previous", help="Of replicas that were replaced since.")] = False,
) -> None:
    """Print what a graph said, now or when it was last up."""
    import time

    from toolkit.launcher.attach import has_said, show_logs
    from toolkit.launcher.output import PlainView, wants_colour
    from toolkit.launcher.state import find_folder

    view = PlainView(sys.stdout, (), is_coloured=wants_colour(sys.stdout, os.environ), clock=time.monotonic)
    after = None if since is None else time.time() - _duration("--since", since)
    folder = find_folder(graph, os.environ)
    for name in services or ():
        if not has_said(folder, name):
            raise typer.BadParameter(f"nobody named {name!r} has said anything; toolkit ps has the names")
    show_logs(folder, view, services or (), follow=follow, since=after, previous=previous)


@app.command(
    epilog=_RUNNING_CODES
    + """
\b
Examples:
  toolkit restart gpt2
  toolkit restart
"""
)
def restart(
    services: Annotated[
        list[str] | None, typer.Argument(metavar="[SERVICE]...", help="Deployments; default: all.")
    ] = None,
    graph: GraphOption = None,
) -> None:
    """Replace replicas by new ones; no call is lost.

    One after the other: each new one is ready before an old one leaves, unless the graph file says strategy: recreate. One
    that cannot start leaves the old one serving.
    """
    _ask(graph, {"do": "restart", "services": services or []})


@app.command(
    epilog=_RUNNING_CODES
    + """
\b
Example:
  toolkit scale gpt2=3 classifier=2
"""
)
def scale(
    counts: Annotated[list[str], typer.Argument(metavar="SERVICE=N...", help="How many replicas each shall have.")],
    graph: GraphOption = None,
) -> None:
    """Run more replicas of a deployment, or fewer.

    Where the graph file says replicas: {min, max}, it is a number from min to max, and follows the calls again from there.
    """
    found: dict[str, int] = {}
    for text in counts:
        name, _, count = text.partition("=")
        if not name or not count.isdecimal():
            raise typer.BadParameter(f"{text}: write SERVICE=N, as in gpt2=3")
        found[name] = int(count)
    _ask(graph, {"do": "scale", "counts": found})


@app.command(
    epilog="""\b
Exit codes:
  0  it is down, or was not up
  8  calls were still in flight after --drain-timeout; their replicas were killed

\b
Example:
  toolkit down
"""
)
def down(graph: GraphOption = None) -> None:
    """Drain a running graph, callers before callees, and take it down."""
    from toolkit.launcher.attach import take_down
    from toolkit.launcher.state import find_run
    from toolkit.launcher.waiting import shown

    try:
        folder, run = find_run(graph, os.environ)
    except NotRunningError as error:
        typer.echo(str(error).partition(";")[0], err=True)
        return
    with shown(folder, sys.stderr, os.environ):
        code = take_down(run, folder)
    raise typer.Exit(code)


def _ask(graph: Path | None, request: dict[str, Any]) -> None:
    """Ask a running graph for something, and end as it says."""
    from toolkit.launcher.desk import ask
    from toolkit.launcher.state import find_run
    from toolkit.launcher.waiting import shown

    folder, run = find_run(graph, os.environ)
    with shown(folder, sys.stderr, os.environ):
        answer = ask(run.socket, request)
    for line in str(answer.get("error", "")).splitlines():
        typer.echo(f"error: {line}", err=True)
    raise typer.Exit(answer["code"])


def _print_rows(socket: str, *, as_json: bool) -> None:
    import json

    from toolkit.launcher.attach import read_rows, render_table

    rows = read_rows(socket)
    for line in map(json.dumps, rows) if as_json else render_table(rows):
        typer.echo(line)


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

    Its classes must import and take their args, their handles have deployments, and these serve what the handles expect;
    certificates and tokens must be there, and do what they are for.
    """
    from toolkit.launcher.edges import find_edges
    from toolkit.launcher.inspector import check_edges
    from toolkit.launcher.manifest import load_graph
    from toolkit.launcher.trust import plan_trust

    graph = load_graph(file, override or (), assign or ())
    edges = find_edges(graph, check_edges(graph, sys.stderr))
    plan_trust(graph, edges)
    count = sum(map(len, edges.values()))
    typer.echo(f"ok: {graph.name}: deployments {len(edges)}, edges {count}")


@app.command(
    epilog="""\b
Examples:
  toolkit graph graph.yaml
  toolkit graph graph.yaml --format mermaid >> README.md
  toolkit graph graph.yaml --format dot | dot -Tsvg > graph.svg
"""
)
def graph(
    file: GraphFile,
    style: Annotated[Literal["ascii", "mermaid", "dot", "json"], typer.Option("--format", help="As what.")] = "ascii",
    override: Overrides = None,
    assign: Assignments = None,
) -> None:
    """Draw a graph: who calls whom, as its classes say."""
    from toolkit.launcher.inspector import check_edges
    from toolkit.launcher.manifest import load_graph
    from toolkit.launcher.picture import draw

    loaded = load_graph(file, override or (), assign or ())
    typer.echo(draw(loaded, check_edges(loaded, sys.stderr), style))


@app.command(
    epilog="""\b
Exit codes:
  0  nothing is wrong
  1  something is; a line each, with its cure

\b
Example:
  toolkit doctor
"""
)
def doctor() -> None:
    """Look for what keeps graphs from running well here."""
    from toolkit.launcher.doctor import examine
    from toolkit.launcher.inventory import find_machine
    from toolkit.launcher.waiting import busy

    with busy("doctor", sys.stderr, os.environ) as report:
        report("look at this machine and this project")
        findings = list(examine(Path.cwd(), find_machine(os.environ), os.environ))
    is_well = True
    for finding in findings:
        is_well = is_well and not finding.cure
        typer.echo(f"wrong: {finding.what}; {finding.cure}" if finding.cure else f"ok:    {finding.what}")
    raise typer.Exit(0 if is_well else 1)


@app.command(
    epilog="""\b
Exit codes:
  0  all is here
  1  something could not be fetched

\b
Examples:
  toolkit fetch graph.yaml
  toolkit fetch graph.yaml gpt2
"""
)
def fetch(
    file: GraphFile,
    services: Annotated[
        list[str] | None, typer.Argument(metavar="[SERVICE]...", help="Deployments; default: all.", show_default=False)
    ] = None,
    override: Overrides = None,
    assign: Assignments = None,
) -> None:
    """Download the models of a graph beforehand.

    Each class that has a class method __fetch__ gets those of its args that it takes.
    """
    from toolkit.launcher.edges import select
    from toolkit.launcher.fetcher import fetch_all
    from toolkit.launcher.manifest import load_graph
    from toolkit.launcher.waiting import make_view

    loaded = load_graph(file, override or (), assign or ())
    names = list(select(loaded, services, {}).services if services else loaded.services)
    view = make_view(sys.stderr, names, os.environ)
    raise typer.Exit(0 if fetch_all(loaded, names, view, os.environ) else 1)


@app.command(
    epilog="""\b
Exit codes:
  0  it replied
  1  nobody answers, or the call failed
  2  the command, the JSON, or a file that they name is wrong

\b
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
    from toolkit.launcher.output import is_terminal
    from toolkit.launcher.waiting import busy

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
        with ExitStack() as stack:
            if is_terminal(sys.stderr, os.environ):  # elsewhere a line of ours would look like one of the call's errors
                stack.enter_context(busy(method, sys.stderr, os.environ))(f"wait for {address}")
            async for reply in replies:
                stack.close()
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

    from toolkit.launcher.waiting import busy
    from toolkit.project.generate import find_project, generate_project

    with busy("protos/", sys.stderr, os.environ) as report:
        report("generate")
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
    from toolkit.export.plan import plan_containers
    from toolkit.export.write import ENGINES, render, write
    from toolkit.launcher.inspector import check_edges
    from toolkit.launcher.manifest import load_graph

    if engine not in ENGINES:
        raise typer.BadParameter(f"ENGINE is one of {', '.join(ENGINES)}, not {engine}")
    graph = load_graph(file, override or (), assign or ())
    files = render(
        plan_containers(graph, check_edges(graph, sys.stderr)),
        engine,
        Path.cwd() if out is None else out,
        toolkit.__version__,
    )
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


def _metrics_address(said: Any, option: str | None) -> str:
    """What the option says, else the graph file's port on this machine; empty: none."""
    if option is None:
        return f"127.0.0.1:{said.port}" if said else ""
    try:
        check_port(option)
    except ValueError as error:
        raise typer.BadParameter(f"--metrics {error}") from None
    return option


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
        try:
            check_target(target)
        except ValueError as error:
            raise typer.BadParameter(f"--target {error}") from None
        return target, Outgoing()
    raise typer.BadParameter("name what to call: either --graph FILE or --target HOST:PORT")
