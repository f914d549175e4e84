"""Arrays in `toolkit call`: files and numbers in the request, files of the reply, wherever a message can hold a tensor."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import grpc.aio
import ml_dtypes
import numpy as np
import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, json_format, message_factory
from google.protobuf.descriptor import Descriptor
from grpc_reflection.v1alpha import reflection
from grpc_tools import protoc
from hypothesis import given, settings
from hypothesis import strategies as st

from toolkit.array_files import ArrayFolder
from toolkit.call import call, save_arrays
from toolkit.errors import ToolkitError
from toolkit.tensor import EXTENDED, DType, Tensor
from toolkit.tensor_json import find_tensors, parse, shown, tensor_of

ROOT = Path(__file__).parents[1]
PROTO = """
syntax = "proto3";
package files.v1;
import "google/protobuf/struct.proto";
import "toolkit/v1/tensor.proto";

message Holder {
  toolkit.v1.Tensor image = 1;
  repeated toolkit.v1.Tensor images = 2;
  map<string, toolkit.v1.Tensor> named = 3;
  map<int32, Holder> numbered = 4;
  map<bool, toolkit.v1.Tensor> answers = 5;
  Holder inner = 6;
  repeated Holder many = 7;
  oneof mask {
    toolkit.v1.Tensor dense_mask = 8;
    string rle = 9;
  }
  string text = 10;
  bytes blob = 11;
  repeated string texts = 12;
  map<string, string> words = 13;
  google.protobuf.Struct free = 14;
}

service Mirror {
  rpc Unary(Holder) returns (Holder);
  rpc Down(Holder) returns (stream Holder);
  rpc Up(stream Holder) returns (Holder);
  rpc Both(stream Holder) returns (stream Holder);
  rpc Bare(toolkit.v1.Tensor) returns (toolkit.v1.Tensor);
  rpc Wrong(Holder) returns (Holder);
}
"""


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> descriptor_pool.DescriptorPool:
    """Of an outsider: none of its types is known to this process."""
    folder = tmp_path_factory.mktemp("files")
    (folder / "files.proto").write_text(PROTO)
    wkt = Path(protoc.__file__).parent / "_proto"
    out = folder / "out.binpb"
    roots = [f"-I{root}" for root in (folder, ROOT / "protos", wkt)]
    assert protoc.main(["", *roots, f"--descriptor_set_out={out}", "--include_imports", "files.proto"]) == 0
    made = descriptor_pool.DescriptorPool()
    for file in descriptor_pb2.FileDescriptorSet.FromString(out.read_bytes()).file:
        made.Add(file)
    return made


@pytest.fixture(scope="module")
def holder(pool: descriptor_pool.DescriptorPool) -> Descriptor:
    return pool.FindMessageTypeByName("files.v1.Holder")


@pytest.fixture
def cat(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Tensor:
    """In cat.npy of the working directory."""
    monkeypatch.chdir(tmp_path)
    np.save("cat.npy", np.arange(6, dtype=np.uint8).reshape(2, 3))
    np.save("dog.npy", np.zeros(0, np.float16))
    return Tensor.of(np.load("cat.npy"))


DOG = Tensor.of(np.zeros(0, np.float16))


def tensors(message: Any) -> dict[str, Tensor]:
    return {".".join(path): tensor_of(pb) for path, pb in find_tensors(message)}


def one(holder: Descriptor, value: Any) -> Tensor:
    return tensors(parse(holder, {"image": value}))["image"]


def refused(holder: Descriptor, value: Any) -> str:
    with pytest.raises(ToolkitError) as error:
        parse(holder, {"inner": {"image": value}})
    said = str(error.value)
    assert said.startswith("inner.image: ")
    return said.removeprefix("inner.image: ")


# Requests


def test_a_file_wherever_a_tensor_can_be(holder: Descriptor, cat: Tensor) -> None:
    message = parse(
        holder,
        {
            "image": "@cat.npy",
            "images": ["@cat.npy", "@dog.npy", [1]],
            "named": {"a": "@cat.npy", "": "@dog.npy", "a.b": "@dog.npy"},
            "numbered": {"-7": {"image": "@cat.npy"}},
            "answers": {"true": "@cat.npy", "false": "@dog.npy"},
            "inner": {"inner": {"images": ["@cat.npy"]}, "many": [{}, {"image": "@cat.npy"}]},
            "denseMask": "@cat.npy",
        },
    )
    assert tensors(message) == {
        "image": cat,
        "images.0": cat,
        "images.1": DOG,
        "images.2": Tensor.of([1]),
        "named.a": cat,
        "named.": DOG,
        "named.a.b": DOG,
        "numbered.-7.image": cat,
        "answers.true": cat,
        "answers.false": DOG,
        "inner.inner.images.0": cat,
        "inner.many.1.image": cat,
        "dense_mask": cat,
    }
    assert message.WhichOneof("mask") == "dense_mask"


def test_every_other_at_sign_is_text(holder: Descriptor, cat: Tensor) -> None:
    written = {
        "text": "@cat.npy",
        "texts": ["@cat.npy"],
        "words": {"@cat.npy": "@cat.npy"},
        "free": {"image": "@cat.npy", "deep": ["@none.npy"]},
        "rle": "@cat.npy",
    }
    message = parse(holder, written)
    assert {key: value for key, value in shown(message).items() if key in written} == written
    assert tensors(message) == {}


def test_a_map_key_with_an_at_sign_is_a_key(holder: Descriptor, cat: Tensor) -> None:
    assert tensors(parse(holder, {"named": {"@cat.npy": [1]}})) == {"named.@cat.npy": Tensor.of([1])}


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ([1, 2], np.array([1, 2])),
        ([[1], [2]], np.array([[1], [2]])),
        ([1.5, 2], np.array([1.5, 2], np.float32)),
        ([1e3], np.array([1000], np.float32)),
        ([True, False], np.array([True, False])),
        (7, np.array(7)),
        (0.5, np.array(0.5, np.float32)),
        (False, np.array(False)),
        ([], np.empty(0, np.float32)),
        ([[], []], np.empty((2, 0), np.float32)),
        ([float("nan"), float("inf")], np.array([np.nan, np.inf], np.float32)),
        ([1 << 63], np.array([1 << 63], np.uint64)),
        ({"data": [1, 2]}, np.array([1, 2])),
        ({"dtype": "float16", "data": [[1, 2]]}, np.array([[1, 2]], np.float16)),
        ({"dtype": "FLOAT64", "shape": [2, 1], "data": [1, 2.5]}, np.array([[1], [2.5]])),
        ({"dtype": "uint8", "shape": ["2"], "data": [0, 255]}, np.array([0, 255], np.uint8)),
        ({"dtype": "int8", "data": [1.0, -128]}, np.array([1, -128], np.int8)),
        ({"dtype": "bool", "data": [0, 1]}, np.array([False, True])),
        ({"dtype": "float32", "data": [True]}, np.array([1], np.float32)),
        ({"dtype": "int32", "shape": [0, 2], "data": []}, np.empty((0, 2), np.int32)),
        ({"dtype": "bfloat16", "data": [1.5]}, np.array([1.5], ml_dtypes.bfloat16)),
        ({"dtype": "float8_e4m3fn", "data": [[0.1]]}, np.array([[0.1]], ml_dtypes.float8_e4m3fn)),
    ],
)
def test_numbers_in_lists(holder: Descriptor, value: Any, expected: Any) -> None:
    assert one(holder, value) == Tensor.of(expected)


def test_a_repeated_field_takes_a_list_of_tensors(holder: Descriptor) -> None:
    found = tensors(parse(holder, {"images": [[1, 2], [[3]], 4]}))
    assert list(found.values()) == [Tensor.of([1, 2]), Tensor.of([[3]]), Tensor.of(4)]


FLOATS = np.array([[1, 2]], np.float32)
BASE64 = base64.b64encode(FLOATS.tobytes()).decode()


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ({"dtype": "FLOAT32", "shape": ["1", "2"], "data": BASE64}, FLOATS),
        ({"dtype": 11, "shape": [1, 2], "data": BASE64, "padding": "AAAA"}, FLOATS),
        ({"dtype": "UINT8", "shape": ["3"], "data": "-_-_"}, np.array([251, 255, 191], np.uint8)),
        ({"dtype": "UINT8", "shape": [1], "data": "AA"}, np.zeros(1, np.uint8)),
        ({"dtype": "UINT8", "data": "AA=="}, np.uint8(0)),
        ({"dtype": "INT16", "shape": ["0"]}, np.empty(0, np.int16)),
        ({"dtype": "INT16", "shape": ["0"], "data": None}, np.empty(0, np.int16)),
    ],
)
def test_proto_json_still_works(holder: Descriptor, value: Any, expected: Any) -> None:
    assert one(holder, value) == Tensor.of(expected)


def test_null_is_no_tensor(holder: Descriptor) -> None:
    assert tensors(parse(holder, {"image": None, "images": None, "named": None, "inner": None})) == {}


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_what_protobuf_prints_can_be_sent(holder: Descriptor, data: st.DataObject) -> None:
    dtype = data.draw(st.sampled_from([d for d in DType if d and d != DType.BOOL]))
    shape = tuple(data.draw(st.lists(st.integers(0, 3), max_size=3)))
    size = Tensor(dtype, (0,), b"").numpy().itemsize * int(np.prod(shape, dtype=int))
    tensor = Tensor(dtype, shape, data.draw(st.binary(min_size=size, max_size=size)))
    message = message_factory.GetMessageClass(holder)()
    message.named["k"].dtype, message.named["k"].data = int(dtype), bytes(tensor.data)
    message.named["k"].shape.extend(shape)
    printed = json_format.MessageToDict(message, descriptor_pool=holder.file.pool)
    assert parse(holder, printed) == message


def test_a_file_of_bits_takes_a_dtype(holder: Descriptor, cat: Tensor) -> None:
    np.save("bits.npy", np.array([0x3F80], np.uint16))
    assert one(holder, {"dtype": "bfloat16", "data": "@bits.npy"}) == Tensor(DType.BFLOAT16, (1,), b"\x80\x3f")
    assert one(holder, {"dtype": "uint8", "shape": [2, 3], "data": "@cat.npy"}) == cat


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("@none.npy", "none.npy: no such file"),
        ("@", ".: not an array file; these are: .npy, .safetensors, .png, .jpg, .jpeg"),
        ("@cat.pkl", "cat.pkl: not an array file; these are"),
        ("cat.npy", 'a tensor is "@FILE", numbers in nested lists, or {"dtype": "float32", "shape": [2], "data": …}'),
        ({"shape": [1]}, 'a tensor is "@FILE", numbers in nested lists, or'),
        ({"shape": [1], "data": "AA=="}, 'a tensor is "@FILE", numbers in nested lists, or'),
        ({"dtype": "float32", "kind": 1, "type": 2}, "a tensor has no kind, type; it has dtype, shape and data"),
        ({"dtype": "float", "data": [1]}, "no dtype is called 'float'; there are bool, int8, int16"),
        ({"dtype": "DTYPE_UNSPECIFIED", "data": [1]}, "no dtype is called 'DTYPE_UNSPECIFIED'"),
        ({"dtype": 99, "data": [1]}, "no dtype is called 99"),
        ({"dtype": [], "data": [1]}, "no dtype is called []"),
        ({"dtype": "float32", "shape": 2, "data": [1, 2]}, "a shape is a list of integers, not 2"),
        ({"dtype": "float32", "shape": [2.5], "data": [1]}, "a shape is a list of integers, not [2.5]"),
        ({"dtype": "float32", "shape": ["x"], "data": [1]}, "a shape is a list of integers, not ['x']"),
        ({"dtype": "float32", "shape": [3], "data": [1, 2]}, "of shape [3] and dtype FLOAT32 takes 12 bytes, not 8"),
        ({"dtype": "float32", "shape": [-1], "data": [1, 2]}, "negative axis"),
        ({"dtype": "float32", "shape": [3], "data": [[1, 2]]}, "the data has the shape [1, 2], not [3]"),
        ({"dtype": "float32", "shape": [2], "data": "AAAA"}, "of shape [2] and dtype FLOAT32 takes 8 bytes, not 3"),
        ({"dtype": "float32", "shape": [2], "data": "A!"}, "the data is not base64"),
        ({"dtype": "float32", "shape": [2], "data": "é"}, "the data is not base64"),
        ({"dtype": "bool", "shape": [1], "data": "Ag=="}, "only 0 and 1 are booleans"),
        ({"dtype": "uint8", "data": [300]}, "300 does not fit uint8"),
        ({"dtype": "uint64", "data": [-1]}, "-1 does not fit uint64"),
        ({"dtype": "int32", "data": [1, 1.5]}, "1.5 does not fit int32"),
        ({"dtype": "int32", "data": [float("nan")]}, "nan does not fit int32"),
        ({"dtype": "bool", "data": [2]}, "2 does not fit bool"),
        ({"dtype": "float16", "data": [1e6]}, "1000000.0 does not fit float16"),
        ({"dtype": "float8_e8m0fnu", "data": [0]}, "0 does not fit float8_e8m0fnu"),
        ([1e300], "1e+300 does not fit float32"),
        ({"dtype": "complex64", "data": [1]}, "JSON has no complex numbers: send them from a file"),
        ([[1], [1, 2]], "nested lists of unequal lengths are not a tensor"),
        (["a"], "an array of strings"),
        ([None], "an array of Python objects is not a tensor"),
        ([{}], "an array of Python objects is not a tensor"),
        ([1 << 70], "an array of Python objects is not a tensor"),
        ({"dtype": "float32", "data": "@cat.npy"}, "cat.npy: holds uint8, not float32"),
        ({"shape": [3, 2], "data": "@cat.npy"}, "the data has the shape [2, 3], not [3, 2]"),
        ("@list.npy", "list.npy: holds Python objects, a pickle, which is never loaded"),
    ],
)
def test_what_is_no_tensor_is_refused_by_field(holder: Descriptor, cat: Tensor, value: Any, said: str) -> None:
    np.save("list.npy", np.array([[]], object))
    assert said in refused(holder, value)


@pytest.mark.parametrize("value", [{"images": "@cat.npy"}, {"named": ["@cat.npy"]}, {"imag": "@cat.npy"}, {"many": {}}])
def test_what_protobuf_refuses_it_names(holder: Descriptor, cat: Tensor, value: Any) -> None:
    with pytest.raises(ToolkitError, match=f"the JSON is not a Holder: .*{next(iter(value))}"):
        parse(holder, value)


# Replies


def test_a_reply_shows_dtype_and_shape(holder: Descriptor, cat: Tensor) -> None:
    message = parse(holder, {"image": "@cat.npy", "numbered": {"1": {"images": [[0.5]]}}})
    before = message.SerializeToString()
    found = shown(message)
    assert found["image"] == {"dtype": "uint8", "shape": [2, 3]}
    assert found["numbered"]["1"]["images"] == [{"dtype": "float32", "shape": [1]}]
    assert message.SerializeToString() == before
    message.image.dtype = 99
    assert shown(message)["image"] == {"dtype": "99", "shape": [2, 3]}


def test_what_is_saved_is_shown_and_can_be_sent_again(holder: Descriptor, cat: Tensor) -> None:
    values: dict[str, Any] = {
        f"k{int(dtype)}": {"dtype": int(dtype), "shape": [2], "data": [1, 1]}
        for dtype in DType
        if dtype and "COMPLEX" not in dtype.name
    }
    message = parse(
        holder,
        {
            "image": "@cat.npy",
            "named": values,
            "answers": {"true": [1]},
            "numbered": {"-1": {"images": [[1], [2, 3]]}},
            "many": [{}, {"denseMask": [0.5]}],
        },
    )
    lines: list[str] = []
    folder = ArrayFolder(Path("out"), lines.append)
    folder.make()
    files = save_arrays(message, folder)
    printed = json.loads(json.dumps(shown(message, files)))
    assert printed["image"] == {"dtype": "uint8", "shape": [2, 3], "data": "@out/image.npy"}
    assert printed["many"][1]["dense_mask"]["data"] == "@out/many.1.dense_mask.npy"
    assert printed["answers"]["true"]["data"] == "@out/answers.true.npy"
    assert printed["numbered"]["-1"]["images"][1]["data"] == "@out/numbered.-1.images.1.npy"
    assert parse(holder, {k: v for k, v in printed.items() if k != "rle"}) == message
    assert len(lines) == len(files) == len(os.listdir("out"))
    assert sum(" as uint" in line for line in lines) == len(EXTENDED)


def test_a_reply_that_is_no_tensor_is_named(holder: Descriptor, tmp_path: Path) -> None:
    message = message_factory.GetMessageClass(holder)()
    message.many.add().image.dtype = 11
    with pytest.raises(ToolkitError, match=r"the reply's many\.0\.image is wrong: .* takes 4 bytes, not 0"):
        save_arrays(message, ArrayFolder(tmp_path, print))


def test_a_reply_of_very_many_tensors_does_not_fill_the_disk(
    holder: Descriptor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("toolkit.call.MAX_TENSORS", 3)
    message = parse(holder, {"images": [[1]] * 4})
    with pytest.raises(ToolkitError, match="the reply holds more than 3 tensors"):
        save_arrays(message, ArrayFolder(tmp_path, lambda line: None))


# Calls


@pytest.fixture
async def target(pool: descriptor_pool.DescriptorPool, holder: Descriptor, tmp_path: Path) -> AsyncIterator[str]:
    """A server that knows nothing of the toolkit, and sends back what it gets."""

    async def unary(request: bytes, context: Any) -> bytes:
        return request

    async def down(request: bytes, context: Any) -> AsyncIterator[bytes]:
        yield request
        yield request

    async def up(requests: AsyncIterator[bytes], context: Any) -> bytes:
        return b"".join([request async for request in requests])  # which protobuf merges

    async def both(requests: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
        async for request in requests:
            yield request

    async def wrong(request: bytes, context: Any) -> bytes:
        return b"\x0a\x02\x08\x0b"

    methods = {
        "Unary": grpc.unary_unary_rpc_method_handler(unary),
        "Down": grpc.unary_stream_rpc_method_handler(down),
        "Up": grpc.stream_unary_rpc_method_handler(up),
        "Both": grpc.stream_stream_rpc_method_handler(both),
        "Bare": grpc.unary_unary_rpc_method_handler(unary),
        "Wrong": grpc.unary_unary_rpc_method_handler(wrong),
    }
    server = grpc.aio.server()
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("files.v1.Mirror", methods),))
    reflection.enable_server_reflection(("files.v1.Mirror",), server, pool)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    yield f"127.0.0.1:{port}"
    await server.stop(0)


async def called(target: str, method: str, payload: Any, save: ArrayFolder | None = None) -> list[Any]:
    replies = call(target, method, json.dumps(payload), timeout=20, save=save)
    return [json.loads(reply) async for reply in replies]


@pytest.mark.parametrize("method", ["Unary", "Down", "Up", "Both"])
async def test_every_call_shape_sends_and_saves(method: str, target: str, cat: Tensor) -> None:
    lines: list[str] = []
    streams_requests, streams_replies = method in ("Up", "Both"), method in ("Down", "Both")
    first, second = {"image": "@cat.npy"}, {"images": [[1], "@dog.npy"], "inner": {"image": "@cat.npy"}}
    request: Any = [first, second] if streams_requests else {**first, **second}
    replies = await called(target, method, request, ArrayFolder(Path("out"), lines.append))
    saved = sorted(os.listdir("out"))
    names = {
        "Unary": ["image.npy", "images.0.npy", "images.1.npy", "inner.image.npy"],
        "Both": ["0000.image.npy", "0001.images.0.npy", "0001.images.1.npy", "0001.inner.image.npy"],
    }
    names["Up"] = names["Unary"]
    names["Down"] = [f"{place}.{name}" for place in ("0000", "0001") for name in names["Unary"]]
    assert saved == names[method]
    assert len(lines) == len(saved)
    assert len(replies) == (2 if streams_replies else 1)
    assert [name for name in saved if f"@out/{name}" in json.dumps(replies)] == saved
    image = "0000.image.npy" if streams_replies else "image.npy"
    assert Tensor.of(np.load(f"out/{image}")) == cat


@pytest.mark.parametrize(
    "payload", ["@cat.npy", [[0, 1, 2], [3, 4, 5]], {"dtype": "uint8", "shape": [2, 3], "data": [0, 1, 2, 3, 4, 5]}]
)
async def test_a_method_of_bare_tensors(payload: Any, target: str, cat: Tensor) -> None:
    (reply,) = await called(target, "Bare", payload, ArrayFolder(Path("out"), print))
    assert (reply["shape"], reply["data"]) == ([2, 3], "@out/tensor.npy")
    assert np.array_equal(np.load("out/tensor.npy"), cat.numpy())


async def test_without_save_nothing_is_written(target: str, cat: Tensor) -> None:
    (reply,) = await called(target, "Unary", {"image": "@cat.npy"})
    assert reply["image"] == {"dtype": "uint8", "shape": [2, 3]}
    assert sorted(os.listdir()) == ["cat.npy", "dog.npy"]


async def test_the_folder_is_tried_before_the_call(target: str, cat: Tensor) -> None:
    with pytest.raises(ToolkitError, match=r"cannot save to cat\.npy: File exists"):
        await called("127.0.0.1:1", "Unary", {}, ArrayFolder(Path("cat.npy"), print))


async def test_a_wrong_reply_is_named(target: str, tmp_path: Path) -> None:
    assert (await called(target, "Wrong", {}))[0]["image"] == {"dtype": "float32", "shape": []}
    with pytest.raises(ToolkitError, match="the reply's image is wrong"):
        await called(target, "Wrong", {}, ArrayFolder(tmp_path / "out", print))


async def run(*arguments: str) -> tuple[int | None, str, str]:
    env = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'codegen'}"}
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "toolkit", "call", *arguments),
        env=env,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await process.communicate()
    return process.returncode, out.decode(), err.decode()


async def test_the_command_line_saves_and_says_so(target: str, cat: Tensor) -> None:
    code, out, err = await run("Unary", '{"image": "@cat.npy"}', "--target", target, "--save", "out")
    assert (code, err) == (0, "saved out/image.npy: uint8, [2, 3]\n")
    assert json.loads(out)["image"] == {"dtype": "uint8", "shape": [2, 3], "data": "@out/image.npy"}


async def test_the_command_line_says_what_is_wrong(target: str, cat: Tensor) -> None:
    code, out, err = await run("Unary", '{"image": "@none.npy"}', "--target", target)
    assert (code, out, err) == (2, "", "error: image: none.npy: no such file\n")


def test_a_large_file_is_mapped_and_refused_without_being_read(
    holder: Descriptor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    sparse: Callable[..., Any] = np.lib.format.open_memmap
    sparse("huge.npy", mode="w+", dtype=np.uint8, shape=(1 << 30,))
    assert refused(holder, "@huge.npy") == "huge.npy: an array of 1024 MiB; a call carries at most 256 MiB"
