"""The graph file and its edges: all pure, all errors at once."""

from __future__ import annotations

from pathlib import Path

import pytest

from toolkit.errors import GraphError
from toolkit.launcher.edges import Description, find_cycles, find_edges, find_problems, find_tiers
from toolkit.launcher.manifest import Batching, Graph, Metrics, Replicas, load_graph, parse_duration, parse_size
from toolkit.launcher.specify import specify
from toolkit.launcher.trust import plan_trust

GOOD = """\
name: inference-graph
entry: graph
services:
  gpt2:       {class: "services.text_generation.service:TextGeneration", args: {model: smollm2-135m}, replicas: 2}
  distilgpt2: {class: "services.text_generation.service:TextGeneration", args: {temperature: 0.9}, device: cpu}
  classifier: {class: "services.scoring.service:Scoring", resources: {cpus: 1, memory: 2GiB}, env: {A: "false"}}
  graph:
    class: services.inference_graph.service:InferenceGraph
    traffic: {timeout: 500ms, max_concurrency: 32}
    bind: {writer: gpt2}
    port: 50052
"""


def load(tmp_path: Path, text: str | bytes) -> Graph:
    file = tmp_path / "graph.yaml"
    file.write_bytes(text.encode() if isinstance(text, str) else text)
    return load_graph(file)


def problems(tmp_path: Path, text: str | bytes) -> list[str]:
    with pytest.raises(GraphError) as caught:
        load(tmp_path, text)
    return [line.removeprefix(f"{tmp_path}/") for line in str(caught.value).splitlines()]


def one(deployment: str) -> str:
    """A graph file whose only deployment is written on line 4."""
    return f"name: g\nentry: a\nservices:\n  a: {deployment}\n"


def test_a_good_file_becomes_a_graph(tmp_path: Path) -> None:
    graph = load(tmp_path, GOOD)
    assert (graph.name, graph.entry, list(graph.services)) == (
        "inference-graph",
        "graph",
        ["gpt2", "distilgpt2", "classifier", "graph"],
    )
    gpt2, classifier, entry = (graph.services[name] for name in ("gpt2", "classifier", "graph"))
    assert (gpt2.args, gpt2.device, gpt2.replicas, gpt2.port) == (
        {"model": "smollm2-135m"},
        "auto",
        Replicas(min=2, max=2),
        None,
    )
    assert (classifier.resources.cpus, classifier.resources.memory, classifier.env) == (1.0, 2 << 30, {"A": "false"})
    assert (entry.traffic.timeout, entry.traffic.max_concurrency, entry.bind) == (0.5, 32, {"writer": "gpt2"})
    assert (graph.port("graph"), graph.port("gpt2")) == (50052, None)
    assert graph.where("services", "graph", "port") == f"{tmp_path}/graph.yaml:11: services.graph.port"


def test_traffic_says_what_a_deployment_takes_on_and_what_goes_on_with_every_call(tmp_path: Path) -> None:
    said = 'traffic: {ahead: 1KiB, max_queue: 0, max_outstanding: 7, hedge: auto, max_message: {Say: 1MiB, "*": 2MiB}}'
    graph = load(tmp_path, f'name: g\nentry: a\nforward: [x-tenant]\nservices:\n  a: {{class: "m:C", {said}}}\n')
    traffic = graph.services["a"].traffic
    assert traffic.ahead == 1024
    assert (traffic.max_queue, traffic.max_outstanding, traffic.hedge) == (0, 7, 0.0)
    assert traffic.max_message == {"Say": 1 << 20, "*": 2 << 20}
    assert list(graph.forward) == ["x-tenant"]


def test_batching_says_how_the_calls_of_a_method_are_put_together(tmp_path: Path) -> None:
    said = "batching: {score: {max_size: 16, max_delay: 2ms}, Embed: {max_cost: 4096, max_queue: 7, max_delay: 0ms}}"
    batching = load(tmp_path, one(f'{{class: "m:C", {said}}}')).services["a"].batching
    assert batching == {
        "score": Batching(max_size=16, max_delay=0.002),
        "Embed": Batching(max_cost=4096, max_queue=7, max_delay=0),
    }


def test_a_replica_is_told_what_the_file_says_of_its_batches(tmp_path: Path) -> None:
    graph = load(tmp_path, one('{class: "m:C", batching: {score: {max_size: 16, max_delay: 2ms}, embed: {}}}'))
    trust = plan_trust(graph, {})["a"]
    spec = specify(graph, "a", listen=("127.0.0.1:1",), addresses={}, trust=trust)
    assert spec.batching == {"score": {"max_size": 16, "max_delay": 0.002}, "embed": {}}


@pytest.mark.parametrize(("said", "port"), [("{}", 9464), ("{port: 9000}", 9000)])
def test_metrics_are_read_at_a_port(tmp_path: Path, said: str, port: int) -> None:
    graph = load(tmp_path, one('{class: "m:C"}') + f"metrics: {said}\n")
    assert graph.metrics == Metrics(port=port)


def test_an_entry_without_a_port_gets_the_usual_one(tmp_path: Path) -> None:
    assert load(tmp_path, one('{class: "m:C"}')).port("a") == 50051


def test_replicas_are_a_number_or_two(tmp_path: Path) -> None:
    written = ("3", "{min: 2, max: 5}", "{max: 4}")
    others = "".join(
        f'  {name}: {{class: "m:C", replicas: {text}}}\n' for name, text in zip("bcd", written, strict=True)
    )
    graph = load(tmp_path, one('{class: "m:C"}') + others)
    found = [(each.replicas.min, each.replicas.max) for each in graph.services.values()]
    assert found == [(1, 1), (3, 3), (2, 5), (1, 4)]


def test_scalars_are_those_of_yaml_1_2(tmp_path: Path) -> None:
    args = load(tmp_path, one('{class: "m:C", args: {a: no, b: 1:30, c: 2020-01-01, d: 0x10, e: true, f: ~, g: 1e3}}'))
    assert args.services["a"].args == {
        "a": "no",
        "b": "1:30",
        "c": "2020-01-01",
        "d": 16,
        "e": True,
        "f": None,
        "g": 1e3,
    }


def test_anchors_and_merges_work(tmp_path: Path) -> None:
    text = 'name: g\nentry: a\nservices:\n  a: &a {class: "m:C", device: cpu}\n  b: {<<: *a, device: auto, args: {x: *a}}\n'
    graph = load(tmp_path, text)
    assert graph.services["b"].service == "m:C"
    assert graph.services["b"].device == "auto"
    assert graph.services["b"].args == {"x": {"class": "m:C", "device": "cpu"}}


@pytest.mark.parametrize(
    ("text", "seconds"), [("60s", 60.0), ("500ms", 0.5), ("2m", 120.0), ("1h", 3600.0), ("1.5s", 1.5)]
)
def test_durations(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["60", "", "s", "-1s", "0s", "1d", "1e3s", "٣s", 60, None, "9" * 400 + "s"])
def test_what_is_no_duration(text: object) -> None:
    with pytest.raises(ValueError, match="duration"):
        parse_duration(text)


@pytest.mark.parametrize(
    ("text", "size"), [("2GiB", 2 << 30), ("512MiB", 512 << 20), ("1.5KiB", 1536), ("4GB", 4 * 10**9)]
)
def test_sizes(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize(
    ("deployment", "expected"),
    [
        ('{class: "m:C", devcie: cpu}', "4: services.a.devcie: unknown key; did you mean 'device'?"),
        ('{class: "m:C", zzz: 1}', "4: services.a.zzz: unknown key; known here: class, command, args"),
        ('{class: "m:C", traffic: {timout: 1s}}', "4: services.a.traffic.timout: unknown key; did you mean 'timeout'?"),
        (
            '{class: "m:C", replicas: "2"}',
            '4: services.a.replicas: must be a whole number, or a mapping with min and max, not "2"',
        ),
        (
            '{class: "m:C", replicas: 1.5}',
            "4: services.a.replicas: must be a whole number, or a mapping with min and max, not 1.5",
        ),
        (
            '{class: "m:C", replicas: true}',
            "4: services.a.replicas: must be a whole number, or a mapping with min and max, not true",
        ),
        ('{class: "m:C", replicas: 0}', "4: services.a.replicas: must be at least 1, not 0"),
        ('{class: "m:C", replicas: 100000}', "4: services.a.replicas: must be at most 256, not 100000"),
        ('{class: "m:C", replicas: 2}', "4: services.a.replicas: must be 1, not 2: port 50051 takes one process"),
        (
            '{class: "m:C", replicas: {max: 2}}',
            "4: services.a.replicas: must be 1, not 2: port 50051 takes one process",
        ),
        ('{class: "m:C", replicas: {min: 2, max: 1}}', "4: services.a.replicas: min is 2, and max only 1"),
        (
            '{class: "m:C", replicas: {min: 1}}',
            "4: services.a.replicas.max: missing; add max: the most replicas at once",
        ),
        ('{class: "m:C", replicas: {max: 0}}', "4: services.a.replicas.max: must be at least 1, not 0"),
        ('{class: "m:C", replicas: {mx: 1, max: 1}}', "4: services.a.replicas.mx: unknown key; did you mean 'max'?"),
        ("{device: cpu}", '4: services.a.class: missing; add class: "module:Class"'),
        ("{class: m.C}", '4: services.a.class: must be shaped as "module:Class", not "m.C"'),
        ('{class: "m/n:C"}', "4: services.a.class: must be shaped as"),
        ('{class: "m:C.D"}', "4: services.a.class: must be shaped as"),
        (
            '{class: "m:C", device: gpu}',
            "4: services.a.device: must be auto, cpu, mps, cuda, cuda:N or a UUID (GPU-… or",
        ),
        ('{class: "m:C", device: "cuda:01"}', "4: services.a.device: must be auto, cpu, mps, cuda, cuda:N"),
        ('{class: "m:C", device: "GPU-;"}', "4: services.a.device: must be auto, cpu, mps, cuda, cuda:N"),
        ('{class: "m:C", on_unsatisfiable: wait}', "4: services.a.on_unsatisfiable: must be error or cpu, not"),
        (
            '{class: "m:C", device: cpu, resources: {gpu_memory: 1GiB}}',
            "4: services.a.resources.gpu_memory: is said of a GPU, and the device is cpu",
        ),
        ('{class: "m:C", device: cpu, resources: {exclusive: true}}', "4: services.a.resources.exclusive: is said of"),
        ('{class: "m:C", port: 0}', "4: services.a.port: must be at least 1, not 0"),
        ('{class: "m:C", port: 70000}', "4: services.a.port: must be at most 65535, not 70000"),
        ('{class: "m:C", traffic: {timeout: 60}}', "4: services.a.traffic.timeout: must be a duration with its unit"),
        (
            '{class: "m:C", batching: {score: {max_size: 0}}}',
            "4: services.a.batching.score.max_size: must be at least 1, not 0",
        ),
        (
            '{class: "m:C", batching: {score: {max_delay: 5}}}',
            "4: services.a.batching.score.max_delay: must be a duration with its unit",
        ),
        (
            '{class: "m:C", batching: {score: {maxsize: 5}}}',
            "4: services.a.batching.score.maxsize: unknown key; did you mean 'max_size'?",
        ),
        ('{class: "m:C", batching: {score: 8}}', "4: services.a.batching.score: must be a mapping, not 8"),
        ('{class: "m:C", traffic: {max_queue: -1}}', "4: services.a.traffic.max_queue: must be at least 0, not -1"),
        ('{class: "m:C", traffic: {ahead: 1GiB}}', "4: services.a.traffic.ahead: must be a size of 16MiB at most"),
        ('{class: "m:C", traffic: {hedge: 5}}', "4: services.a.traffic.hedge: must be a duration with its unit"),
        (
            '{class: "m:C", traffic: {max_message: {Say: 3GiB}}}',
            "4: services.a.traffic.max_message.Say: must be a size below 2GiB",
        ),
        ('{class: "m:C", resources: {memory: 2}}', "4: services.a.resources.memory: must be a size with its unit"),
        ('{class: "m:C", resources: {cpus: 0}}', "4: services.a.resources.cpus: must be more than 0, not 0"),
        ('{class: "m:C", resources: {cpus: .inf}}', "4: services.a.resources.cpus: not a finite number: '.inf'"),
        ('{class: "m:C", env: {A: 1}}', "4: services.a.env.A: must be text, not 1"),
        ('{class: "m:C", env: {A-B: "1"}}', "4: services.a.env.A-B: must be letters, digits and _"),
        ('{class: "m:C", env: {TOOLKIT_X: "1"}}', "4: services.a.env.TOOLKIT_X: the launcher's own"),
        ('{class: "m:C", env: {A: "\\0"}}', "4: services.a.env.A: has a character that no text can carry"),
        ('{class: "m:C", env: {A: "\\ud800"}}', "4: services.a.env.A: has a character that no text can carry"),
        ('{class: "m:C", args: [1]}', "4: services.a.args: must be a mapping, not a list"),
        ('{class: "m:C", args: {a-b: 1}}', "4: services.a.args.a-b: must be the name of an argument"),
        ('{class: "m:C", args: {1: 1}}', "4: services.a.args: a key must be text; quote it: '1'"),
        ('{class: "m:C", args: {x: 1, x: 2}}', "4: services.a.args.x: written twice; the first is on line 4"),
        ('{class: "m:C", args: {x: !!python/name:os.system a}}', "4: services.a.args.x: the tag"),
        ('{class: "m:C", args: !custom {x: 1}}', "4: services.a.args: the tag '!custom' is not accepted"),
        ('{class: "m:C", args: {x: ' + "9" * 5000 + "}}", "4: services.a.args.x: too large a number"),
        ('{class: "m:C", bind: {x: b}}', "4: services.a.bind.x: no deployment is named 'b'; there are a"),
        ("{url: dns:///x:1}", "4: services.a.url: the entry runs here; let another deployment be the entry"),
        ("{command: [./tagger]}", "4: services.a.command: outsiders cannot call it; let a class be the entry"),
        ('{class: "m:C", process: P}', "4: services.a.process: must be lower-case letters"),
        ("7", "4: services.a: must be a mapping, not 7"),
        ("", "4: services.a: must be a mapping, not nothing"),
    ],
)
def test_a_wrong_deployment_is_one_line(tmp_path: Path, deployment: str, expected: str) -> None:
    found = problems(tmp_path, one(deployment))
    assert len(found) == 1
    assert found[0].startswith(f"graph.yaml:{expected}")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "graph.yaml:1: must be a mapping with the keys name, entry and services, not nothing"),
        ("- a\n", "graph.yaml:1: must be a mapping with the keys name, entry and services, not a list"),
        ("name: [\n", "graph.yaml:2:1: not YAML: expected the node content"),
        ("name: g\n entry: b\n", "graph.yaml:2:7: not YAML: mapping values are not allowed here"),
        ("name: *x\n", "graph.yaml:1:7: not YAML: found undefined alias 'x'"),
        ("a: 1\n---\nb: 2\n", "graph.yaml:2:1: not YAML: but found another document"),
        (b"name: \xff\n", "graph.yaml:1: not UTF-8 text"),
        ("name: \x07\n", "graph.yaml: not YAML: unacceptable character"),
        ("[" * 100_000, "graph.yaml: nested too deeply"),
        ("x: " * 3 + "[" * 40 + "]" * 40, "graph.yaml:1:5: not YAML: mapping values are not allowed here"),
        ("x: " + "[" * 40 + "]" * 40, "graph.yaml: nested more than 32 levels deep"),
        ("x: &x [*x]", "graph.yaml: nested more than 32 levels deep"),
        ("#" * 300_000, "graph.yaml: larger than 256 KiB"),
        ("name: g\nentry: a\nservices: {}\n", "graph.yaml:3: services: empty; a graph needs at least one deployment"),
        ("name: g\nentry: a\nservices: [a]\n", "graph.yaml:3: services: must be a mapping, not a list"),
    ],
)
def test_a_wrong_file_is_one_line(tmp_path: Path, text: str | bytes, expected: str) -> None:
    found = problems(tmp_path, text)
    assert len(found) == 1
    assert found[0].startswith(expected)


def test_a_few_lines_cannot_unfold_into_gigabytes(tmp_path: Path) -> None:
    bomb = "a0: &a0 [x, x]\n" + "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 10))
    assert problems(tmp_path, bomb) == ["graph.yaml: more than 20000 values, anchors followed"]


def test_merges_cannot_unfold_either(tmp_path: Path) -> None:
    bomb = "a0: &a0 {x: 1}\n" + "".join(
        f"a{n}: &a{n} {{<<: [{', '.join([f'*a{n - 1}'] * 10)}]}}\n" for n in range(1, 10)
    )
    assert problems(tmp_path, bomb) == ["graph.yaml: too many << merges"]


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(GraphError, match="no such file"):
        load_graph(tmp_path / "graph.yaml")


def test_a_folder_is_no_graph_file(tmp_path: Path) -> None:
    with pytest.raises(GraphError, match="cannot be read: Is a directory"):
        load_graph(tmp_path)


@pytest.mark.parametrize(
    ("deployment", "expected"),
    [
        (
            "{url: models}",
            '5: services.b.url: must be dns:///HOST:PORT, HOST:PORT or unix:/absolute/path, not "models"',
        ),
        (
            '{class: "m:C", url: "x:1"}',
            "5: services.b.url: class is there too; a deployment is one of class, url, command",
        ),
        ("{url: 7}", "5: services.b.url: must be text, not 7"),
        ("{url: 'http://x:1'}", "5: services.b.url: must be dns:///HOST:PORT"),
        ("{url: 'x:1', replicas: 2}", "5: services.b.replicas: not for what runs elsewhere; known here: url, traffic"),
        ("{url: 'x:1', trafic: {}}", "5: services.b.trafic: unknown key; did you mean 'traffic'?"),
        ("{url: 'x:1', traffic: {hegde: auto}}", "5: services.b.traffic.hegde: unknown key; did you mean 'hedge'?"),
        ("{url: 'x:1', traffic: {timeout: 1s}}", "5: services.b.traffic.timeout: not for what runs elsewhere"),
        ("{url: 'x:1', tls: {cert: x}}", "5: services.b.tls.cert: not for what runs elsewhere"),
    ],
)
def test_a_wrong_deployment_elsewhere_is_one_line(tmp_path: Path, deployment: str, expected: str) -> None:
    (found,) = problems(tmp_path, one('{class: "m:C"}') + f"  b: {deployment}\n")
    assert found.startswith(f"graph.yaml:{expected}")


@pytest.mark.parametrize("url", ["dns:///models.example:443", "10.0.0.1:50051", "unix:/run/models.sock"])
def test_a_deployment_may_run_elsewhere(tmp_path: Path, url: str) -> None:
    graph = load(tmp_path, one('{class: "m:C", bind: {x: b}}') + f"  b: {{url: '{url}', traffic: {{hedge: auto}}}}\n")
    assert list(graph.services) == ["a"]
    assert (graph.remotes["b"].url, graph.remotes["b"].traffic.hedge) == (url, 0.0)
    assert find_problems(graph, {"a": Description("g.v1.A", {"x": "g.v1.X"})}) == []
    assert find_edges(graph, {"a": Description("g.v1.A", {"x": "g.v1.X"})}) == {"a": ()}


def test_every_problem_comes_at_once_in_the_order_of_the_file(tmp_path: Path) -> None:
    text = """\
name: Inference Graph
entry: grap
services:
  gpt2: {clas: "m:C"}
  graph: {class: "m:C", port: 5, bind: {x: gpt3}}
  Bad-: {class: "m:C", port: 5}
"""
    assert problems(tmp_path, text) == [
        'graph.yaml:1: name: must be lower-case letters, digits, - or _, a letter first, 40 at most, not "Inference Graph"',
        "graph.yaml:2: entry: no deployment is named 'grap'; did you mean 'graph'?",
        "graph.yaml:4: services.gpt2.clas: unknown key; did you mean 'class'?",
        'graph.yaml:4: services.gpt2.class: missing; add class: "module:Class"',
        "graph.yaml:5: services.graph.bind.x: no deployment is named 'gpt3'; did you mean 'gpt2'?",
        'graph.yaml:6: services.Bad-: must be lower-case letters, digits, - or _, a letter first, 40 at most, not "Bad-"',
        "graph.yaml:6: services.Bad-.port: 5 is the port of 'graph' already",
    ]


TEXT, SCORE, GRAPH = "text.v1.Text", "score.v1.Score", "graph.v1.Graph"
FITTING = {
    "gpt2": Description(TEXT, {}),
    "distilgpt2": Description(TEXT, {}),
    "classifier": Description(SCORE, {}),
    "graph": Description(GRAPH, {"writer": TEXT, "distilgpt2": TEXT, "classifier": SCORE}),
}


def test_edges_that_fit_are_no_problem(tmp_path: Path) -> None:
    graph = load(tmp_path, GOOD)
    assert find_problems(graph, FITTING) == []
    assert find_edges(graph, FITTING)["graph"] == ("gpt2", "distilgpt2", "classifier")


@pytest.mark.parametrize(
    ("said", "batched", "expected"),
    [
        ("score", {"score": "Score"}, None),
        ("Score", {"score": "Score"}, None),
        ("scroe", {"score": "Score"}, "did you mean 'score'?"),
        ("embed", {"score": "Score"}, "those it has: score"),
        ("score", {}, "those it has: none"),
    ],
)
def test_limits_of_a_method_that_is_not_batched_are_a_problem(
    tmp_path: Path, said: str, batched: dict[str, str], expected: str | None
) -> None:
    graph = load(tmp_path, one(f'{{class: "m:C", batching: {{{said}: {{max_size: 8}}}}}}'))
    found = find_problems(graph, {"a": Description("g.v1.A", {}, batched)})
    where = f"{tmp_path}/graph.yaml:4: services.a.batching.{said}: m:C has no such batched method, decorated with @batched; "
    assert found == ([] if expected is None else [where + expected])


@pytest.mark.parametrize(
    ("name", "description", "expected"),
    [
        (
            "graph",
            Description(GRAPH, {"writer": TEXT, "clasifier": SCORE}),
            (
                "7: services.graph: services.inference_graph.service:InferenceGraph has the handle 'clasifier' and no deployment "
                "is named so; bind it to one that serves score.v1.Score: bind: {clasifier: classifier}"
            ),
        ),
        (
            "graph",
            Description(GRAPH, {"writer": TEXT, "gpt3": "other.v1.Other"}),
            (
                "7: services.graph: services.inference_graph.service:InferenceGraph has the handle 'gpt3' and no deployment "
                "is named so; add a deployment that serves other.v1.Other (did you mean 'gpt2'?)"
            ),
        ),
        (
            "graph",
            Description(GRAPH, {"writer": TEXT, "classifier": TEXT}),
            (
                "7: services.graph: the handle 'classifier' expects text.v1.Text and the deployment 'classifier' serves "
                "score.v1.Score; bind it to one that serves text.v1.Text: bind: {classifier: gpt2}"
            ),
        ),
        (
            "graph",
            Description(GRAPH, {"writer": TEXT, "classifier": "other.v1.Other"}),
            (
                "7: services.graph: the handle 'classifier' expects other.v1.Other and the deployment 'classifier' serves "
                "score.v1.Score; add a deployment that serves other.v1.Other"
            ),
        ),
        (
            "graph",
            Description(GRAPH, {"writers": TEXT, "gpt2": TEXT}),
            (
                "10: services.graph.bind.writer: services.inference_graph.service:InferenceGraph has no such handle; "
                "did you mean 'writers'?"
            ),
        ),
        (
            "classifier",
            Description(SCORE, {"graph": GRAPH}),
            (
                "6: services.classifier: a cycle of handles: classifier → graph → classifier; a graph has none, "
                "so take one handle out"
            ),
        ),
        (
            "gpt2",
            Description(TEXT, {"gpt2": TEXT}),
            "4: services.gpt2: a cycle of handles: gpt2 → gpt2; a graph has none, so take one handle out",
        ),
    ],
)
def test_an_edge_that_cannot_work_names_its_line_and_the_cure(
    tmp_path: Path, name: str, description: Description, expected: str
) -> None:
    graph = load(tmp_path, GOOD)
    found = [
        line.removeprefix(f"{tmp_path}/graph.yaml:") for line in find_problems(graph, FITTING | {name: description})
    ]
    assert expected in found


def test_each_knot_is_told_once() -> None:
    edges = {"a": ("b",), "b": ("c",), "c": ("a", "d"), "d": ("e",), "e": ("d",), "f": ("a",)}
    assert find_cycles(edges) == [("a", "b", "c"), ("d", "e")]


def test_callers_stand_before_callees() -> None:
    edges = {"leaf": (), "top": ("middle", "leaf"), "middle": ("leaf",), "alone": ()}
    assert find_tiers(edges) == [("top", "alone"), ("middle",), ("leaf",)]


def test_a_cycle_has_a_tier_too() -> None:
    assert find_tiers({"top": ("a",), "a": ("b",), "b": ("a",)}) == [("top",), ("a", "b")]


def shared(a: str, b: str, *more: str) -> str:
    services = [f'a: {{class: "m:A", process: p{a}}}', f'b: {{class: "m:B", process: p{b}}}', *more]
    return "name: g\nentry: a\nservices:\n" + "".join(f"  {each}\n" for each in services)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (shared("", ", replicas: 2"), "5: services.b.replicas: is another than that of 'a', and 'b' shares the process"),
        (shared("", ", strategy: recreate"), "5: services.b.strategy: is another than that of 'a'"),
        (shared(", resources: {cpus: 1}", ""), "5: services.b.resources.cpus: is said of one of the two, and 'b'"),
        (shared("", ", resources: {memory: 1GiB}"), "5: services.b.resources.memory: is said of one of the two"),
        (shared(", env: {X: a}", ", env: {X: b}"), "5: services.b.env.X: 'a' says another value, and they share one process"),
        (shared("", "", 'p: {class: "m:P"}'), "4: services.a.process: 'p' is a deployment that does not say so"),
        (shared("", "", "p: {url: dns:///x:1}"), "4: services.a.process: 'p' is a deployment that does not say so"),
        (shared("", "", "c: {command: [./c], process: p}"), "6: services.c.process: for a class; another program"),
    ],
)  # fmt: skip
def test_those_that_share_a_process_say_alike_what_it_has_as_a_whole(tmp_path: Path, text: str, expected: str) -> None:
    found = problems(tmp_path, text)
    assert [each for each in found if each.startswith(f"graph.yaml:{expected}")], found


def test_the_units_of_a_graph_are_its_processes(tmp_path: Path) -> None:
    same = ", env: {X: x}, resources: {cpus: 2}, device: cuda, image: a"
    other = ", env: {X: x}, resources: {cpus: 1}"
    path = tmp_path / "graph.yaml"
    path.write_text(shared(other, same, 'c: {class: "m:C"}').replace("entry: a", "entry: b") + "images: {a: {}}\n")
    units = load_graph(path).units
    assert {name: list(unit.members) for name, unit in units.items()} == {"p": ["b", "a"], "c": ["c"]}
    assert [unit.label for unit in units.values()] == ["p (b, a)", "c"]
