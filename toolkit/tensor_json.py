"""Proto JSON with tensors in it: what a person writes becomes a message, a message becomes what a person can read.

Source of proto JSON: https://protobuf.dev/programming-guides/json/
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterator, Mapping
from operator import index
from typing import Any, Final

import numpy as np
from google.protobuf import json_format, message_factory
from google.protobuf.descriptor import Descriptor, FieldDescriptor

from toolkit.array_files import read_array
from toolkit.errors import ToolkitError, UsageError
from toolkit.tensor import DType, Tensor, dtype_of, numpy_dtype

TENSOR: Final = "toolkit.v1.Tensor"
MAX_BYTES: Final = 256 << 20
"""Of one array that a request may name."""
Path = tuple[str, ...]
"""Where a tensor is in a message: names of fields, places in lists, keys of maps."""


def parse(descriptor: Descriptor, item: Any) -> Any:
    """A protobuf message from its JSON, in which a tensor is any of

    - `"@FILE"`, an array file as `read_array` takes it;
    - numbers in nested lists, which become bool, int64 or, where any has a point or an exponent, float32;
    - an object of `dtype`, `shape` and `data`: with base64, proto JSON; with a file or with lists, whose shape and dtype
      may then be left out or must be right.

    Raises UsageError naming the field that does not fit.
    """
    found: list[Tensor] = []
    plain = _without_tensors(descriptor, item, (), found)
    message = message_factory.GetMessageClass(descriptor)()
    try:
        json_format.ParseDict(plain, message, descriptor_pool=descriptor.file.pool)
    except json_format.ParseError as error:
        raise UsageError(f"the JSON is not a {descriptor.name}: {' '.join(str(error).split())}") from None
    for _, pb in find_tensors(message):
        tensor = found[pb.shape.pop()]
        pb.dtype, pb.data = int(tensor.dtype), bytes(tensor.data)
        pb.shape.extend(tensor.shape)
    return message


def shown(message: Any, files: Mapping[Path, str] | None = None) -> dict[str, Any]:
    """A message as JSON for people: field names as in the .proto, unset fields too, tensors by dtype and shape, and as
    `"data": "@FILE"` those in `files`.
    """
    found: dict[str, Any] = json_format.MessageToDict(
        _without_elements(message),
        preserving_proto_field_name=True,
        always_print_fields_with_no_presence=True,
        descriptor_pool=message.DESCRIPTOR.file.pool,
    )
    return _with_shapes(message.DESCRIPTOR, found, (), files or {})  # type: ignore[no-any-return]  # an object stays one


def find_tensors(message: Any, path: Path = ()) -> Iterator[tuple[Path, Any]]:
    """Every tensor in a protobuf message, and where it is."""
    if message.DESCRIPTOR.full_name == TENSOR:
        yield path, message
        return
    for field, value in message.ListFields():
        if field.message_type is None or field.is_extension:
            continue
        here = (*path, field.name)
        if _map_value(field) is not None:
            for key, item in value.items():
                yield from find_tensors(item, (*here, _json_key(key)))
        elif _is_map(field):
            continue
        elif field.is_repeated:
            for place, item in enumerate(value):
                yield from find_tensors(item, (*here, str(place)))
        else:
            yield from find_tensors(value, here)


def tensor_of(pb: Any) -> Tensor:
    """Raises ValueError where it is none: it came from outside."""
    return Tensor(pb.dtype, tuple(pb.shape), pb.data)


# From JSON


def _without_tensors(descriptor: Descriptor, item: Any, path: Path, found: list[Tensor]) -> Any:
    """The JSON with each tensor replaced by one that says only, as its shape, which of `found` it is."""
    if descriptor.full_name == TENSOR and item is not None:
        found.append(_read_tensor(item, path))
        return {"shape": [len(found) - 1]}
    if not isinstance(item, dict) or _is_well_known(descriptor):
        return item
    fields = {name: field for field in descriptor.fields for name in (field.name, field.json_name)}
    return {
        key: _field_without_tensors(fields[key], value, (*path, key), found) if key in fields else value
        for key, value in item.items()
    }


def _field_without_tensors(field: FieldDescriptor, value: Any, path: Path, found: list[Tensor]) -> Any:
    kind = _map_value(field) if _is_map(field) else field.message_type
    if kind is None:
        return value
    if not field.is_repeated:
        return _without_tensors(kind, value, path, found)
    if _is_map(field) and isinstance(value, dict):
        return {key: _without_tensors(kind, item, (*path, key), found) for key, item in value.items()}
    if not _is_map(field) and isinstance(value, list):
        return [_without_tensors(kind, item, (*path, str(place)), found) for place, item in enumerate(value)]
    return value  # protobuf says what is wrong with it


def _read_tensor(item: Any, path: Path) -> Tensor:
    try:
        if isinstance(item, dict):
            return _of_object(item)
        return _of_data(item, None, None)
    except (ToolkitError, TypeError, ValueError) as error:
        raise UsageError(f"{'.'.join(path) or 'the request'}: {error}") from None


def _of_object(item: dict[str, Any]) -> Tensor:
    unknown = item.keys() - {"dtype", "shape", "data", "padding"}
    if unknown:
        raise ValueError(f"a tensor has no {', '.join(sorted(unknown))}; it has dtype, shape and data")
    dtype = None if item.get("dtype") is None else _named_dtype(item["dtype"])
    shape = None if item.get("shape") is None else _listed_shape(item["shape"])
    return _of_data(item.get("data"), dtype, shape)


def _of_data(data: Any, dtype: DType | None, shape: tuple[int, ...] | None) -> Tensor:
    if isinstance(data, str) and data.startswith("@"):
        tensor = read_array(data[1:], limit=MAX_BYTES, dtype=dtype)
    elif isinstance(data, bool | int | float | list):
        tensor = _of_numbers(data, dtype)
    elif dtype is not None and (data is None or isinstance(data, str)):
        return Tensor(dtype, shape or (), _from_base64(data or ""))
    else:
        raise ValueError(
            'a tensor is "@FILE", numbers in nested lists, or {"dtype": "float32", "shape": [2], "data": …}'
        )
    if shape is None or shape == tensor.shape:
        return tensor
    if tensor.ndim != 1:
        raise ValueError(f"the data has the shape {list(tensor.shape)}, not {list(shape)}")
    return Tensor(tensor.dtype, shape, tensor.data)


def _named_dtype(value: Any) -> DType:
    """From `float32`, `FLOAT32` or, as in proto JSON, the number."""
    dtype = dtype_of(value) if isinstance(value, str) else None
    if isinstance(value, int) and value in set(DType):
        dtype = DType(value)
    if not dtype:
        raise ValueError(f"no dtype is called {value!r}; there are {', '.join(d.name.lower() for d in DType if d)}")
    return dtype


def _listed_shape(value: Any) -> tuple[int, ...]:
    """From a list of integers, or as in proto JSON of strings."""
    try:
        if isinstance(value, list):
            return tuple(int(axis) if isinstance(axis, str) else index(axis) for axis in value)
    except (TypeError, ValueError):
        pass
    raise ValueError(f"a shape is a list of integers, not {value!r}")


def _from_base64(text: str) -> bytes:
    """Standard or for URLs, padded or not, as proto JSON has it."""
    try:
        return base64.b64decode(text.translate(_URL_SAFE) + "=" * (-len(text) % 4), validate=True)
    except (binascii.Error, ValueError) as error:
        raise ValueError(f"the data is not base64 ({error}), and not @FILE either") from None


_URL_SAFE: Final = str.maketrans("-_", "+/")


def _of_numbers(data: Any, dtype: DType | None) -> Tensor:
    raw = np.asarray(Tensor.of(data))
    if dtype is None:
        dtype = DType.FLOAT32 if raw.dtype.kind == "f" else Tensor.of(raw).dtype
    if dtype in (DType.COMPLEX64, DType.COMPLEX128):
        raise ValueError("JSON has no complex numbers: send them from a file")
    with np.errstate(all="ignore"):
        array = raw.astype(numpy_dtype(dtype))
        exact = dtype == DType.BOOL or array.dtype.kind in "iu"
        wrong = (array != raw) if exact else np.isfinite(raw) & ~np.isfinite(array.astype(np.float64))
    if wrong.any():
        raise ValueError(f"{raw[wrong][0]} does not fit {dtype.name.lower()}")
    return Tensor.of(array)


# To JSON


def _without_elements(message: Any) -> Any:
    copy = type(message)()
    copy.CopyFrom(message)
    for _, pb in find_tensors(copy):
        pb.ClearField("data")
        pb.ClearField("padding")
    return copy


def _with_shapes(descriptor: Descriptor, value: Any, path: Path, files: Mapping[Path, str]) -> Any:
    """Rewrite each tensor in a message's JSON as {"dtype": "float32", "shape": [2, 3]}."""
    if descriptor.full_name == TENSOR:
        tensor = {"dtype": str(value["dtype"]).lower(), "shape": [int(axis) for axis in value.get("shape", ())]}
        return {**tensor, "data": f"@{files[path]}"} if path in files else tensor
    if _is_well_known(descriptor):
        return value
    for field in descriptor.fields:
        kind = _map_value(field) if _is_map(field) else field.message_type
        if kind is None or value.get(field.name) is None:
            continue
        item, here = value[field.name], (*path, field.name)
        if _is_map(field):
            value[field.name] = {key: _with_shapes(kind, each, (*here, key), files) for key, each in item.items()}
        elif field.is_repeated:
            value[field.name] = [_with_shapes(kind, each, (*here, str(n)), files) for n, each in enumerate(item)]
        else:
            value[field.name] = _with_shapes(kind, item, here, files)
    return value


def _is_well_known(descriptor: Descriptor) -> bool:
    """Those have a JSON of their own."""
    return descriptor.full_name.startswith("google.protobuf.")


def _is_map(field: FieldDescriptor) -> bool:
    return field.message_type is not None and bool(field.message_type.GetOptions().map_entry)


def _map_value(field: FieldDescriptor) -> Descriptor | None:
    """The message type that a map holds; None for a map of scalars, and for what is no map."""
    if not _is_map(field) or field.message_type is None:
        return None
    return field.message_type.fields_by_name["value"].message_type


def _json_key(key: Any) -> str:
    return str(key).lower() if isinstance(key, bool) else str(key)
