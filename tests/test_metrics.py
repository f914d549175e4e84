"""How figures are kept, and how they read as Prometheus reads them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from toolkit.errors import Code
from toolkit.metrics import METRICS, SECONDS, Calls, Histogram, Sample, read_samples, render, value_of

METHOD = "services.echo.v1.Echo/Ping"


def parse(text: str) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    """What Prometheus' own parser finds: name and labels → value."""
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def key(name: str, **labels: str) -> tuple[str, frozenset[tuple[str, str]]]:
    return name, frozenset(labels.items())


@pytest.mark.parametrize(
    ("value", "bucket"), [(-1.0, 0), (0.0, 0), (0.001, 0), (0.0011, 1), (60.0, len(SECONDS) - 1), (60.1, len(SECONDS))]
)
def test_a_value_is_in_the_first_bucket_whose_end_it_does_not_pass(value: float, bucket: int) -> None:
    histogram = Histogram(SECONDS)
    histogram.add(value)
    assert [place for place, count in enumerate(histogram.counts) if count] == [bucket]
    assert histogram.sum == value


def test_calls_are_counted_by_the_code_that_they_end_with() -> None:
    calls = Calls()
    for code in (Code.OK, Code.UNAVAILABLE, Code.OK):
        calls.end(code, 0.5)
    assert {code: (sum(found.counts), found.sum) for code, found in calls.ended.items()} == {
        Code.OK: (2, 1.0),
        Code.UNAVAILABLE: (1, 0.5),
    }


def test_buckets_of_a_rendered_histogram_hold_all_that_is_smaller() -> None:
    histogram = Histogram(SECONDS)
    for value in (0.0005, 0.03, 0.04, 100.0):
        histogram.add(value)
    found = parse(render([({}, [("toolkit_batch_compute_seconds", ("classifier", METHOD), value_of(histogram))])]))
    labels = {"deployment": "classifier", "grpc_method": METHOD}
    buckets = {
        end: found[key("toolkit_batch_compute_seconds_bucket", **labels, le=end)]
        for end in ("0.001", "0.02", "0.05", "60", "+Inf")
    }
    assert buckets == {"0.001": 1, "0.02": 1, "0.05": 3, "60": 3, "+Inf": 4}
    assert found[key("toolkit_batch_compute_seconds_count", **labels)] == 4
    assert found[key("toolkit_batch_compute_seconds_sum", **labels)] == pytest.approx(100.0705)


def test_each_metric_is_told_once_with_the_samples_of_all_who_have_it() -> None:
    samples: Sequence[Sample] = [("toolkit_server_inflight", ("gpt2",), 3), ("toolkit_server_queued", ("gpt2",), 1)]
    text = render([({"replica": "gpt2.0"}, samples), ({"replica": "gpt2.1#2"}, samples)])
    families = {family.name: family for family in text_string_to_metric_families(text)}
    assert [line for line in text.splitlines() if line.startswith("# TYPE")] == [
        "# TYPE toolkit_server_inflight gauge",
        "# TYPE toolkit_server_queued gauge",
    ]
    assert [each.labels["replica"] for each in families["toolkit_server_queued"].samples] == ["gpt2.0", "gpt2.1#2"]
    assert families["toolkit_server_inflight"].documentation == METRICS["toolkit_server_inflight"].what


def test_a_label_may_hold_anything() -> None:
    name = 'a"b\\c\nd} 1'
    assert parse(render([({}, [("toolkit_server_inflight", (name,), 1)])])) == {
        key("toolkit_server_inflight", deployment=name): 1
    }


def test_samples_survive_their_way_as_json() -> None:
    histogram = Histogram(METRICS["toolkit_batch_size"].bounds)
    histogram.add(4)
    samples: tuple[Sample, ...] = (
        ("toolkit_server_inflight", ("gpt2",), 3),
        ("toolkit_batch_size", ("gpt2", METHOD), value_of(histogram)),
    )
    assert read_samples(json.loads(json.dumps(samples))) == samples


@pytest.mark.parametrize(
    "said",
    [
        None,
        {},
        [1],
        [["toolkit_server_inflight", ["gpt2"]]],
        [["no_such_metric", ["gpt2"], 1]],
        [["toolkit_server_inflight", [1], 1]],
        [["toolkit_server_inflight", ["gpt2", "more"], 1]],
        [["toolkit_server_inflight", ["gpt2"], "1"]],
        [["toolkit_server_inflight", ["gpt2"], [[1], 1.0]]],
        [["toolkit_batch_size", ["gpt2", METHOD], 1]],
        [["toolkit_batch_size", ["gpt2", METHOD], [[1], 1.0]]],
        [["toolkit_batch_size", ["gpt2", METHOD], [["1"] * 12, 1.0]]],
    ],
)
def test_what_are_no_samples_is_refused(said: Any) -> None:
    with pytest.raises(ValueError, match="no "):
        read_samples(said)
