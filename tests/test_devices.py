"""Devices as values."""

from __future__ import annotations

import pytest

from toolkit.launcher.devices import parse_fake_gpus, visible
from toolkit.launcher.sizes import show_size

GIB = 1 << 30


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        (None, (0, 1)),
        ("", ()),
        ("1", (1,)),
        ("1,0", (1, 0)),
        ("GPU-b", (1,)),
        ("0,7,1", (0,)),
        ("-1", ()),
        ("GPU-", ()),
        ("0,0", (0,)),
    ],
)
def test_the_first_unknown_one_ends_a_list_of_visible_gpus(wanted: str | None, expected: tuple[int, ...]) -> None:
    assert visible(("GPU-a1", "GPU-b2"), wanted) == expected


def test_fake_gpus_have_ids_of_their_own() -> None:
    found = parse_fake_gpus("1x80GiB, 2x24GiB")
    assert [(each.id, each.total, each.free) for each in found] == [
        ("GPU-fake-0", 80 * GIB, 80 * GIB),
        ("GPU-fake-1", 24 * GIB, 24 * GIB),
        ("GPU-fake-2", 24 * GIB, 24 * GIB),
    ]


@pytest.mark.parametrize(
    "text", ["", "2", "x24GiB", "0x24GiB", "2x24", "2x24GiB,", "65x1GiB", "-1x1GiB", "2 x 24GiB x"]
)
def test_what_is_no_count_and_size_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="must be"):
        parse_fake_gpus(text)


@pytest.mark.parametrize(
    ("size", "expected"),
    [(6 * GIB, "6GiB"), (23 * GIB + GIB // 2, "23.5GiB"), (512 << 20, "512MiB"), (GIB - 1, "1023.99MiB"), (0, "0MiB")],
)
def test_a_size_is_shown_as_a_graph_file_writes_it(size: int, expected: str) -> None:
    assert show_size(size) == expected
