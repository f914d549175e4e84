"""Calls a graph with stock grpcio and what protoc made of the .proto files: a message, a tensor, a stream, an error.

`python client.py 127.0.0.1:50051` prints what came back, as JSON.
"""

import json
import sys

import grpc
import numpy as np

from services.echo.v1 import echo_pb2, echo_pb2_grpc
from toolkit.v1 import tensor_pb2


def tensor_of(array: np.ndarray) -> tensor_pb2.Tensor:
    """`array` in C order, little-endian, as protos/toolkit/v1/tensor.proto wants it; here 32-bit floats alone."""
    return tensor_pb2.Tensor(dtype=tensor_pb2.FLOAT32, shape=array.shape, data=array.astype("<f4").tobytes())


def array_of(tensor: tensor_pb2.Tensor) -> np.ndarray:
    """The elements, without a copy; raises ValueError where `data` is too short or too long for `shape`."""
    if tensor.dtype != tensor_pb2.FLOAT32:
        raise ValueError(f"not 32-bit floats: {tensor_pb2.DType.Name(tensor.dtype)}")
    return np.frombuffer(tensor.data, "<f4").reshape(tensor.shape)


def main(address: str) -> None:
    with grpc.insecure_channel(address) as channel:
        echo = echo_pb2_grpc.EchoStub(channel)
        said = echo.Say(echo_pb2.Note(text="hello", tags=["from", "Python"]), timeout=20)

        slope = np.arange(32 * 48, dtype="f4").reshape(32, 48) / 2
        image = echo_pb2.Image(pixels=tensor_of(slope), caption="a slope")
        total = echo.Total(image, timeout=20)
        reflected = echo.Reflect(image, timeout=20).pixels

        numbers = [note.number for note in echo.Repeat(echo_pb2.Note(text="again", times=3), timeout=20)]

        try:
            echo.Say(echo_pb2.Note(text=""), timeout=20)
        except grpc.RpcError as raised:
            error = [raised.code().name, raised.details()]

    answer = {
        "said": [said.text, *said.tags],
        "total": total.number,
        "reflected": [
            tensor_pb2.DType.Name(reflected.dtype),
            list(reflected.shape),
            float(array_of(reflected)[-1, -1]),
        ],
        "numbers": numbers,
        "error": error,
    }
    print(json.dumps(answer))  # noqa: T201 - its output is its answer


if __name__ == "__main__":
    main(*sys.argv[1:])
