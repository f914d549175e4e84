"""protos/toolkit/v1/tensor.proto specifies tensors completely: its table and examples hold, and what is written here from
that text alone, and what protoc makes of the file, understand our messages and are understood.
"""

from __future__ import annotations

import importlib
import re
import struct
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from google.protobuf import descriptor_pool
from grpc_tools import protoc
from hypothesis import given, settings
from hypothesis import strategies as st

from services.echo.v1.echo_toolkit import Image
from toolkit.codec import DecodeError, decode, encode
from toolkit.tensor import DType, Tensor

PROTOS = Path(__file__).parents[1] / "protos"
SPEC = (PROTOS / "toolkit/v1/tensor.proto").read_text()


# What the text says


def table() -> Iterator[tuple[str, int, int]]:
    """Name, number and bytes of an element."""
    for name, number, size in re.findall(r"^  (\w+) = (\d+); +// (\d+) bytes?\b", SPEC, re.MULTILINE):
        yield name, int(number), int(size)


def examples() -> Iterator[tuple[str, bytes]]:
    """Words and bytes; `00*200` is a byte that occurs two hundred times."""
    text = SPEC.split("Examples, in hexadecimal:\n")[1].split("message Tensor")[0]
    for words, written in re.findall(r"^// {3}(.+?) {2,}([0-9a-f* ]+)$", text, re.MULTILINE):
        pieces = [piece.partition("*") for piece in written.split()]
        yield words, b"".join(bytes.fromhex(byte) * int(times or 1) for byte, _, times in pieces)


MEANT = {
    "FLOAT32, shape [2], 1.0 and 2.0": Tensor.of(np.array([1, 2], np.float32)),
    "INT64, a scalar, -2": Tensor.of(np.int64(-2)),
    "UINT16, shape [2, 1], 1 and 258": Tensor.of(np.array([[1], [258]], np.uint16)),
    "COMPLEX64, a scalar, 1.0 - 2.0i": Tensor.of(np.complex64(1 - 2j)),
    "BFLOAT16, shape [1, 2], 1.0 and -2.0": Tensor(DType.BFLOAT16, (1, 2), b"\x80\x3f\x00\xc0"),
    "BOOL, shape [0, 3], no elements": Tensor.of(np.empty((0, 3), bool)),
    "INT8, shape [200], two hundred 0s": Tensor.of(np.zeros(200, np.int8)),
}


def test_the_table_is_ours() -> None:
    assert {(name, number) for name, number, _ in table()} == {(d.name, d.value) for d in DType if d}
    for _, number, size in table():
        assert Tensor(DType(number), (), bytes(size)).nbytes == size


def test_the_file_that_protobuf_knows_is_ours_too() -> None:
    enum = descriptor_pool.Default().FindEnumTypeByName("toolkit.v1.DType")
    assert {value.name: value.number for value in enum.values} == {dtype.name: dtype.value for dtype in DType}


def test_the_examples_hold_in_both_directions() -> None:
    assert dict(examples()).keys() == MEANT.keys()
    for words, message in examples():
        assert encode(MEANT[words]) == message
        assert decode(Tensor, message) == MEANT[words]


# A second implementation, from the text alone: nothing of the toolkit's, of protobuf's or of numpy's

SIZES = {number: size for _, number, size in table()}
BOOL = 1


class RefusedError(Exception):
    pass


@dataclass
class Read:
    dtype: int = 0
    shape: tuple[int, ...] = ()
    data: bytes = b""


def write_varint(value: int) -> bytes:
    value &= (1 << 64) - 1
    low = value & 127
    return bytes([low | 128]) + write_varint(value >> 7) if value > 127 else bytes([low])


def read_varint(message: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while message[at] & 128:
        value |= (message[at] & 127) << shift
        shift, at = shift + 7, at + 1
    return value | message[at] << shift, at + 1


def signed(value: int) -> int:
    return int(struct.unpack("<q", struct.pack("<Q", value))[0])


def write(dtype: int, shape: tuple[int, ...], data: bytes, start: int = 0) -> bytes:
    """`start` is where the message begins in the outermost one."""
    lengths = b"".join(map(write_varint, shape))
    head = b"\x08" + write_varint(dtype)
    if shape:
        head += b"\x12" + write_varint(len(lengths)) + lengths
    if not data:
        return head
    tail = b"\x7a" + write_varint(len(data))
    gap = -(start + len(head) + len(tail)) % 16
    if len(data) >= 4096 and gap:
        content = gap - 2 if gap > 1 else gap + 14
        head += b"\x72" + bytes([content]) + bytes(content)
    return head + tail + data


def read(message: bytes) -> Read:
    found = Read()
    at = 0
    while at < len(message):
        key, at = read_varint(message, at)
        number, kind = key >> 3, key & 7
        if kind == 0:
            value, at = read_varint(message, at)
            content = b""
        else:
            length, at = read_varint(message, at) if kind == 2 else ({1: 8, 5: 4}[kind], at)
            content, at = message[at : at + length], at + length
        if number == 1:
            found.dtype = value
        elif number == 2 and kind == 0:
            found.shape += (signed(value),)
        elif number == 2:
            position = 0
            while position < len(content):
                axis, position = read_varint(content, position)
                found.shape += (signed(axis),)
        elif number == 15:
            found.data = content
    return checked(found)


def checked(found: Read) -> Read:
    size = SIZES.get(found.dtype)
    if size is None or len(found.shape) > 32 or any(axis < 0 for axis in found.shape):
        raise RefusedError
    bound = count = size
    for axis in found.shape:
        bound *= axis or 1
        count *= axis
        if bound >= 1 << 63:
            raise RefusedError
    if len(found.data) != count or (found.dtype == BOOL and max(found.data, default=0) > 1):
        raise RefusedError
    return found


@st.composite
def tensors(draw: st.DrawFn) -> tuple[int, tuple[int, ...], bytes]:
    dtype = draw(st.sampled_from(sorted(SIZES)))
    shape = tuple(draw(st.lists(st.integers(0, 4), max_size=5)))
    size = SIZES[dtype] * int(np.prod(shape, dtype=int))
    if draw(st.integers(0, 3)) == 0:
        shape, size = (*shape, 0, draw(st.integers(0, 1 << 32))), 0
    data = draw(st.binary(min_size=size, max_size=size))
    return dtype, shape, bytes(byte & 1 for byte in data) if dtype == BOOL else data


@settings(max_examples=200, deadline=None)
@given(tensors())
def test_what_we_write_the_second_implementation_reads(tensor: tuple[int, tuple[int, ...], bytes]) -> None:
    dtype, shape, data = tensor
    message = encode(Tensor(DType(dtype), shape, data))
    assert read(message) == Read(dtype, shape, data)
    assert message == write(dtype, shape, data)


@pytest.mark.parametrize("size", [4088, 4096, 65536])
@pytest.mark.parametrize("axes", range(1, 20))
def test_both_pad_alike(size: int, axes: int) -> None:
    shape = (1,) * (axes - 1) + (size,)
    assert encode(Tensor(DType.UINT8, shape, bytes(size))) == write(DType.UINT8, shape, bytes(size))


@pytest.mark.parametrize("caption", range(20))
def test_both_pad_alike_within_a_message(caption: int) -> None:
    """A message that starts elsewhere: Image has `pixels` as field 1 and `caption`, written before it here, as field 2."""
    message = encode(Image(pixels=Tensor(DType.UINT8, (5000,), bytes(5000)), caption="c" * caption))
    at = message.index(b"\x08\x06\x12\x02\x88\x27")
    assert message[at:] == write(DType.UINT8, (5000,), bytes(5000), at)
    assert (len(message) - 5000) % 16 == 0


@st.composite
def foreign_messages(draw: st.DrawFn) -> bytes:
    """As another encoder might write them, or an attacker: any order, fields again, packed or not, unknown ones, and
    often something wrong.
    """
    dtype, shape, data = draw(tensors())
    fields = [b"\x08" + write_varint(dtype), b"\x7a" + write_varint(len(data)) + data]
    cut = draw(st.integers(0, len(shape)))
    for part in (shape[:cut], shape[cut:]):
        if draw(st.booleans()):
            lengths = b"".join(map(write_varint, part))
            fields.append(b"\x12" + write_varint(len(lengths)) + lengths)
        else:
            fields.append(b"".join(b"\x10" + write_varint(axis) for axis in part))
    number = st.one_of(st.integers(3, 13), st.integers(16, 1 << 29 - 1))
    odd = draw(
        st.lists(
            st.one_of(
                st.integers(0, 30).map(lambda n: b"\x08" + write_varint(n)),
                st.integers(-3, 3).map(lambda n: b"\x10" + write_varint(n)),
                st.sampled_from([1 << 31, 1 << 62, (1 << 63) - 1]).map(lambda n: b"\x10" + write_varint(n)),
                st.binary(max_size=20).map(lambda b: b"\x72" + bytes([len(b)]) + b),
                st.binary(max_size=8).map(lambda b: b"\x7a" + bytes([len(b)]) + b),
                st.tuples(number, st.integers(0, 1 << 63)).map(lambda t: write_varint(t[0] << 3) + write_varint(t[1])),
                st.tuples(number, st.binary(max_size=9)).map(
                    lambda t: write_varint(t[0] << 3 | 2) + bytes([len(t[1])]) + t[1]
                ),
                number.map(lambda n: write_varint(n << 3 | 1) + bytes(8)),
                number.map(lambda n: write_varint(n << 3 | 5) + bytes(4)),
            ),
            max_size=draw(st.integers(0, 3)),
        )
    )
    return b"".join(draw(st.permutations(fields + odd)))


@settings(max_examples=500, deadline=None)
@given(foreign_messages())
def test_what_others_write_both_read_alike_or_both_refuse(message: bytes) -> None:
    try:
        expected = read(message)
    except RefusedError:
        with pytest.raises(DecodeError):
            decode(Tensor, message)
        with pytest.raises(DecodeError):
            decode(Image, b"\x0a" + write_varint(len(message)) + message)
        return
    tensor = decode(Tensor, message)
    assert Read(tensor.dtype, tensor.shape, bytes(tensor.data)) == expected
    assert decode(Image, b"\x0a" + write_varint(len(message)) + message).pixels == tensor
    assert tensor.numpy().shape == tensor.shape


def test_an_empty_message_is_no_tensor() -> None:
    for dtype, message in ((0, b""), (99, b"\x08\x63"), (-1, b"\x08" + write_varint(-1))):
        with pytest.raises(DecodeError, match=f"unknown dtype {dtype}"):
            decode(Tensor, message)


# What protoc makes of the file


@pytest.fixture(scope="module")
def frame(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """protoc's class for a message of the same fields as Image."""
    out = tmp_path_factory.mktemp("pb2")
    files = ["toolkit/v1/tensor.proto", "golden/tensors/v1/tensors.proto"]
    roots = (PROTOS, Path(__file__).parent / "golden/protos")
    assert protoc.main(["", *(f"-I{root}" for root in roots), f"--python_out={out}", *files]) == 0
    for path in list(out.rglob("*_pb2.py")):  # in the packages that they name they would hide ours
        (out / path.name).write_text(path.read_text().replace("from toolkit.v1 import", "import"))
    sys.path.insert(0, str(out))
    yield importlib.import_module("tensors_pb2").Frame
    sys.path.remove(str(out))


@settings(max_examples=200, deadline=None)
@given(tensors())
def test_protobufs_own_classes_write_and_read_the_same(frame: Any, tensor: tuple[int, tuple[int, ...], bytes]) -> None:
    dtype, shape, data = tensor
    theirs = frame(pixels={"dtype": dtype, "shape": shape, "data": data}, caption="cat")
    ours = Image(pixels=Tensor(DType(dtype), shape, data), caption="cat")
    assert decode(Image, theirs.SerializeToString()) == ours
    again = frame.FromString(encode(ours))
    again.pixels.ClearField("padding")  # which large payloads have, for their alignment
    assert again == theirs


def test_protobufs_own_classes_read_what_is_padded(frame: Any) -> None:
    ours = Image(pixels=Tensor.of(np.arange(5000, dtype=np.int16)), caption="cat")
    theirs = frame.FromString(encode(ours))
    assert theirs.pixels.data == np.arange(5000, dtype="<i2").tobytes()
    assert theirs.pixels.shape == [5000]
    assert decode(Image, theirs.SerializeToString()) == ours


@settings(max_examples=300, deadline=None)
@given(foreign_messages())
def test_protobufs_own_classes_read_what_others_write_as_we_do(frame: Any, message: bytes) -> None:
    theirs = frame.FromString(b"\x0a" + write_varint(len(message)) + message).pixels
    try:
        tensor = decode(Tensor, message)
    except DecodeError:
        with pytest.raises(RefusedError):
            checked(Read(theirs.dtype, tuple(theirs.shape), theirs.data))
    else:
        assert (tensor.dtype, tensor.shape, bytes(tensor.data)) == (theirs.dtype, tuple(theirs.shape), theirs.data)
