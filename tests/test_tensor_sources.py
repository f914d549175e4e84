"""What becomes a `Tensor`, from numpy, torch, DLPack and lists; what is refused, and what the refusal says."""

from __future__ import annotations

import itertools
import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as np_st

from toolkit import tensor as tensors
from toolkit.tensor import DType, Tensor

NUMPY_KINDS = [dtype.name.lower() for dtype in DType if dtype and dtype not in tensors.EXTENDED]
EXTENDED_KINDS = [dtype.name.lower() for dtype in DType if dtype in tensors.EXTENDED]
KINDS = NUMPY_KINDS + EXTENDED_KINDS
TORCH_KINDS = [kind for kind in KINDS if hasattr(torch, kind)]


def numpy_dtype(kind: str) -> np.dtype[Any]:
    return np.dtype(getattr(ml_dtypes, kind) if kind in EXTENDED_KINDS else kind)


def bits(array: Any) -> bytes:
    """The elements in C order and little-endian, by another road than the one under test: one by one."""
    return b"".join(item.tobytes() for item in array.reshape(-1))


def sample(kind: str, shape: tuple[int, ...] = (2, 3, 4)) -> Any:
    size = int(np.prod(shape))
    values = np.arange(size) % 2 if kind == "bool" else np.arange(size) % 7
    return (values + 1 if kind == "float8_e8m0fnu" else values).astype(numpy_dtype(kind)).reshape(shape)


def test_every_dtype_is_known_by_its_name_and_size() -> None:
    assert len(KINDS) == 23
    for kind in KINDS:
        assert Tensor.of(sample(kind)).nbytes == 24 * numpy_dtype(kind).itemsize


@pytest.mark.parametrize("kind", KINDS)
def test_a_numpy_array_is_shared_and_comes_back(kind: str) -> None:
    array = sample(kind)
    tensor = Tensor.of(array)
    assert (tensor.dtype.name.lower(), tensor.shape, tensor.ndim) == (kind, (2, 3, 4), 3)
    back = tensor.numpy()
    assert (back.dtype, back.shape) == (array.dtype, array.shape)
    assert np.shares_memory(back.view(np.uint8), array.view(np.uint8))
    assert back.tobytes() == array.tobytes() == bytes(tensor.data)


@pytest.mark.parametrize("kind", TORCH_KINDS)
def test_a_torch_tensor_is_shared_and_comes_back(kind: str) -> None:
    source = Tensor.of(sample(kind)).torch().clone()
    tensor = Tensor.of(source)
    back = tensor.torch()
    assert (str(back.dtype), back.shape) == (f"torch.{kind}", source.shape)
    assert back.data_ptr() == source.data_ptr()
    assert bytes(tensor.data) == sample(kind).tobytes()


@pytest.mark.parametrize("kind", sorted(set(KINDS) - set(TORCH_KINDS)))
def test_a_dtype_that_torch_lacks_says_what_to_do(kind: str) -> None:
    with pytest.raises(TypeError, match=rf"this torch has no {kind}: read the tensor with \.numpy\(\)"):
        Tensor.of(sample(kind)).torch()


LAYOUTS = {
    "transposed": lambda a: a.T,
    "Fortran order": np.asfortranarray,
    "every other": lambda a: a[:, ::2],
    "reversed": lambda a: a[::-1, ::-1, ::-1],
    "broadcast": lambda a: np.broadcast_to(a[:1, :, :1], a.shape),
    "one axis broadcast to nothing": lambda a: np.broadcast_to(a[:, :0, :1], (2, 0, 4)),
    "big-endian": lambda a: a.astype(a.dtype.newbyteorder(">")),
    "big-endian and reversed": lambda a: a.astype(a.dtype.newbyteorder(">"))[:, ::-1],
    "an axis more": lambda a: a[:, None, :, ::-1],
    "a scalar of it": lambda a: a[1, 2, 3],
    "read-only": lambda a: _read_only(a),
    "misaligned": lambda a: _misaligned(a),
}


def _read_only(array: Any) -> Any:
    array.flags.writeable = False
    return array


def _misaligned(array: Any) -> Any:
    memory = np.empty(array.nbytes + 1, np.uint8)
    moved = memory[1:].view(array.dtype).reshape(array.shape)
    moved[...] = array
    return moved


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kind", KINDS)
def test_an_array_of_any_layout_is_made_right(kind: str, layout: str) -> None:
    array = LAYOUTS[layout](sample(kind))
    tensor = Tensor.of(array)
    assert tensor.shape == np.shape(array)
    assert bytes(tensor.data) == bits(array)
    back = tensor.numpy()
    assert back.dtype == numpy_dtype(kind)
    assert back.flags.aligned
    assert back.tobytes() == bits(array)


TORCH_LAYOUTS = {
    "transposed": lambda t: t.permute(2, 0, 1),
    "every other": lambda t: t[:, ::2],
    "expanded": lambda t: t[:1, :, :1].expand(2, 3, 4),
    "expanded from nothing": lambda t: t[:, :0].expand(2, 0, 4),
    "channels last": lambda t: t[None].to(memory_format=torch.channels_last),
    "a scalar of it": lambda t: t[1, 2, 3],
    "a slice": lambda t: t[1:, 1:],
}


@pytest.mark.parametrize("layout", TORCH_LAYOUTS)
@pytest.mark.parametrize("kind", TORCH_KINDS)
def test_a_torch_tensor_of_any_layout_is_made_right(kind: str, layout: str) -> None:
    whole = Tensor.of(sample(kind)).torch()
    array = sample(kind)
    expected = {
        "transposed": lambda: array.transpose(2, 0, 1),
        "every other": lambda: array[:, ::2],
        "expanded": lambda: np.broadcast_to(array[:1, :, :1], (2, 3, 4)),
        "expanded from nothing": lambda: array[:, :0],
        "channels last": lambda: array[None],
        "a scalar of it": lambda: array[1, 2, 3],
        "a slice": lambda: array[1:, 1:],
    }[layout]()
    tensor = Tensor.of(TORCH_LAYOUTS[layout](whole))
    assert tensor.shape == np.shape(expected)
    assert bytes(tensor.data) == bits(expected)


def test_a_tensor_is_a_tensor_already() -> None:
    tensor = Tensor.of([1])
    assert Tensor.of(tensor) is tensor


@pytest.mark.parametrize("rank", range(33))
def test_every_rank_up_to_32(rank: int) -> None:
    shape = tuple(2 if axis in (0, rank - 1) else 1 for axis in range(rank))
    array = np.arange(np.prod(shape, dtype=int), dtype=np.float32).reshape(shape)
    tensor = Tensor.of(array)
    assert tensor.shape == shape == tuple(tensor.torch().shape)
    assert np.array_equal(tensor.numpy(), array)


def test_rank_33_is_refused() -> None:
    with pytest.raises(ValueError, match="tensor of rank 33; at most 32"):
        Tensor.of(np.zeros((1,) * 33))


@pytest.mark.parametrize("shape", [(0,), (0, 3), (3, 0), (2, 0, 1 << 40), (0,) * 32])
def test_an_array_without_elements_keeps_its_shape(shape: tuple[int, ...]) -> None:
    tensor = Tensor.of(np.empty(shape, np.float16))
    assert (tensor.shape, tensor.nbytes) == (shape, 0)
    assert tensor.numpy().shape == tensor.copy().shape == tuple(tensor.torch().shape) == shape
    assert Tensor.of(tensor.torch()) == tensor == Tensor.of(torch.from_dlpack(tensor))


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_whatever_numpy_can_hold_arrives_bit_for_bit(data: st.DataObject) -> None:
    dtype = data.draw(
        st.one_of(
            np_st.boolean_dtypes(),
            np_st.integer_dtypes(endianness="?"),
            np_st.unsigned_integer_dtypes(endianness="?"),
            np_st.floating_dtypes(endianness="?", sizes=(16, 32, 64)),
            np_st.complex_number_dtypes(endianness="?", sizes=(64, 128)),
        )
    )
    array = data.draw(np_st.arrays(dtype, np_st.array_shapes(min_dims=1, max_dims=4, min_side=0, max_side=4)))
    view = array[data.draw(np_st.basic_indices(array.shape, allow_newaxis=True, allow_ellipsis=True))]
    tensor = Tensor.of(view)
    assert tensor.shape == np.shape(view)
    assert bytes(tensor.data) == np.asarray(view).astype(dtype.newbyteorder("<")).tobytes()


@pytest.mark.parametrize(("kind", "width"), [("float16", 2), ("float32", 4), ("float64", 8), ("bfloat16", 2)])
@pytest.mark.parametrize("order", ["<", ">"])
def test_the_payload_of_a_nan_arrives(kind: str, width: int, order: str) -> None:
    """Signalling ones too: nothing on the way is a floating-point operation."""
    quiet = {"float16": 0x7E01, "float32": 0x7FC00123, "float64": 0x7FF8000000000456, "bfloat16": 0x7FC1}[kind]
    signalling = {"float16": 0x7C01, "float32": 0x7F800123, "float64": 0x7FF0000000000456, "bfloat16": 0x7F81}[kind]
    patterns = np.array([quiet, signalling, quiet | 1 << (8 * width - 1)], f"<u{width}")
    array = patterns.astype(f"{order}u{width}").view(numpy_dtype(kind).newbyteorder(order))
    tensor = Tensor.of(array)
    assert bytes(tensor.data) == patterns.tobytes()
    assert tensor.numpy().view(f"<u{width}").tolist() == patterns.tolist()
    assert bytes(Tensor.of(tensor.torch()).data) == patterns.tobytes()


# Scalars, lists and others


@pytest.mark.parametrize(
    ("value", "dtype", "shape"),
    [
        (np.float32(1.5), DType.FLOAT32, ()),
        (np.bool_(True), DType.BOOL, ()),
        (ml_dtypes.bfloat16(2), DType.BFLOAT16, ()),
        (True, DType.BOOL, ()),
        (7, DType.INT64, ()),
        (1.5, DType.FLOAT64, ()),
        (1j, DType.COMPLEX128, ()),
        ([1, 2], DType.INT64, (2,)),
        ([1 << 63], DType.UINT64, (1,)),
        ([[1, 2.5], [3, 4]], DType.FLOAT64, (2, 2)),
        ([True, False], DType.BOOL, (2,)),
        ((1, 2, 3), DType.INT64, (3,)),
        (range(4), DType.INT64, (4,)),
        ([], DType.FLOAT64, (0,)),
        ([[], []], DType.FLOAT64, (2, 0)),
        ([np.float32(1), np.float32(2)], DType.FLOAT32, (2,)),
        ([np.zeros(3, np.int8)] * 2, DType.INT8, (2, 3)),
        (bytearray(b"ab"), DType.UINT8, (2,)),
        (memoryview(b"ab"), DType.UINT8, (2,)),
    ],
)
def test_scalars_and_lists(value: Any, dtype: DType, shape: tuple[int, ...]) -> None:
    tensor = Tensor.of(value)
    assert (tensor.dtype, tensor.shape) == (dtype, shape)
    assert np.array_equal(tensor.numpy(), np.asarray(value))


def test_tensors_stack_in_a_list() -> None:
    assert Tensor.of([Tensor.of([1, 2]), Tensor.of([3, 4])]) == Tensor.of([[1, 2], [3, 4]])


class WithArray:
    """The protocol of numpy, as libraries have it."""

    def __init__(self, array: Any) -> None:
        self.array = array

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Any:
        return self.array


def test_anything_with_an_array_is_shared() -> None:
    array = np.arange(4.0)
    assert np.shares_memory(Tensor.of(WithArray(array)).numpy(), array)


class WithDLPack:
    """The protocol of DLPack and nothing else. `device` as it says of itself."""

    def __init__(self, array: Any, device: tuple[int, int] = (1, 0)) -> None:
        self.array, self.device = array, device

    def __dlpack__(self, **options: Any) -> Any:
        return self.array.__dlpack__(**options)

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.device


@pytest.mark.parametrize("kind", [kind for kind in TORCH_KINDS if kind != "bool"])
def test_anything_with_dlpack_is_shared(kind: str) -> None:
    """bfloat16 and float8, which numpy cannot take in, by way of torch."""
    source = Tensor.of(sample(kind)).torch().clone()
    tensor = Tensor.of(WithDLPack(source))
    assert (tensor.dtype.name.lower(), tensor.shape) == (kind, (2, 3, 4))
    assert tensor.torch().data_ptr() == source.data_ptr()


def test_dlpack_that_nobody_here_can_read_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    source = WithDLPack(torch.ones(2, dtype=torch.bfloat16))
    monkeypatch.delitem(sys.modules, "torch")
    with pytest.raises(TypeError, match=r"numpy cannot read this WithDLPack .*: `import torch`, which may"):
        Tensor.of(source)


# Torch's own ways


def test_gradients_and_parameters_are_left_behind() -> None:
    weights = torch.nn.Parameter(torch.ones(2))
    assert Tensor.of(weights) == Tensor.of(np.ones(2, np.float32)) == Tensor.of(torch.ones(2, requires_grad=True) * 1)
    assert weights.requires_grad


def test_lazy_conjugates_and_negatives_are_resolved() -> None:
    source = torch.tensor([1 + 2j, 3 - 4j])
    assert source.conj().is_conj()
    assert Tensor.of(source.conj()).numpy().tolist() == [1 - 2j, 3 + 4j]
    negative = source.conj().imag
    assert negative.is_neg()
    assert Tensor.of(negative).numpy().tolist() == [-2, 4]


class Wrapped(torch.Tensor):
    pass


TORCH_REFUSALS = {
    "sparse": (lambda: torch.eye(2).to_sparse(), r"layout torch.sparse_coo is not dense: send .to_dense\(\)"),
    "csr": (lambda: torch.sparse_csr_tensor([0, 1], [0], [1.0], (1, 1)), "layout torch.sparse_csr is not dense"),
    "quantized": (
        lambda: torch._empty_affine_quantized([2], scale=1.0, zero_point=0, dtype=torch.quint8),
        r"quantized torch tensor \(torch.quint8\) is not plain numbers: send .dequantize\(\)",
    ),
    "meta": (lambda: torch.ones(2, device="meta"), "on the device meta has no elements"),
    "subclass": (lambda: torch.ones(2).as_subclass(Wrapped), r"a Wrapped is more than a torch.Tensor: send .as_sub"),
    "half complex": (lambda: torch.ones(2, dtype=torch.complex32), r"torch.complex32 is no dtype of tensors: convert"),
    "packed": (lambda: torch.zeros(2, dtype=torch.float4_e2m1fn_x2), "torch.float4_e2m1fn_x2 is no dtype of tensors"),
}


@pytest.mark.filterwarnings("ignore:Sparse:UserWarning")
@pytest.mark.filterwarnings("ignore:ComplexHalf support is experimental:UserWarning")
@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor:UserWarning")
@pytest.mark.parametrize("case", TORCH_REFUSALS)
def test_what_torch_has_beyond_dense_numbers_is_refused(case: str) -> None:
    make, message = TORCH_REFUSALS[case]
    source = make()
    with pytest.raises(TypeError, match=message) as refused:
        Tensor.of(source)
    assert "\n" not in str(refused.value)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors is in prototype:UserWarning")
def test_nested_torch_tensors_are_refused() -> None:
    with pytest.raises(TypeError, match="nested torch tensor has no one shape"):
        Tensor.of(torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]))


@pytest.mark.parametrize(("kind", "pinned"), [("cuda", True), ("mps", False)])
def test_a_tensor_on_a_device_is_staged(kind: str, pinned: bool) -> None:
    """Without such a device: what is asked of torch, and that the elements are copied before it returns."""
    asked: list[bool] = []

    def empty(shape: Any, *, dtype: Any, pin_memory: bool) -> torch.Tensor:
        asked.append(pin_memory)
        return torch.empty(shape, dtype=dtype)

    class There(torch.Tensor):
        device = SimpleNamespace(type=kind)

    source = torch.arange(4.0).as_subclass(There)
    staged = tensors._staged(source, SimpleNamespace(empty=empty))
    assert asked == [pinned]
    assert staged.tolist() == [0, 1, 2, 3]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_cuda_tensor_travels() -> None:
    for kind in TORCH_KINDS:
        source = Tensor.of(sample(kind)).torch("cuda")
        assert source.is_cuda
        assert Tensor.of(source.permute(2, 0, 1)) == Tensor.of(sample(kind).transpose(2, 0, 1))
        assert Tensor.of(source) == Tensor.of(WithDLPack(source, source.__dlpack_device__())) == Tensor.of(sample(kind))


# What is refused of numpy

NUMPY_REFUSALS = {
    "object": (np.array([1, None], object), r"array of Python objects is not a tensor of numbers: give it a dtype"),
    "string": (
        np.array(["a", "b"]),
        r"array of strings \(<U1\) is not a tensor of numbers: strings go into a repeated",
    ),
    "bytes": (np.array([b"a"]), r"array of strings \(\|S1\)"),
    "variable string": (np.array(["a"], np.dtypes.StringDType()), r"array of strings \(StringDType\(\)\)"),
    "datetime": (np.array(["2026-01-01"], "M8[s]"), r"datetime64\[s\] is not a number: send .astype\('int64'\)"),
    "timedelta": (np.array([1], "m8[ns]"), r"timedelta64\[ns\] is not a number"),
    "structured": (np.zeros(2, [("x", "f4"), ("y", "f4")]), r"structured array is not a tensor: .* \(x, y\)"),
    "void": (np.zeros(2, "V3"), r"numpy's \|V3 is no dtype of tensors"),
    "long double": (np.zeros(2, np.longdouble), r"numpy's float128 is no dtype of tensors: convert it"),
    "int4": (np.zeros(2, ml_dtypes.int4), r"numpy's int4 is no dtype of tensors"),
    "masked": (np.ma.masked_array([1, 2], mask=[0, 1]), r"would lose its mask: send .filled\(value\)"),
    "list of strings": (["a"], r"array of strings"),
    "text": ("cat", r"array of strings"),
    "raw bytes": (b"cat", r"array of strings"),
    "ragged": ([[1], [1, 2]], r"nested lists of unequal lengths are not a tensor: pad them"),
    "none": (None, "NoneType is not a tensor of numbers"),
    "mapping": ({"a": 1}, "dict is not a tensor of numbers"),
    "big integer": ([1 << 70], "array of Python objects"),
}


@pytest.mark.parametrize("case", NUMPY_REFUSALS)
def test_what_is_no_array_of_numbers_is_refused_by_name(case: str) -> None:
    value, message = NUMPY_REFUSALS[case]
    with pytest.raises(TypeError, match=message) as refused:
        Tensor.of(value)
    assert "\n" not in str(refused.value)


def test_a_boolean_that_is_no_boolean_is_refused() -> None:
    with pytest.raises(ValueError, match="dtype BOOL with a byte of 2; only 0 and 1 are booleans"):
        Tensor.of(np.array([0, 1, 2], np.uint8).view(bool))
    for value in itertools.chain(range(2, 256)):
        with pytest.raises(ValueError, match=f"byte of {value};"):
            Tensor(DType.BOOL, (3,), bytes([0, value, 1]))
    assert Tensor(DType.BOOL, (2,), b"\0\1").numpy().tolist() == [False, True]


@pytest.mark.parametrize(
    ("dtype", "shape", "data", "message"),
    [
        (0, (), b"", "unknown dtype 0"),
        (99, (), b"", "unknown dtype 99"),
        (DType.FLOAT32, (2,), bytes(7), r"shape \[2\] and dtype FLOAT32 takes 8 bytes, not 7"),
        (DType.FLOAT32, (), b"", r"shape \[\] and dtype FLOAT32 takes 4 bytes, not 0"),
        (DType.INT8, (-1, -1), b"a", r"negative axis: shape \[-1, -1\]"),
        (DType.INT8, (1 << 62, 4), b"", r"takes 18446744073709551616 bytes, not 0"),
        (DType.INT8, (1 << 62, 2, 0), b"", "axes are too long for any array"),
        (DType.FLOAT64, (0, 1 << 60), b"", "axes are too long for any array"),
    ],
)
def test_a_tensor_is_checked_when_it_is_made(dtype: Any, shape: tuple[int, ...], data: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Tensor(dtype, shape, data)


def test_the_longest_axes_that_are_allowed_can_be_read() -> None:
    tensor = Tensor(DType.FLOAT64, (0, (1 << 60) - 1), b"")
    assert tensor.numpy().shape == tensor.shape == tuple(tensor.torch().shape)


def test_a_list_for_a_shape_becomes_a_tuple_and_a_number_a_dtype() -> None:
    tensor = Tensor(11, [np.int64(1)], bytes(4))  # type: ignore[arg-type]  # what callers do all the same
    assert repr(tensor) == "Tensor(float32, [1])"
    assert (tensor.shape, type(tensor.shape[0]), tensor.dtype) == ((1,), int, DType.FLOAT32)


def test_torch_is_never_imported_for_its_own_sake() -> None:
    code = "import sys; from toolkit.tensor import Tensor; Tensor.of([1, 2]).numpy(); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
