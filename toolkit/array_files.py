"""Arrays in files: .npy, .safetensors, .png and .jpeg are read, .npy is written. No pickle, ever."""

from __future__ import annotations

import hashlib
import os
import re
import struct
import warnings
from collections.abc import Callable, Mapping
from math import prod
from pathlib import Path
from tokenize import TokenError
from typing import Any, Final
from urllib.parse import quote

import numpy as np
from numpy.lib.format import open_memmap
from numpy.lib.format import write_array as write_npy
from numpy.typing import NDArray

from toolkit.errors import ToolkitError
from toolkit.tensor import EXTENDED, ITEMSIZE, DType, Tensor, bits

MAX_NAME: Final = 200
"""Characters of a file's name; file systems take 255 bytes."""
_SAFETENSORS: Final = {
    "BOOL": DType.BOOL,
    "I8": DType.INT8,
    "I16": DType.INT16,
    "I32": DType.INT32,
    "I64": DType.INT64,
    "U8": DType.UINT8,
    "U16": DType.UINT16,
    "U32": DType.UINT32,
    "U64": DType.UINT64,
    "F16": DType.FLOAT16,
    "F32": DType.FLOAT32,
    "F64": DType.FLOAT64,
    "BF16": DType.BFLOAT16,
    "C64": DType.COMPLEX64,
    "F8_E4M3": DType.FLOAT8_E4M3FN,
    "F8_E5M2": DType.FLOAT8_E5M2,
    "F8_E4M3FNUZ": DType.FLOAT8_E4M3FNUZ,
    "F8_E5M2FNUZ": DType.FLOAT8_E5M2FNUZ,
    "F8_E8M0": DType.FLOAT8_E8M0FNU,
}


def read_array(reference: str, *, limit: int, dtype: DType | None = None) -> Tensor:
    """The array in a file: `cat.npy`, `cat.png`, or `weights.safetensors#name`, of which the name may be left out where
    there is only one. Images are uint8 of shape [height, width, channels]: 1 channel where the file is grey, 4 where it is
    transparent, else 3; upright, as its EXIF orientation says.

    With `dtype`, the file must hold that one; bfloat16 and float8 may be there as their bits, which is how `ArrayFolder`
    writes them. Raises ToolkitError naming the file, and for an array of more than `limit` bytes.
    """
    found = re.fullmatch(r"(.*\.safetensors)(?:#(.*))?", reference, re.IGNORECASE | re.DOTALL)
    path = Path(found[1] if found else reference).expanduser()
    read = _READERS.get(path.suffix.lower())
    if read is None:
        raise ToolkitError(f"{path}: not an array file; these are: {', '.join(_READERS)}")
    try:
        if not path.is_file():
            raise ToolkitError(f"{path}: {'not a file' if path.exists() else 'no such file'}")
        tensor = read(path, limit, found[2] if found else dtype)
    except OSError as error:
        raise ToolkitError(f"{path}: {error.strerror or error}") from None
    except (TypeError, ValueError) as error:
        raise ToolkitError(f"{path}: {error}") from None
    if dtype is not None and tensor.dtype != dtype:
        raise ToolkitError(f"{path}: holds {tensor.dtype.name.lower()}, not {dtype.name.lower()}")
    return tensor


class ArrayFolder:
    """A folder that arrays are saved to. Files in it are replaced; nothing outside it is touched.

    `say` gets a line for each file.
    """

    def __init__(self, path: Path, say: Callable[[str], None]) -> None:
        self.path = path
        self._say = say

    def make(self) -> None:
        """Make the folder, and make sure that it can be written to. Raises ToolkitError."""
        trial = self.path / f".{os.getpid()}.part"
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            trial.touch()
            trial.unlink()
        except OSError as error:
            raise ToolkitError(f"cannot save to {self.path}: {error.strerror or error}") from None

    def save(self, name: tuple[str, ...], tensor: Tensor) -> str:
        """Write the array to `<name joined by dots>.npy`, and return the file's path. bfloat16 and float8, which .npy
        cannot name, are written as their bits, uint16 or uint8.
        """
        path = self.path / f"{_file_name(name)}.npy"
        part = self.path / f".{os.getpid()}.part"
        array = bits(tensor) if tensor.dtype in EXTENDED else tensor.numpy()
        try:
            part.unlink(missing_ok=True)
            with part.open("xb") as file:
                write_npy(file, array, allow_pickle=False)
            part.replace(path)
        except OSError as error:
            part.unlink(missing_ok=True)
            raise ToolkitError(f"cannot save to {path}: {error.strerror or error}") from None
        kind = tensor.dtype.name.lower() + (f" as {array.dtype}" if tensor.dtype in EXTENDED else "")
        self._say(f"saved {path}: {kind}, {list(tensor.shape)}")
        return str(path)


def _file_name(name: tuple[str, ...]) -> str:
    """One name for one path, whatever a map's keys hold: letters, digits, `_` and `-` stay, everything else becomes %XX."""
    text = ".".join(quote(part, safe="").replace(".", "%2E").replace("~", "%7E") for part in name)
    if len(text) <= MAX_NAME:
        return text
    return f"{text[: MAX_NAME - 17]}-{hashlib.sha256(text.encode()).hexdigest()[:16]}"


def _check_size(nbytes: int, limit: int) -> None:
    if nbytes > limit:
        raise ValueError(f"an array of {nbytes >> 20} MiB; a call carries at most {limit >> 20} MiB")


def _read_npy(path: Path, limit: int, dtype: DType | None) -> Tensor:
    array = _mapped(path)
    _check_size(array.nbytes, limit)
    if array.dtype.kind == "V" and array.dtype.names is None and array.itemsize in (1, 2):
        if dtype is None:
            raise TypeError('holds a dtype that .npy cannot name: send {"dtype": "bfloat16", "data": "@FILE"}')
        array = array.view(f"<u{array.itemsize}")
    tensor = Tensor.of(array)
    if dtype in EXTENDED and tensor.dtype == (DType.UINT16 if dtype == DType.BFLOAT16 else DType.UINT8):
        return Tensor(dtype, tensor.shape, tensor.data)
    return tensor


def _mapped(path: Path) -> NDArray[Any]:
    try:
        with np.errstate(over="raise"):
            array: NDArray[Any] = open_memmap(path, mode="r")
    except (ValueError, ArithmeticError, SyntaxError, TokenError, TypeError, RecursionError, MemoryError) as error:
        if "Python objects" in str(error):
            raise ValueError(
                "holds Python objects, a pickle, which is never loaded: save an array of numbers"
            ) from None
        raise ValueError(f"not a whole .npy file: {error}") from None
    return array


def _read_safetensors(path: Path, limit: int, name: str | None) -> Tensor:
    try:
        import safetensors  # optional: only these files need it
    except ImportError:
        raise ToolkitError(f"{path}: reading it needs the package safetensors: `pip install safetensors`") from None
    try:
        with safetensors.safe_open(path, framework="np") as file:
            chosen = _chosen(list(file.keys()), name)
            header = file.get_slice(chosen)
            dtype = _SAFETENSORS.get(header.get_dtype())
            if dtype is None:
                raise TypeError(f"{chosen} is of {header.get_dtype()}, which is no dtype of tensors")
            if dtype not in EXTENDED:
                _check_size(prod(header.get_shape()) * ITEMSIZE[dtype], limit)
                return Tensor.of(file.get_tensor(chosen))
            _check_size(path.stat().st_size, limit)  # the package gives the bits of these with the whole file only
            found = dict(safetensors.deserialize(path.read_bytes()))[chosen]  # type: ignore[no-untyped-call]  # theirs
            return Tensor(dtype, tuple(found["shape"]), bytes(found["data"]))
    except safetensors.SafetensorError as error:
        raise ValueError(f"not a whole .safetensors file: {error}") from None


def _chosen(names: list[str], wanted: str | None) -> str:
    if wanted in names:
        return str(wanted)
    if wanted is None and len(names) == 1:
        return names[0]
    what = f"has no tensor {wanted}" if wanted else "holds several tensors" if names else "holds no tensor"
    raise ValueError(f"{what}; pick one with #NAME: {', '.join(sorted(names)[:20])}" if names else what)


def _read_image(path: Path, limit: int, dtype: DType | None) -> Tensor:
    try:
        from PIL import Image, ImageOps  # optional: only these files need it
    except ImportError:
        raise ToolkitError(f"{path}: reading it needs the package Pillow: `pip install pillow`") from None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # our own limit is lower, and checked first
        try:
            with Image.open(path, formats=("PNG", "JPEG")) as image:
                mode = _channels(image)
                _check_size(image.width * image.height * len(mode), limit)
                pixels = np.asarray(ImageOps.exif_transpose(image).convert(mode))
        except (SyntaxError, struct.error, Image.DecompressionBombError) as error:
            raise ValueError(str(error)) from None
    return Tensor.of(pixels if pixels.ndim == 3 else pixels[:, :, None])


def _channels(image: Any) -> str:
    """The mode in which Pillow should give the pixels."""
    if image.mode.startswith(("I", "F")) or ";16" in str(image.tile):
        raise ValueError("has more than 8 bits a channel, which would be lost: save the array as .npy")
    if image.mode in ("1", "L"):
        return "RGBA" if "transparency" in image.info else "L"
    is_transparent = image.mode in ("LA", "PA", "RGBA", "La", "RGBa") or "transparency" in image.info
    return "RGBA" if is_transparent else "RGB"


_READERS: Final[Mapping[str, Callable[[Path, int, Any], Tensor]]] = {
    ".npy": _read_npy,
    ".safetensors": _read_safetensors,
    ".png": _read_image,
    ".jpg": _read_image,
    ".jpeg": _read_image,
}
