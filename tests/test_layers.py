"""What is laid over a graph file: other files, and `--set`. Each error names the source that said it."""

from __future__ import annotations

from pathlib import Path

import pytest

from toolkit.errors import GraphError
from toolkit.launcher.document import Place
from toolkit.launcher.layers import read_layers
from toolkit.launcher.manifest import Graph, Replicas, load_graph

BASE = """\
name: g
entry: front
env: {LEVEL: info, REGION: eu}
services:
  gpt2: {class: "m:Text", args: {model: small, stop: [a, b]}, env: {LEVEL: debug}}
  front:
    class: m:Front
    traffic: {timeout: 60s, max_concurrency: 8}
    port: 50052
"""


def write(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.write_text(text)
    return path


def load(folder: Path, *overrides: str, assign: tuple[str, ...] = (), base: str = BASE) -> Graph:
    paths = [write(folder, f"over{index}.yaml", text) for index, text in enumerate(overrides)]
    return load_graph(write(folder, "graph.yaml", base), paths, assign)


def problems(folder: Path, *overrides: str, assign: tuple[str, ...] = (), base: str = BASE) -> list[str]:
    with pytest.raises(GraphError) as caught:
        load(folder, *overrides, assign=assign, base=base)
    return [line.removeprefix(f"{folder}/") for line in str(caught.value).splitlines()]


def test_mappings_are_merged_and_everything_else_is_replaced(tmp_path: Path) -> None:
    gpt2_says = "gpt2: {args: {model: large, stop: [c]}, replicas: {min: 1, max: 3}}"
    graph = load(tmp_path, f"services:\n  {gpt2_says}\n  front: {{traffic: {{timeout: 2m}}}}\n")
    gpt2, front = graph.services["gpt2"], graph.services["front"]
    assert (gpt2.service, gpt2.args) == ("m:Text", {"model": "large", "stop": ["c"]})
    assert gpt2.replicas == Replicas(min=1, max=3)
    assert (front.traffic.timeout, front.traffic.max_concurrency, front.port) == (120.0, 8, 50052)


def test_nothing_takes_a_key_away(tmp_path: Path) -> None:
    graph = load(tmp_path, "services: {front: {port: ~, traffic: {max_concurrency: ~}}}")
    assert (graph.port("front"), graph.services["front"].traffic.max_concurrency) == (50051, None)
    assert problems(tmp_path, "services: {front: {prot: ~}}") == [
        "over0.yaml:1: services.front.prot: nothing is said here that ~ could take away"
    ]


def test_the_last_one_counts(tmp_path: Path) -> None:
    graph = load(tmp_path, "env: {LEVEL: warn}", "env: {LEVEL: error}\nservices: {gpt2: {env: {LEVEL: ~}}}")
    assert graph.services["gpt2"].env == {"LEVEL": "error", "REGION": "eu"}


def test_an_empty_file_says_nothing(tmp_path: Path) -> None:
    assert load(tmp_path, "# nothing yet\n").services == load(tmp_path).services


def test_a_deployment_may_be_added_whole(tmp_path: Path) -> None:
    graph = load(tmp_path, 'services: {extra: {class: "m:Extra"}}')
    assert list(graph.services) == ["gpt2", "front", "extra"]


def test_a_deployment_that_becomes_something_else_keeps_nothing(tmp_path: Path) -> None:
    over = [write(tmp_path, "over.yaml", "services: {gpt2: {url: dns:///models:1}}")]
    assert read_layers(write(tmp_path, "graph.yaml", BASE), over).values["services"]["gpt2"] == {
        "url": "dns:///models:1"
    }


def test_an_error_names_the_file_and_the_line_that_said_it(tmp_path: Path) -> None:
    found = problems(
        tmp_path,
        "services:\n  gpt2:\n    replicas: many\n",
        "services: {front: {traffic: {timeout: 5}}, gpt3: {replicas: 2}}\nentri: front\n",
        assign=("gpt2.device=gpu",),
        base=BASE.replace("port: 50052", "prt: 50052"),
    )
    assert found == [
        "graph.yaml:9: services.front.prt: unknown key; did you mean 'port'?",
        'over0.yaml:3: services.gpt2.replicas: must be a whole number, or a mapping with min and max, not "many"',
        "over1.yaml:1: services.front.traffic.timeout: must be a duration with its unit, such as 500ms, 60s or 2m, not 5",
        (
            "over1.yaml:1: services.gpt3.class: missing, and no deployment is named 'gpt3' in "
            f"{tmp_path}/graph.yaml; did you mean 'gpt2'?"
        ),
        "over1.yaml:2: entri: unknown key; did you mean 'entry'?",
        '--set gpt2.device=gpu: services.gpt2.device: must be auto, cpu, mps, cuda, cuda:N or a UUID (GPU-… or MIG-…), not "gpu"',
    ]


def test_a_mapping_of_the_base_keeps_its_place(tmp_path: Path) -> None:
    document = read_layers(
        write(tmp_path, "graph.yaml", BASE), [write(tmp_path, "over.yaml", "\n\nservices: {front: {port: 1}}")]
    )
    assert document.place(("services", "front")) == Place(f"{tmp_path}/graph.yaml", 6)
    assert document.place(("services", "front", "port")) == Place(f"{tmp_path}/over.yaml", 3)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[a]", "over0.yaml:1: must be a mapping with keys of the graph file"),
        ("a: [", "over0.yaml:1:5: not YAML: expected the node content"),
        ("services: {gpt2: {args: {x: 1, x: 2}}}", "over0.yaml:1: services.gpt2.args.x: written twice"),
    ],
)
def test_a_wrong_file_is_named(tmp_path: Path, text: str, expected: str) -> None:
    (found,) = problems(tmp_path, text)
    assert found.startswith(expected)


@pytest.mark.parametrize(
    ("text", "key", "value"),
    [
        ("gpt2.replicas=3", "replicas", Replicas(min=3, max=3)),
        ("gpt2.replicas={max: 3}", "replicas", Replicas(min=1, max=3)),
        ("gpt2.args.temperature=0.5", "args", {"model": "small", "stop": ["a", "b"], "temperature": 0.5}),
        ("gpt2.args.stop=[x]", "args", {"model": "small", "stop": ["x"]}),
        ("gpt2.args.model=a=b", "args", {"model": "a=b", "stop": ["a", "b"]}),
        ("gpt2.args.model.name=x", "args", {"model": {"name": "x"}, "stop": ["a", "b"]}),
        ("gpt2.args.model=", "args", {"stop": ["a", "b"]}),
        ("gpt2.env.LEVEL=1", "env", {"LEVEL": "1", "REGION": "eu"}),
        ("gpt2.envs.LEVEL=a: [", "env", {"LEVEL": "a: [", "REGION": "eu"}),
    ],
)
def test_set_says_one_thing_of_a_deployment(tmp_path: Path, text: str, key: str, value: object) -> None:
    assert getattr(load(tmp_path, assign=(text,)).services["gpt2"], key) == value


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("gpt2.replicas", "--set gpt2.replicas: write DEPLOYMENT.KEY=VALUE, such as gpt2.replicas=2"),
        ("gpt2=1", "--set gpt2=1: write DEPLOYMENT.KEY=VALUE"),
        ("gpt2..x=1", "--set gpt2..x=1: write DEPLOYMENT.KEY=VALUE"),
        ("gpt.device=cpu", "--set gpt.device=cpu: no deployment is named 'gpt'; did you mean 'gpt2'?"),
        ("gpt2.args.x=[", "--set gpt2.args.x=[: not YAML: expected the node content"),
        ("gpt2.devic=cpu", "--set gpt2.devic=cpu: services.gpt2.devic: unknown key; did you mean 'device'?"),
    ],
)
def test_a_wrong_set_is_one_line(tmp_path: Path, text: str, expected: str) -> None:
    (found,) = problems(tmp_path, assign=(text,))
    assert found.startswith(expected)


def test_variables_may_be_written_as_a_list_of_names_and_values(tmp_path: Path) -> None:
    base = BASE.replace("env: {LEVEL: info, REGION: eu}", "envs:\n  - {name: LEVEL, value: info}")
    graph = load(tmp_path, "services: {front: {envs: [{name: B, value: b}]}}", base=base)
    assert graph.services["gpt2"].env == {"LEVEL": "debug"}
    assert graph.services["front"].env == {"LEVEL": "info", "B": "b"}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("env: {A: a}\nenvs: {B: b}", "over0.yaml:2: envs: the same as env; say it once"),
        ("envs:\n  - {name: A}", 'over0.yaml:2: env.0: must be {name: VARIABLE, value: "text"}'),
        ("envs:\n  - A=1", 'over0.yaml:2: env.0: must be {name: VARIABLE, value: "text"}'),
        ("envs:\n  - {name: A, value: x}\n  - {name: A, value: y}", "over0.yaml:3: env.A: written twice"),
        ("envs:\n  - {name: A, value: 1}", "over0.yaml:2: env.A: must be text, not 1"),
        ("envs:\n  - {name: TOOLKIT_A, value: x}", "over0.yaml:2: env.TOOLKIT_A: the launcher's own"),
        ("envs: 7", "over0.yaml:1: env: must be a mapping, not 7"),
    ],
)
def test_a_wrong_list_of_variables(tmp_path: Path, text: str, expected: str) -> None:
    found = problems(tmp_path, text)
    assert any(line.startswith(expected) for line in found)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("scaling: {max_replicas: 3}", "unknown key; say replicas: {min: 1, max: 5}"),
        ("deployment_strategy: RollingUpdate", "unknown key; say strategy: rolling, or strategy: recreate"),
        ("strategy: RollingUpdate", 'must be rolling or recreate, not "RollingUpdate"'),
    ],
)
def test_what_others_call_it_is_known(tmp_path: Path, text: str, expected: str) -> None:
    (found,) = problems(tmp_path, f"services: {{gpt2: {{{text}}}}}")
    assert found == f"over0.yaml:1: services.gpt2.{text.partition(':')[0]}: {expected}"
