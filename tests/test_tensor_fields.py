"""Tensors wherever a message can hold them: singular, optional, repeated, in maps, in oneofs, and nested deeply."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from toolkit.codec import EncodeError, decode, encode
from toolkit.message import copy_message
from toolkit.tensor import EXTENDED, DType, Tensor

GOLDEN = Path(__file__).parent / "golden"
DTYPES = [dtype for dtype in DType if dtype]
SHAPES: list[tuple[int, ...]] = [(), (0,), (3, 0), (5,), (2, 3), (70, 90), (1,) * 32]


@pytest.fixture(autouse=True)
def _golden_is_importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(GOLDEN))


def golden(name: str) -> Any:
    return importlib.import_module(f"golden.{name}.v1.{name}_toolkit")


def tensor_of(dtype: DType, shape: tuple[int, ...], fill: int = 1) -> Tensor:
    size = Tensor(dtype, (1,), bytes(_itemsize(dtype))).nbytes * int(np.prod(shape, dtype=int))
    return Tensor(dtype, shape, bytes([fill]) * size)


def _itemsize(dtype: DType) -> int:
    if dtype in EXTENDED:
        return 2 if dtype == DType.BFLOAT16 else 1
    return np.dtype(dtype.name.lower()).itemsize


def there_and_back(message: Any) -> Any:
    data = encode(message)
    back = decode(type(message), data)
    assert decode(type(message), encode(back)) == back  # not the same bytes: a map has no order
    assert decode(type(message), encode(copy_message(message))) == message
    return back


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_kind_in_every_place(dtype: DType, shape: tuple[int, ...]) -> None:
    clips, trees, inputs = golden("tensors"), golden("recursive"), golden("oneofs")
    one, other = tensor_of(dtype, shape), tensor_of(dtype, shape, 0)
    for message in (
        clips.Frame(pixels=one, caption="cat"),
        clips.Clip(tracks=[one, other, one]),
        clips.Clip(frames=[clips.Frame(pixels=one), clips.Frame(), clips.Frame(pixels=other)]),
        clips.Clip(named={"": one, "b": other, "ü/..": one}),
        clips.Clip(dense=one, dtype=dtype, wanted=DType.BOOL),
        inputs.Input(id="i", tensor=one, flag=True),
        trees.Tree(leaf=trees.Leaf(weights=one)),
        trees.Tree(
            name="root",
            children=[trees.Tree(leaf=trees.Leaf(weights=one, back=trees.Tree(name="b"))), trees.Tree()],
            named={"k": trees.Tree(children=[trees.Tree(leaf=trees.Leaf(weights=other))])},
        ),
    ):
        assert there_and_back(message) == message
    assert there_and_back(one) == one


def test_an_unset_tensor_stays_unset() -> None:
    clips = golden("tensors")
    assert there_and_back(clips.Frame()).pixels is None
    clip = there_and_back(clips.Clip(rle="3x1"))
    assert (clip.dense, clip.rle, clip.tracks, clip.named) == (None, "3x1", [], {})


def test_a_large_message_gives_views_and_a_small_one_copies() -> None:
    clips = golden("tensors")
    data = encode(
        clips.Clip(tracks=[Tensor.of(np.zeros(9000)), Tensor.of(np.zeros(9))], named={"a": Tensor.of([1.0] * 9000)})
    )
    clip = decode(clips.Clip, data)
    start = np.frombuffer(data, np.uint8).ctypes.data
    inside = [start <= t.numpy().ctypes.data < start + len(data) for t in (*clip.tracks, clip.named["a"])]
    assert inside == [True, False, True]


@pytest.mark.parametrize("value", [np.ones(2), torch.ones(2), [1.0, 2.0], b"ab", 7])
@pytest.mark.parametrize("place", ["pixels", "tracks", "named", "dense"])
def test_an_array_that_is_no_tensor_yet_is_refused_by_field(place: str, value: Any) -> None:
    clips = golden("tensors")
    message = clips.Frame(pixels=value) if place == "pixels" else clips.Clip()
    if place != "pixels":
        setattr(message, place, {"tracks": [value], "named": {"a": value}, "dense": value}[place])
    with pytest.raises(EncodeError, match=place):
        encode(message)
