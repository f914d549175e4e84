"""What `scripts/bench peers` counts, and what it writes."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from scripts.benchmark.peers.machine import Machine
from scripts.benchmark.peers.report import BEGIN, END, PAGE, Comparison, Row, percentile
from scripts.benchmark.peers.work import Call, Found, measure


def answers(*kinds: bool | Exception) -> Call:
    """Calls that end so, one after another."""
    each: Iterator[bool | Exception] = iter(kinds)

    async def call() -> bool:
        kind = next(each)
        if isinstance(kind, Exception):
            raise kind
        return kind

    return call


async def test_calls_that_fail_and_replies_that_are_wrong_are_counted_apart_from_the_good_ones() -> None:
    found = await measure(answers(True, OSError("gone"), False, True, OSError("gone")), calls=5, in_flight=1)
    assert len(found.timings) == 2
    assert found.errors == {"OSError: gone": 2, "the reply is not what was sent": 1}


async def test_as_many_calls_are_in_flight_as_asked_for() -> None:
    together = asyncio.Barrier(4)

    async def call() -> bool:
        await together.wait()
        return True

    found = await measure(call, calls=8, in_flight=4)
    assert len(found.timings) == 8


async def test_no_call_begins_after_the_limit() -> None:
    found = await measure(answers(), calls=100, in_flight=3, limit=-1)
    assert found.timings == []
    assert found.errors == {}


def test_rounds_are_pooled() -> None:
    found = Found([0.1], {"a": 1}, 2.0)
    found.add(Found([0.3], {"a": 2, "b": 1}, 3.0))
    assert found == Found([0.1, 0.3], {"a": 3, "b": 1}, 5.0)


def test_a_percentile_is_a_timing_that_was_measured() -> None:
    timings = [number / 1000 for number in range(100, 0, -1)]
    assert percentile(timings, 0.5) == 50
    assert percentile(timings, 0.99) == 99
    assert percentile([0.004], 0.99) == 4
    assert percentile([], 0.5) is None


def comparison(errors: dict[str, int]) -> Comparison:
    ours = Row.of("A small call", "ours", Found([0.001] * 1999, errors, 2.0), "")
    missing = Row.of("A small call", "theirs", None, "No matching distribution found for theirs")
    return Comparison([ours, missing], Machine.here())


def test_the_table_never_rounds_a_failure_away() -> None:
    text = comparison({"OSError: gone": 1}).as_text()
    assert "99.9 %" in text
    assert "- ours: A small call: 1 failed, 1 of them with OSError: gone" in text


def test_what_could_not_be_measured_says_why() -> None:
    found = comparison({})
    assert "- theirs: not measured: No matching distribution found for theirs" in found.as_text()
    assert found.met
    assert not comparison({"OSError: gone": 1}).met


def test_the_tables_take_the_place_of_those_of_the_last_run(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    for _ in range(2):
        comparison({}).write(page)
    text = page.read_text()
    assert text.startswith(f"before\n{BEGIN}\n")
    assert text.endswith(f"\n{END}\nafter\n")
    assert "old" not in text
    assert text.count("**A small call**") == 1


def test_a_page_without_a_place_for_the_tables_is_refused(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("nothing\n")
    with pytest.raises(ValueError, match="no place for the tables"):
        comparison({}).write(page)
    assert page.read_text() == "nothing\n"


def test_a_machine_is_busy_from_half_its_cores() -> None:
    machine = replace(Machine.here(), cores=4, load_before=2.0)
    assert not machine.was_busy
    assert replace(machine, load_before=2.1).was_busy


def test_the_page_of_this_project_has_a_place_for_the_tables() -> None:
    text = PAGE.read_text()
    assert text.count(BEGIN) == text.count(END) == 1
