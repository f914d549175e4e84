"""`Tensor`: what a tensor field holds. A dtype, a shape, and the bytes of the elements, shared rather than copied.

The wire format is specified in protos/toolkit/v1/tensor.proto. This module never imports torch by itself.
"""

from __future__ import annotations

import sys
import warnings
from functools import cache
from math import prod
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


_ITEMSIZE: Final[dict[int, int]] = {
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
}
_EXTENDED: Final = frozenset(d for d in DType if d.name.startswith(("BFLOAT", "FLOAT8")))
"""Kinds that numpy knows only with ml_dtypes installed."""


class Tensor:
    """An immutable n-dimensional array of numbers, in C order, little-endian.

    Make one with `Tensor.of(array)`. Read it with `.numpy()` (a read-only view), `.torch()`, `numpy.asarray(tensor)` or
    `torch.from_dlpack(tensor)`; `.copy()` gives a writable array. Nothing is copied on the way in when the array is
    contiguous already: do not change it until the call has returned.

    Raises ValueError for a rank above 32, a negative axis, an unknown dtype, or data whose length is not exactly
    product(shape) times the size of an element.
    """

    __slots__ = ("_data", "dtype", "shape")
    dtype: DType
    shape: tuple[int, ...]

    def __init__(self, dtype: DType, shape: tuple[int, ...], data: bytes | memoryview) -> None:
        itemsize = _ITEMSIZE.get(dtype)
        if itemsize is None:
            raise ValueError(f"tensor of unknown dtype {int(dtype)}")
        if len(shape) > MAX_RANK:
            raise ValueError(f"tensor of rank {len(shape)}; at most {MAX_RANK}")
        if shape and min(shape) < 0:
            raise ValueError(f"tensor with a negative axis: shape {shape}")
        view = memoryview(data).toreadonly()
        if view.format != "B" or view.ndim != 1:
            view = view.cast("B")
        if prod(shape) * itemsize != view.nbytes:
            raise ValueError(
                f"tensor of shape {shape} and dtype {dtype.name} takes {prod(shape) * itemsize} bytes, not {view.nbytes}"
            )
        self.dtype = dtype
        self.shape = shape
        self._data = view

    @classmethod
    def of(cls, array: Any) -> Tensor:
        """A tensor over a numpy array, a torch tensor, anything with `__array__` or `__dlpack__`, or nested lists of numbers.

        A contiguous array in memory is shared, anything else is copied once. Raises TypeError for strings and objects.
        """
        if isinstance(array, Tensor):
            return array
        torch = sys.modules.get("torch")
        if torch is not None and isinstance(array, torch.Tensor):
            return _of_torch(array, torch)
        if not isinstance(array, np.ndarray | np.generic) and not hasattr(array, "__array__"):
            array = np.from_dlpack(array) if hasattr(array, "__dlpack__") else np.asarray(array)
        return _of_numpy(np.asarray(array, order="C"))

    @property
    def data(self) -> memoryview:
        """The elements' bytes, read-only."""
        return self._data

    @property
    def nbytes(self) -> int:
        return self._data.nbytes

    @property
    def ndim(self) -> int:
        return len(self.shape)

    def numpy(self) -> NDArray[Any]:
        """A read-only view of the elements, of this shape. bfloat16 and float8 need the package ml_dtypes."""
        return np.frombuffer(self._data, dtype=_numpy_dtype(self.dtype)).reshape(self.shape)

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

    def __dlpack__(self, **options: Any) -> Any:
        if self.dtype in _EXTENDED:
            return self.torch().__dlpack__(**options)
        return self.numpy().__dlpack__(**options)

    def __dlpack_device__(self) -> tuple[int, int]:
        return 1, 0  # kDLCPU

    def __eq__(self, other: object) -> bool:
        """Same dtype, same shape, same bytes."""
        if not isinstance(other, Tensor):
            return NotImplemented
        return (
            self.dtype == other.dtype
            and self.shape == other.shape
            and bool(np.array_equal(np.frombuffer(self._data, np.uint8), np.frombuffer(other._data, np.uint8)))
        )

    __hash__ = None  # type: ignore[assignment]  # equal by content, and content may be large

    def __repr__(self) -> str:
        return f"Tensor({self.dtype.name.lower()}, {list(self.shape)})"


def _of_numpy(array: NDArray[Any]) -> Tensor:
    dtype = DType.__members__.get(array.dtype.name.upper())
    if dtype is None or dtype not in _ITEMSIZE:
        raise TypeError(
            f"numpy dtype {array.dtype} is not a tensor of numbers; strings and objects go into other fields"
        )
    if array.dtype.byteorder == ">" or (array.dtype.byteorder == "=" and sys.byteorder == "big"):
        array = array.astype(array.dtype.newbyteorder("<"))
    return Tensor(dtype, array.shape, array.reshape(-1).view(np.uint8).data)


def _of_torch(tensor: torch.Tensor, torch: Any) -> Tensor:
    dtype = DType.__members__.get(str(tensor.dtype).removeprefix("torch.").upper())
    if dtype is None or tensor.layout != torch.strided:
        raise TypeError(f"torch tensor of {tensor.dtype}, {tensor.layout}: only dense tensors of plain numbers travel")
    plain = tensor.detach().resolve_conj().resolve_neg().contiguous()
    if plain.device.type != "cpu":
        staging = torch.empty(plain.shape, dtype=plain.dtype, pin_memory=plain.device.type == "cuda")
        plain = staging.copy_(plain)
    return Tensor(dtype, tuple(plain.shape), plain.reshape(-1).view(torch.uint8).numpy().data)


def _share_with_torch(tensor: Tensor, torch: Any) -> torch.Tensor:
    dtype = getattr(torch, tensor.dtype.name.lower())
    if not tensor.nbytes:
        return torch.empty(tensor.shape, dtype=dtype)
    _hear_torch_out()
    shared: torch.Tensor = torch.frombuffer(tensor.data, dtype=dtype).reshape(tensor.shape)
    return shared


@cache
def _hear_torch_out() -> None:
    """Torch warns once in a process that a shared buffer must not be written; our docstring says so too."""
    import torch  # an optional heavy library, which the caller has asked for

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        torch.frombuffer(b"\0", dtype=torch.uint8)


def _numpy_dtype(dtype: DType) -> np.dtype[Any]:
    name = dtype.name.lower()
    if dtype not in _EXTENDED:
        return np.dtype(name).newbyteorder("<")
    try:
        import ml_dtypes  # optional: only these dtypes need it
    except ImportError:
        raise TypeError(f"numpy has no {name}: pip install ml_dtypes, or read the tensor with .torch()") from None
    extended: np.dtype[Any] = np.dtype(getattr(ml_dtypes, name))
    return extended
