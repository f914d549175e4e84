"""What a message may take once decoded: the costs are upper bounds, and nothing that fits is refused."""

from __future__ import annotations

import ctypes
import gc
import importlib
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from services.echo.v1.echo_toolkit import Image, Note
from tests.attacks.messages import content, entry, groups, key, number, tensor
from tests.reference import theirs
from toolkit import codec
from toolkit.budget import FIELD, MAX_TENSORS, SMALLEST, Budget, growth, table_of
from toolkit.tensor import Tensor
from toolkit.wire import DecodeError, varint

MIB = 1 << 20
STATUS = Path("/proc/self/status")
NOISE = 3 * MIB
"""What the process takes on the side."""


@pytest.fixture(scope="module", autouse=True)
def _golden_is_importable() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(Path(__file__).parent / "golden"))
        yield


def kinds(name: str) -> Any:
    return getattr(importlib.import_module("golden.kinds.v1.kinds_toolkit"), name)


def charge(cls: Any, data: bytes) -> int:
    """What the message costs."""
    budget = Budget(SMALLEST)
    budget.charge(table_of(theirs(cls).DESCRIPTOR), data, 0, len(data))
    return SMALLEST - budget.left


FLOODS: list[tuple[str, str, Callable[[int], bytes]]] = [
    ("Repeats", "messages", lambda n: content(17, b"") * n),
    ("Repeats", "messages with an unknown number of an enum", lambda n: content(17, number(16, 99)) * n),
    ("Repeats", "messages with a long unknown number", lambda n: content(17, number(16, 9999)) * n),
    ("Repeats", "messages with an unknown field", lambda n: content(17, number(99, 1)) * n),
    ("Repeats", "empty strings", lambda n: content(14, b"") * n),
    ("Repeats", "strings", lambda n: content(14, b"a" * 40) * n),
    ("Repeats", "wide strings", lambda n: content(14, "😀abcdefghi".encode()) * n),
    ("Repeats", "bytes", lambda n: content(15, b"ab") * n),
    ("Repeats", "small numbers", lambda n: content(4, b"\1" * n)),
    ("Repeats", "numbers", lambda n: content(4, b"\xff\x7f" * n)),
    ("Repeats", "booleans", lambda n: content(13, b"\1" * n)),
    ("Repeats", "doubles", lambda n: content(1, b"01234567" * n)),
    ("Repeats", "floats", lambda n: content(2, b"0123" * n)),
    ("Repeats", "fixed numbers", lambda n: content(9, b"0123" * n)),
    ("Repeats", "fixed long numbers", lambda n: content(10, b"01234567" * n)),
    ("Repeats", "numbers of an enum", lambda n: content(16, b"\1" * n)),
    ("Repeats", "unknown numbers of an enum", lambda n: content(16, b"".join(varint(k + 20_000) for k in range(n)))),
    ("Expanded", "numbers, a field each", lambda n: number(103, 1 << 40) * n),
    ("Expanded", "unknown numbers of an enum, a field each", lambda n: number(120, 9999) * n),
    ("Maps", "entries", lambda n: b"".join(content(1, number(1, 40_503 * k + 70_000) + number(2, k << 40)) for k in range(n))),
    ("Maps", "entries of strings", lambda n: b"".join(entry(12, f"key {k}".encode(), key(2, 1) + bytes(8)) for k in range(n))),
    ("Scalars", "unknown fields", lambda n: number(99, 1 << 40) * n),
    ("Scalars", "groups", lambda n: groups(99, 1) * n),
    ("Scalars", "a group", lambda n: key(99, 3) + number(1, 1) * n + key(99, 4)),
    ("Scalars", "one wide string", lambda n: content(14, b"a" * n + "😀".encode())),
    ("Scalars", "one string of two bytes a character", lambda n: content(14, b"a" * n + "ß€".encode())),
    ("Node", "tensors", lambda n: content(3, tensor(6, [1, 1], b"x")) * n),
    ("Node", "messages with tensors", lambda n: content(7, b"") * n),
    ("Node", "entries with tensors", lambda n: b"".join(entry(4, b"%d" % k, content(2, tensor(6, [], b"x"))) for k in range(n))),
    ("Node", "entries with messages", lambda n: content(8, number(1, 1)) * n),
    ("WellKnown", "structs", lambda n: content(12, b"") * n),
    ("WellKnown", "values", lambda n: content(6, content(1, b"") * n)),
]  # fmt: skip


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/self/status")
@pytest.mark.parametrize(("name", "what", "flood"), FLOODS, ids=[f"{name}: {what}" for name, what, _ in FLOODS])
def test_decoding_takes_no_more_than_was_charged(name: str, what: str, flood: Callable[[int], bytes]) -> None:
    cls = kinds(name)
    data = _most(cls, flood)
    codec.decode(cls, flood(1))
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    before = _bytes("VmRSS")
    message = codec.decode(cls, data)
    grown = _bytes("VmHWM") - before
    assert message is not None
    assert grown <= SMALLEST + len(data) + NOISE


def _most(cls: Any, flood: Callable[[int], bytes]) -> bytes:
    """The largest flood that fits, nearly."""
    few, many = charge(cls, flood(100)), charge(cls, flood(1100))
    data = flood(SMALLEST * 31 // 32 * 1000 // (many - few))
    assert charge(cls, data) > SMALLEST * 15 // 16
    return data


def _bytes(field: str) -> int:
    found = re.search(rf"{field}:\s+(\d+) kB", STATUS.read_text())
    assert found is not None
    return int(found[1]) * 1024


@pytest.mark.parametrize(("name", "what", "flood"), FLOODS, ids=[f"{name}: {what}" for name, what, _ in FLOODS])
def test_no_byte_costs_more_than_the_steepest(name: str, what: str, flood: Callable[[int], bytes]) -> None:
    """So a message with fewer bytes than the budget has of these needs no look."""
    cls = kinds(name)
    data = _most(cls, flood)
    assert len(data) * growth(theirs(cls).DESCRIPTOR).steepest > SMALLEST * 15 // 16


def test_a_large_limit_is_a_large_budget() -> None:
    data = number(99, 1) * 200_000
    with pytest.raises(DecodeError, match="more than 16777216 bytes of memory"):
        codec.decode(Note, data, 1)
    assert codec.decode(Note, data, 64 * MIB) == Note()


def test_large_tensors_cost_no_more_than_small_ones() -> None:
    data = content(1, tensor(6, [64 * MIB], bytes(64 * MIB)))
    image = codec.decode(Image, data, 1)
    assert image.pixels is not None
    assert image.pixels.nbytes == 64 * MIB


def test_large_texts_and_bytes_are_within_the_limit_of_the_message() -> None:
    for field in (1, 6):
        codec.decode(Note, content(field, b"a" * 32 * MIB), 1)


def test_tensors_are_counted_too() -> None:
    data = content(3, tensor(6, [0], b"")) * (MAX_TENSORS + 1)
    with pytest.raises(DecodeError, match=f"more than {MAX_TENSORS} tensors"):
        codec.decode(kinds("Node"), data)


def test_the_walk_ends_where_the_budget_does() -> None:
    """Whatever follows is not looked at, though it is no message at all."""
    data = number(2, 1) * (SMALLEST // FIELD + 1) + b"\0" * MIB
    with pytest.raises(DecodeError, match="too many small parts"):
        charge(Note, data)


def test_a_tensor_by_itself_has_a_budget() -> None:
    with pytest.raises(DecodeError, match="too many small parts"):
        codec.decode(Tensor, content(2, b"\1" * SMALLEST), 1)


SPREAD: dict[str, Callable[[int], int]] = {
    "in a row": lambda n: n,
    "negative": lambda n: -n & (1 << 64) - 1,
    "in steps of a million": lambda n: 1_000_000 * n,
    "in the upper half": lambda n: n << 32,
    "snowflakes": lambda n: (1_700_000_000_000 + 7 * n) << 22 | n % 3 << 12 | n % 5,
}


@pytest.mark.parametrize("keys", SPREAD.values(), ids=SPREAD)
def test_a_large_map_of_integers_is_read(keys: Callable[[int], int]) -> None:
    data = b"".join(content(2, number(1, keys(n))) for n in range(50_000))
    assert len(codec.decode(kinds("Maps"), data).by_int64) == 50_000


COLLIDING: dict[str, Callable[[int], bytes]] = {
    "int32": lambda n: content(1, number(1, n << 14)),
    "int64": lambda n: content(2, number(1, n << 32 | n)),
    "uint64": lambda n: content(4, number(1, n << 32 | n)),
    "sint64": lambda n: content(6, number(1, 2 * (n << 32 | n))),
    "fixed64": lambda n: content(8, key(1, 1) + (n << 32 | n).to_bytes(8, "little")),
    "sfixed32": lambda n: content(9, key(1, 5) + (n << 14).to_bytes(4, "little")),
}


@pytest.mark.parametrize("entry", COLLIDING.values(), ids=COLLIDING)
def test_keys_that_collide_are_refused(entry: Callable[[int], bytes]) -> None:
    codec.decode(kinds("Maps"), b"".join(map(entry, range(5000))))
    with pytest.raises(DecodeError, match="collide"):
        codec.decode(kinds("Maps"), b"".join(map(entry, range(20_000))))


def test_keys_that_collide_are_found_in_the_parts_of_a_message() -> None:
    """What protobuf merges is one map; what are maps of their own is not."""
    parts = [b"".join(COLLIDING["int64"](n) for n in range(start, start + 100)) for start in range(0, 20_000, 100)]
    with pytest.raises(DecodeError, match="collide"):
        codec.decode(kinds("Node"), b"".join(content(19, part) for part in parts))
    apart = b"".join(entry(28, b"%d" % number, content(2, part)) for number, part in enumerate(parts))
    assert len(codec.decode(kinds("Maps"), apart).maps) == len(parts)
