"""`Tensor`: what a tensor field holds. A dtype, a shape, and the bytes of the elements, shared rather than copied.

The wire format is specified in protos/toolkit/v1/tensor.proto. This module never imports torch by itself.
"""

from __future__ import annotations

import ctypes
import sys
from math import prod
from operator import index
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from toolkit.message import Enum, register_enum

if TYPE_CHECKING:
    import torch

MAX_RANK: Final = 32
ALIGNMENT: Final = 16
"""Elements start at a multiple of this many bytes, in memory and, by padding, in the message."""


@register_enum("toolkit.v1.DType")
class DType(Enum):
    """The element type of a tensor; numbers as in toolkit/v1/tensor.proto."""

    DTYPE_UNSPECIFIED = 0
    BOOL = 1
    INT8 = 2
    INT16 = 3
    INT32 = 4
    INT64 = 5
    UINT8 = 6
    UINT16 = 7
    UINT32 = 8
    UINT64 = 9
    FLOAT16 = 10
    FLOAT32 = 11
    FLOAT64 = 12
    BFLOAT16 = 13
    COMPLEX64 = 14
    COMPLEX128 = 15
    FLOAT8_E4M3FN = 16
    FLOAT8_E5M2 = 17
    FLOAT8_E4M3FNUZ = 18
    FLOAT8_E5M2FNUZ = 19
    FLOAT8_E8M0FNU = 20
    FLOAT8_E4M3 = 21
    FLOAT8_E3M4 = 22
    FLOAT8_E4M3B11FNUZ = 23


ITEMSIZE: Final[dict[int, int]] = {
    DType.BOOL: 1,
    DType.INT8: 1,
    DType.INT16: 2,
    DType.INT32: 4,
    DType.INT64: 8,
    DType.UINT8: 1,
    DType.UINT16: 2,
    DType.UINT32: 4,
    DType.UINT64: 8,
    DType.FLOAT16: 2,
    DType.FLOAT32: 4,
    DType.FLOAT64: 8,
    DType.BFLOAT16: 2,
    DType.COMPLEX64: 8,
    DType.COMPLEX128: 16,
    DType.FLOAT8_E4M3FN: 1,
    DType.FLOAT8_E5M2: 1,
    DType.FLOAT8_E4M3FNUZ: 1,
    DType.FLOAT8_E5M2FNUZ: 1,
    DType.FLOAT8_E8M0FNU: 1,
    DType.FLOAT8_E4M3: 1,
    DType.FLOAT8_E3M4: 1,
    DType.FLOAT8_E4M3B11FNUZ: 1,
}
"""Bytes of one element."""
EXTENDED: Final[dict[int, int]] = {
    DType.BFLOAT16: 4,
    DType.FLOAT8_E3M4: 7,
    DType.FLOAT8_E4M3: 8,
    DType.FLOAT8_E4M3B11FNUZ: 9,
    DType.FLOAT8_E4M3FN: 10,
    DType.FLOAT8_E4M3FNUZ: 11,
    DType.FLOAT8_E5M2: 12,
    DType.FLOAT8_E5M2FNUZ: 13,
    DType.FLOAT8_E8M0FNU: 14,
}
"""Kinds that numpy knows only with ml_dtypes installed → their DLPack type code.

Source: https://github.com/dmlc/dlpack/blob/v1.1/include/dlpack/dlpack.h
"""
_NAMES: Final[dict[str, DType]] = {dtype.name.lower(): dtype for dtype in DType if dtype}
_USUAL: Final[dict[np.dtype[Any], DType]] = (
    {np.dtype(name): dtype for name, dtype in _NAMES.items() if name.rstrip("0123456789") in ("int", "uint", "float")}
    if sys.byteorder == "little"
    else {}
)
"""Kinds whose contiguous arrays are as they have to be."""
_BITS: Final[dict[int, np.dtype[Any]]] = {1: np.dtype("u1"), 2: np.dtype("<u2")}
"""Bytes of one element → what numpy, without ml_dtypes, can hold it as."""
_CPU: Final = 1
_CUDA_HOST: Final = 3
"""DLPack's kDLCPU and kDLCUDAHost, memory that numpy can read."""


class Tensor:
    """An immutable n-dimensional array of numbers, in C order, little-endian.

    Make one with `Tensor.of(array)`. Read it with `.numpy()` (a read-only view), `.torch()`, `numpy.asarray(tensor)` or
    `torch.from_dlpack(tensor)`; `.copy()` gives a writable array. Nothing is copied on the way in when the array is
    contiguous already: do not change it until the call has returned. Nothing is copied on the way out either: a tensor
    that was received, and every view of it, keeps the whole message in memory.

    `data` is the elements' bytes, as toolkit/v1/tensor.proto has them. Raises ValueError for a rank above 32, a negative
    axis, an unknown dtype, a boolean that is neither 0 nor 1, or data whose length is not exactly product(shape) times
    the size of an element.
    """

    __slots__ = ("data", "dtype", "shape")
    dtype: DType
    shape: tuple[int, ...]
    data: memoryview
    """The elements' bytes, read-only."""

    def __init__(self, dtype: DType, shape: tuple[int, ...], data: bytes | memoryview) -> None:
        itemsize = ITEMSIZE.get(dtype)
        if itemsize is None:
            raise ValueError(f"tensor of unknown dtype {int(dtype)}")
        if len(shape) > MAX_RANK:
            raise ValueError(f"tensor of rank {len(shape)}; at most {MAX_RANK}")
        if shape and min(shape) < 0:
            raise ValueError(f"tensor with a negative axis: shape {_listed(shape)}")
        view = memoryview(data).toreadonly()
        if view.format != "B" or view.ndim != 1:
            view = view.cast("B")
        expected = prod(shape) * itemsize
        if expected != view.nbytes:
            raise ValueError(
                f"tensor of shape {_listed(shape)} and dtype {DType(dtype).name} takes {expected} bytes, not {view.nbytes}"
            )
        if not expected and prod(axis or 1 for axis in shape) * itemsize >> 63:
            raise ValueError(f"tensor of shape {_listed(shape)}, whose axes are too long for any array")
        if dtype == DType.BOOL and expected and (largest := int(np.frombuffer(view, np.uint8).max())) > 1:
            raise ValueError(f"tensor of dtype BOOL with a byte of {largest}; only 0 and 1 are booleans")
        self.dtype = dtype if type(dtype) is DType else DType(dtype)
        self.shape = shape if type(shape) is tuple else tuple(map(index, shape))
        self.data = view

    @classmethod
    def of(cls, array: Any) -> Tensor:
        """A tensor over a numpy array or scalar, a torch tensor, anything with `__array__` or `__dlpack__`, or nested
        lists of numbers, whose dtype is numpy's choice: bool, int64, float64 or complex128.

        A contiguous array in the CPU's memory is shared, anything else is copied once. Raises TypeError for what is no
        dense array of numbers, and says what to do with it.
        """
        if type(array) is np.ndarray:
            return _of_numpy(array)
        if isinstance(array, Tensor):
            return array
        torch = sys.modules.get("torch")
        if torch is not None and isinstance(array, torch.Tensor):
            return _of_torch(array, torch)
        if isinstance(array, np.ndarray | np.generic):
            return _of_numpy(array)
        if hasattr(array, "__dlpack__") and (not hasattr(array, "__array__") or _is_elsewhere(array)):
            return _of_dlpack(array, torch)
        return _of_numpy(_as_numpy(array))

    @classmethod
    def of_checked(cls, dtype: DType, shape: tuple[int, ...], data: memoryview) -> Tensor:
        """A tensor of what the codec has checked before, so that it is not checked again."""
        tensor = object.__new__(cls)
        tensor.dtype = dtype
        tensor.shape = shape
        tensor.data = data
        return tensor

    @property
    def nbytes(self) -> int:
        return self.data.nbytes

    @property
    def ndim(self) -> int:
        return len(self.shape)

    def numpy(self) -> NDArray[Any]:
        """A read-only view of the elements, of this shape. bfloat16 and float8 need the package ml_dtypes."""
        return np.frombuffer(self.data, dtype=numpy_dtype(self.dtype)).reshape(self.shape)

    def copy(self) -> NDArray[Any]:
        """A writable numpy array of its own memory."""
        return self.numpy().copy()

    def torch(self, device: str | torch.device | None = None) -> torch.Tensor:
        """A torch tensor: on the CPU it shares this memory and must not be written (`.clone()` it first); on another
        `device` it is a copy.
        """
        import torch  # an optional heavy library, imported when asked for

        shared = _share_with_torch(self, torch)
        return shared if device is None else shared.to(device)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        return np.array(self.numpy(), dtype=dtype, copy=copy)

    def __dlpack__(
        self,
        *,
        stream: None = None,
        max_version: tuple[int, int] | None = None,
        dl_device: tuple[int, int] | None = None,
        copy: bool | None = None,
    ) -> Any:
        """A DLPack capsule, marked read-only. Consumers of a DLPack before 1.0, which has no such mark, get a copy.

        Source: https://data-apis.org/array-api/latest/API_specification/generated/array_api.array.__dlpack__.html
        """
        array = bits(self) if self.dtype in EXTENDED else self.numpy()
        if max_version is None or max_version[0] < 1:
            if copy is False:
                raise BufferError("this tensor is read-only, which DLPack before 1.0 cannot say: hand over its .copy()")
            array = array.copy()
            capsule = array.__dlpack__(stream=stream)
        else:
            capsule = array.__dlpack__(stream=stream, max_version=max_version, dl_device=dl_device, copy=copy)
        if self.dtype in EXTENDED:
            _name_type(capsule, EXTENDED[self.dtype])
        return capsule

    def __dlpack_device__(self) -> tuple[int, int]:
        return _CPU, 0

    def __eq__(self, other: object) -> bool:
        """Same dtype, same shape, same bytes."""
        if not isinstance(other, Tensor):
            return NotImplemented
        return (
            self.dtype == other.dtype
            and self.shape == other.shape
            and bool(np.array_equal(np.frombuffer(self.data, np.uint8), np.frombuffer(other.data, np.uint8)))
        )

    __hash__ = None  # type: ignore[assignment]  # equal by content, and content may be large

    def __copy__(self) -> Tensor:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> Tensor:
        """Its own memory, so that neither a later change of the array nor the message's life concerns it."""
        return Tensor(self.dtype, self.shape, bytes(self.data))

    def __reduce__(self) -> tuple[Any, ...]:
        return Tensor, (self.dtype, self.shape, bytes(self.data))

    def __repr__(self) -> str:
        return f"Tensor({self.dtype.name.lower()}, {list(self.shape)})"


def dtype_of(name: str) -> DType | None:
    """The dtype of that name, `float32` or `FLOAT32`; None where there is none."""
    return _NAMES.get(name.lower())


def _listed(shape: tuple[int, ...]) -> str:
    return f"[{', '.join(map(str, shape))}]"


def _of_numpy(array: Any) -> Tensor:
    """Of an array or a scalar of numpy's."""
    usual = _USUAL.get(array.dtype) if type(array) is np.ndarray else None
    if (
        usual is not None
        and array.ndim <= MAX_RANK
        and array.size
        and (flags := array.flags).c_contiguous
        and flags.aligned
    ):
        return Tensor.of_checked(usual, array.shape, array.data.toreadonly().cast("B"))
    dtype = _NAMES.get(array.dtype.name)
    if dtype is None or isinstance(array, np.ma.MaskedArray):
        raise TypeError(_numpy_refusal(array))
    array = np.asarray(array, order="C")
    if array.dtype.byteorder == ">" or (array.dtype.byteorder == "=" and sys.byteorder == "big"):
        array = array.astype(array.dtype.newbyteorder("<"))
    elif not array.flags.aligned:
        array = array.copy()
    return Tensor(dtype, array.shape, array.reshape(-1).view(np.uint8).data)


def _numpy_refusal(array: Any) -> str:
    """What is wrong with an array that cannot travel, and what to do."""
    dtype = array.dtype
    if isinstance(array, np.ma.MaskedArray):
        return "a masked array would lose its mask: send .filled(value), or .data and .mask as two tensors"
    if dtype.names is not None:
        return f"a structured array is not a tensor: send each of its fields ({', '.join(dtype.names)}) as a tensor"
    if dtype.kind in "SUT":
        return f"an array of strings ({dtype}) is not a tensor of numbers: strings go into a repeated string field"
    if dtype.kind in "mM":
        return f"numpy's {dtype} is not a number: send .astype('int64') and name the unit in the .proto"
    if dtype.kind == "O":
        return "an array of Python objects is not a tensor of numbers: give it a dtype with .astype('float32')"
    return f"numpy's {dtype} is no dtype of tensors: convert it with .astype(), for example to float32"


def _as_numpy(value: Any) -> Any:
    """Of lists, and of what has `__array__` or a buffer."""
    try:
        array = np.asarray(value)
    except ValueError as error:
        if "inhomogeneous" not in str(error):
            raise
        raise TypeError("nested lists of unequal lengths are not a tensor: pad them, or send one tensor each") from None
    if array.dtype.kind == "O" and array.ndim == 0:
        raise TypeError(f"{type(value).__name__} is not a tensor of numbers")
    return array


def _is_elsewhere(array: Any) -> bool:
    """Whether an array that speaks DLPack is in another memory than the CPU's."""
    return bool(array.__dlpack_device__()[0] not in (_CPU, _CUDA_HOST))


def _of_dlpack(array: Any, torch: Any) -> Tensor:
    """Of what speaks DLPack: through numpy, or through torch, which knows more dtypes and devices, where it is loaded."""
    try:
        if torch is None or not _is_elsewhere(array):
            return _of_numpy(np.from_dlpack(array))
    except (RuntimeError, BufferError) as error:
        if torch is None:
            raise TypeError(
                f"numpy cannot read this {type(array).__name__} ({error}): `import torch`, which may, or convert it"
            ) from None
    try:
        return _of_torch(torch.from_dlpack(array), torch)
    except (RuntimeError, BufferError) as error:
        raise TypeError(f"neither numpy nor torch can read this {type(array).__name__}: {error}") from None


def _of_torch(tensor: torch.Tensor, torch: Any) -> Tensor:
    refusal = _torch_refusal(tensor, torch)
    if refusal:
        raise TypeError(refusal)
    plain = tensor.detach().resolve_conj().resolve_neg().contiguous()
    if plain.device.type != "cpu":
        plain = _staged(plain, torch)
    dtype = _NAMES[str(plain.dtype).removeprefix("torch.")]
    return Tensor(dtype, tuple(plain.shape), plain.reshape(-1).view(torch.uint8).numpy().data)


def _torch_refusal(tensor: torch.Tensor, torch: Any) -> str | None:
    """What keeps a torch tensor from travelling, and what to do; None where nothing does."""
    if type(tensor) not in (torch.Tensor, torch.nn.Parameter):
        return (
            f"a {type(tensor).__name__} is more than a torch.Tensor: send .as_subclass(torch.Tensor), or what it wraps"
        )
    if tensor.is_nested:
        return (
            "a nested torch tensor has no one shape: send torch.nested.to_padded_tensor(tensor, 0), or one tensor each"
        )
    if tensor.is_quantized:
        return f"a quantized torch tensor ({tensor.dtype}) is not plain numbers: send .dequantize(), or .int_repr()"
    if tensor.is_meta:
        return "a torch tensor on the device meta has no elements to send"
    if tensor.layout != torch.strided:
        return f"a torch tensor of layout {tensor.layout} is not dense: send .to_dense()"
    if str(tensor.dtype).removeprefix("torch.") not in _NAMES:
        return f"{tensor.dtype} is no dtype of tensors: convert it with .to(), for example to torch.float32"
    return None


def _staged(tensor: torch.Tensor, torch: Any) -> torch.Tensor:
    """A copy in the CPU's memory: pinned for CUDA, which the device writes at once and torch keeps for the next one.
    Returns when the elements are there.
    """
    staging: torch.Tensor = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.device.type == "cuda")
    return staging.copy_(tensor)


def _share_with_torch(tensor: Tensor, torch: Any) -> torch.Tensor:
    name = tensor.dtype.name.lower()
    dtype = getattr(torch, name, None)
    if dtype is None:
        raise TypeError(f"this torch has no {name}: read the tensor with .numpy()")
    if not tensor.nbytes:
        return torch.empty(tensor.shape, dtype=dtype)
    elements = _Lent(tensor.data)
    if elements.address % min(ITEMSIZE[tensor.dtype], 8):
        elements = _Lent(memoryview(bytes(tensor.data)))
    shared: torch.Tensor = torch.from_numpy(np.asarray(elements)).view(dtype).reshape(tensor.shape)
    return shared


class _Lent:
    """Memory as torch wants to see it. Torch has no read-only tensors and warns of memory that is, once and at no good
    moment; the docstring of `Tensor.torch` says the same. It lives as long as the torch tensor.
    """

    def __init__(self, data: memoryview) -> None:
        self.owner = data
        self.address: int = np.frombuffer(data, np.uint8).__array_interface__["data"][0]
        self.__array_interface__ = {
            "version": 3,
            "typestr": "|u1",
            "shape": (data.nbytes,),
            "data": (self.address, False),
        }


def bits(tensor: Tensor) -> NDArray[Any]:
    """A read-only view of the elements' bits as unsigned integers, for dtypes of one or two bytes."""
    return np.frombuffer(tensor.data, dtype=_BITS[ITEMSIZE[tensor.dtype]]).reshape(tensor.shape)


def numpy_dtype(dtype: DType) -> np.dtype[Any]:
    """numpy's own dtype, or that of ml_dtypes. Raises TypeError where it is needed and missing."""
    name = dtype.name.lower()
    if dtype not in EXTENDED:
        return np.dtype(name).newbyteorder("<")
    try:
        import ml_dtypes  # optional: only these dtypes need it

        extended: np.dtype[Any] = np.dtype(getattr(ml_dtypes, name))
    except (ImportError, AttributeError):
        raise TypeError(f"numpy has no {name}: `pip install -U ml_dtypes`, or read the tensor with .torch()") from None
    return extended


class _DLTensor(ctypes.Structure):
    """Source: https://github.com/dmlc/dlpack/blob/v1.1/include/dlpack/dlpack.h, as is `_Versioned`."""

    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device_type", ctypes.c_int32),
        ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32),
        ("code", ctypes.c_uint8),
        ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16),
    )


class _Versioned(ctypes.Structure):
    _fields_ = (
        ("major", ctypes.c_uint32),
        ("minor", ctypes.c_uint32),
        ("context", ctypes.c_void_p),
        ("deleter", ctypes.c_void_p),
        ("flags", ctypes.c_uint64),
        ("tensor", _DLTensor),
    )


_capsule_pointer: Final = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.py_object, ctypes.c_char_p)(
    ("PyCapsule_GetPointer", ctypes.pythonapi)
)


def _name_type(capsule: Any, code: int) -> None:
    """Say in a DLPack capsule of plain bits, which numpy made, what the bits are: numpy has no name for it."""
    if "dltensor_versioned" in repr(capsule):
        versioned = _Versioned.from_address(_capsule_pointer(capsule, b"dltensor_versioned"))
        versioned.minor = max(versioned.minor, 1)
        versioned.tensor.code = code
    else:
        _DLTensor.from_address(_capsule_pointer(capsule, b"dltensor")).code = code
