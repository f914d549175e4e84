"""Reading a `Tensor`: views that cannot be written, copies that can, and how long the message behind them lives."""

from __future__ import annotations

import copy
import gc
import pickle
import sys
import tracemalloc
import warnings
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch

from services.echo.v1.echo_toolkit import Image, Note
from toolkit import codec
from toolkit.codec import decode, encode
from toolkit.tensor import ALIGNMENT, EXTENDED, DType, Tensor

MIB = 1 << 20


def received(array: Any) -> Tensor:
    """As it arrives: a view of a message."""
    image = decode(Image, encode(Image(pixels=Tensor.of(array), caption="cat")))
    assert image.pixels is not None
    return image.pixels


@pytest.fixture(params=["made here", "received"])
def tensor(request: pytest.FixtureRequest) -> Tensor:
    array = np.arange(6000, dtype=np.float32).reshape(2, 3000)
    return received(array) if request.param == "received" else Tensor.of(array)


def test_a_view_cannot_be_written(tensor: Tensor) -> None:
    for view in (tensor.numpy(), np.asarray(tensor), np.from_dlpack(tensor)):
        assert not view.flags.writeable
        with pytest.raises(ValueError, match="read-only"):
            view[0, 0] = 1
        with pytest.raises(ValueError, match="cannot set WRITEABLE flag to True"):
            view.flags.writeable = True
    with pytest.raises(TypeError, match="read-only"):
        tensor.data[0] = 1


def test_views_share_the_memory(tensor: Tensor) -> None:
    address = tensor.numpy().ctypes.data
    assert np.asarray(tensor).ctypes.data == np.from_dlpack(tensor).ctypes.data == address
    assert tensor.torch().data_ptr() == torch.from_dlpack(tensor).data_ptr() == address


def test_a_copy_can_be_written(tensor: Tensor) -> None:
    for written in (tensor.copy(), np.array(tensor), tensor.torch().clone().numpy()):
        written[0, 0] = 7
        assert written[0, 0] == 7
    assert tensor.numpy()[0, 0] == 0


@pytest.mark.parametrize("always", [False, True])
def test_torch_gets_it_without_a_warning(tensor: Tensor, always: bool) -> None:
    """Torch warns of read-only memory, by default once in a process."""
    torch.set_warn_always(always)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert tensor.torch().sum() == torch.from_dlpack(tensor).sum() == tensor.numpy().sum()
    finally:
        torch.set_warn_always(False)


def test_torch_on_a_device_is_a_copy(tensor: Tensor) -> None:
    assert tensor.torch("meta").shape == (2, 3000)
    assert tensor.torch("cpu").data_ptr() == tensor.torch(torch.device("cpu")).data_ptr() == tensor.torch().data_ptr()


# numpy's protocol


@pytest.mark.parametrize(
    ("ask", "is_shared"),
    [
        (lambda t: np.asarray(t), True),
        (lambda t: np.asarray(t, dtype="f4"), True),
        (lambda t: np.asarray(t, copy=False), True),
        (lambda t: np.array(t, copy=None), True),
        (lambda t: np.array(t), False),
        (lambda t: np.asarray(t, dtype="f8"), False),
        (lambda t: np.asarray(t, copy=True), False),
        (lambda t: t.__array__("f4"), True),
        (lambda t: t.__array__(copy=True), False),
    ],
)
def test_numpy_asks_as_it_likes(tensor: Tensor, ask: Callable[[Any], Any], is_shared: bool) -> None:
    array = ask(tensor)
    assert np.shares_memory(array, tensor.numpy()) is is_shared
    assert array.flags.writeable is not is_shared
    assert np.array_equal(array, tensor.numpy())


def test_numpy_is_told_when_it_cannot_have_it_uncopied(tensor: Tensor) -> None:
    with pytest.raises(ValueError, match="Unable to avoid copy"):
        np.asarray(tensor, dtype="f8", copy=False)


def test_numpy_functions_take_it(tensor: Tensor) -> None:
    assert np.sum(tensor) == np.arange(6000, dtype=np.float32).sum()  # type: ignore[call-overload]  # an array by __array__
    assert (np.ones(1, np.float32) * tensor).shape == (2, 3000)  # type: ignore[operator]  # likewise


@pytest.mark.parametrize("missing", ["ml_dtypes", "its float8"])
def test_bfloat16_without_ml_dtypes_gives_the_cure(missing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    tensor = Tensor.of(np.ones(2, ml_dtypes.float8_e8m0fnu))
    monkeypatch.setitem(sys.modules, "ml_dtypes", None if missing == "ml_dtypes" else SimpleNamespace())
    for read in (tensor.numpy, tensor.copy, lambda: np.asarray(tensor)):
        with pytest.raises(TypeError, match=r"numpy has no float8_e8m0fnu: `pip install -U ml_dtypes`, or .* \.torch"):
            read()
    assert tensor.torch().float().tolist() == [1, 1]


# DLPack


@pytest.mark.parametrize("dtype", [dtype for dtype in EXTENDED if hasattr(torch, DType(dtype).name.lower())])
def test_dlpack_names_what_numpy_cannot(dtype: DType) -> None:
    raw = bytes(range(1, 9))
    tensor = Tensor(dtype, (8 // Tensor(dtype, (0,), b"").numpy().itemsize,), raw)
    given = torch.from_dlpack(tensor)
    assert str(given.dtype) == f"torch.{DType(dtype).name.lower()}"
    assert given.data_ptr() == tensor.torch().data_ptr()
    assert Tensor.of(given) == tensor
    assert torch.from_dlpack(Old(tensor)).dtype == given.dtype


class Old:
    """Asks as consumers of DLPack before 1.0 do."""

    def __init__(self, tensor: Tensor, **options: Any) -> None:
        self.tensor, self.options = tensor, options

    def __dlpack__(self, **options: Any) -> Any:
        return self.tensor.__dlpack__(**self.options)

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.tensor.__dlpack_device__()


def test_an_old_consumer_of_dlpack_gets_a_copy(tensor: Tensor) -> None:
    """It could not be told that it must not write."""
    given = torch.from_dlpack(Old(tensor))
    given[0, 0] = 7
    assert tensor.numpy()[0, 0] == 0
    with pytest.raises(BufferError, match=r"this tensor is read-only, .* hand over its \.copy\(\)"):
        torch.from_dlpack(Old(tensor, copy=False))


def test_dlpack_copies_when_it_is_asked_to(tensor: Tensor) -> None:
    given = np.from_dlpack(tensor, copy=True)  # numpy before 2.3 calls even that read-only
    assert not np.shares_memory(given, tensor.numpy())
    assert given.tolist() == tensor.numpy().tolist()


def test_a_capsule_that_nobody_takes_is_freed(tensor: Tensor) -> None:
    bfloat16 = Tensor(DType.BFLOAT16, (2,), bytes(4))
    for source in (tensor, bfloat16):
        before = sys.getrefcount(source.data)
        for version in (None, (1, 0)):
            source.__dlpack__(max_version=version)
        after = sys.getrefcount(source.data)
        assert after == before


# Equality, copies, pickles


def test_equality_is_by_content() -> None:
    ones = Tensor.of(np.ones(4, np.float32))
    assert ones == Tensor.of(torch.ones(4))
    assert ones != Tensor.of(np.ones((2, 2), np.float32))
    assert ones != Tensor.of(np.ones(2, np.float64))
    assert ones != Tensor.of(np.zeros(4, np.float32))
    assert ones != "ones"
    assert Tensor.of(np.float32("nan")) == Tensor.of(np.float32("nan"))
    assert Tensor.of([]) == Tensor.of(np.empty(0))
    with pytest.raises(TypeError, match="unhashable"):
        hash(ones)


def test_a_copy_shares_and_a_deep_copy_does_not(tensor: Tensor) -> None:
    assert copy.copy(tensor) is tensor
    apart = copy.deepcopy(tensor)
    assert apart == tensor
    assert not np.shares_memory(apart.numpy(), tensor.numpy())
    assert apart.numpy().ctypes.data % ALIGNMENT == 0


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_tensor_can_be_pickled(tensor: Tensor, protocol: int) -> None:
    for each in (tensor, Tensor(DType.BFLOAT16, (), b"ab"), Tensor.of([])):
        back = pickle.loads(pickle.dumps(each, protocol))
        assert back == each
        assert not back.numpy().flags.writeable


def test_a_message_with_tensors_can_be_copied_and_pickled(tensor: Tensor) -> None:
    image = Image(pixels=tensor, caption="cat")
    shallow, deep, pickled = copy.copy(image), copy.deepcopy(image), pickle.loads(pickle.dumps(image))
    assert shallow == deep == pickled == image
    assert shallow.pixels is tensor
    assert deep.pixels is not tensor
    shallow.caption = "dog"
    assert image.caption == "cat"


def test_a_message_with_fields_of_a_newer_proto_can_be_copied_and_pickled() -> None:
    unknown = b"\xf8\x07\x01"
    note = decode(Note, encode(Note(text="hi", tags=["a"], about=Note(text="in"))) + unknown)
    for twin in (copy.copy(note), copy.deepcopy(note), pickle.loads(pickle.dumps(note))):
        assert twin == note
        assert encode(twin) == encode(note)
        assert encode(twin).endswith(unknown)
    assert copy.copy(note).tags is note.tags
    assert copy.deepcopy(note).tags is not note.tags


# Memory


@pytest.fixture
def held() -> Iterator[Callable[[], int]]:
    """MiB held since the test began, rounded. The garbage collector is off: nothing may wait for it."""
    gc.collect()
    gc.disable()
    tracemalloc.start()
    yield lambda: round(tracemalloc.get_traced_memory()[0] / MIB)
    tracemalloc.stop()
    gc.enable()


def message_of(mib: int) -> bytes:
    return encode(Image(pixels=Tensor.of(np.zeros(mib * MIB, np.uint8))))


READS: dict[str, Callable[[Tensor], Any]] = {
    "the tensor": lambda t: t,
    "numpy": lambda t: t.numpy(),
    "a slice of numpy": lambda t: t.numpy()[5:6],
    "torch": lambda t: t.torch(),
    "a slice of torch": lambda t: t.torch()[5:6],
    "DLPack": lambda t: torch.from_dlpack(t),
    "data": lambda t: t.data[5:6],
}


@pytest.mark.parametrize("read", READS)
def test_a_view_keeps_exactly_the_message(read: str, held: Callable[[], int]) -> None:
    message = message_of(8)
    assert held() == 8
    image = decode(Image, message)
    assert image.pixels is not None
    assert held() == 8, "decoding copies nothing"
    view = READS[read](image.pixels)
    del message, image
    assert held() == 8, "the view keeps it"
    del view
    assert held() == 0, "and nothing else does"


@pytest.mark.parametrize("read", ["copy", "deepcopy", "clone"])
def test_a_copy_lets_go_of_the_message(read: str, held: Callable[[], int]) -> None:
    image = decode(Image, message_of(8))
    assert image.pixels is not None
    apart: Any = {
        "copy": lambda t: t.copy()[:MIB].copy(),
        "deepcopy": copy.deepcopy,
        "clone": lambda t: t.torch()[:MIB].clone(),
    }[read](image.pixels)
    del image
    assert held() == {"copy": 1, "deepcopy": 8, "clone": 0}[read], "torch's own memory is not Python's"
    assert len(apart.numpy() if read == "deepcopy" else apart) in (MIB, 8 * MIB)


def test_a_small_tensor_does_not_keep_a_large_message(held: Callable[[], int]) -> None:
    note = encode(Image(pixels=Tensor.of(np.zeros(100, np.uint8)), caption="c" * 8 * MIB))
    pixels = decode(Image, note).pixels
    del note
    assert pixels is not None
    assert held() == 0


def test_sending_makes_one_copy(held: Callable[[], int]) -> None:
    array = np.zeros(8 * MIB, np.uint8)
    tensor = Tensor.of(array)
    assert held() == 8
    message = encode(Image(pixels=tensor))
    assert held() == 16
    assert round(tracemalloc.get_traced_memory()[1] / MIB) == 16
    assert len(message) > 8 * MIB


# Alignment


@pytest.mark.parametrize("offset", range(17))
def test_the_elements_of_a_foreign_message_are_copied_where_they_are_misaligned(offset: int) -> None:
    array = np.arange(2000, dtype=np.float64)
    header = b"\x08\x0c\x12\x02\xd0\x0f"
    data = b"\x7a\x80\x7d" + array.tobytes()
    foreign = header + b"\x72" + bytes([offset]) + bytes(offset) + data
    tensor = decode(Tensor, foreign)
    assert np.array_equal(tensor.numpy(), array)
    assert tensor.numpy().ctypes.data % ALIGNMENT == tensor.torch().data_ptr() % ALIGNMENT == 0
    start = np.frombuffer(foreign, np.uint8).ctypes.data
    is_view = start < tensor.numpy().ctypes.data < start + len(foreign)
    assert is_view is ((start + len(foreign) - array.nbytes) % ALIGNMENT == 0)


def test_torch_gets_aligned_elements_of_any_memory() -> None:
    memory = memoryview(bytes(33))
    for start in range(17):
        tensor = Tensor(DType.FLOAT64, (2,), memory[start : start + 16])
        assert tensor.torch().data_ptr() % 8 == 0
        assert tensor.torch().tolist() == [0, 0]


def test_padding_is_what_makes_a_view_of_our_own_messages() -> None:
    for caption in range(40):
        image = Image(pixels=Tensor.of(np.arange(2000.0)), caption="c" * caption)
        message = encode(image)
        pixels = decode(Image, message).pixels
        assert pixels is not None
        start = np.frombuffer(message, np.uint8).ctypes.data
        assert start < pixels.numpy().ctypes.data < start + len(message)
        assert pixels.nbytes >= codec.VIEW_FROM
