"""A caller that has never heard of the toolkit: stock grpcio, and what protoc made of the .proto files of `toolkit new acme`.

`python stock_client.py SEARCH EMBEDDING` prints what the services at these addresses answer, as JSON.
"""

from __future__ import annotations

import array
import json
import sys

import grpc
from acme.embedding.v1 import embedding_pb2, embedding_pb2_grpc
from acme.search.v1 import search_pb2, search_pb2_grpc

QUERY = search_pb2.Query(question="a cat", documents=["rain in May", "the cats", "a dog"])


def main(search_address: str, embedding_address: str) -> None:
    with grpc.insecure_channel(search_address) as channel:
        search = search_pb2_grpc.SearchStub(channel)
        best = search.Best(QUERY, timeout=20)
        ranked = list(search.Rank(QUERY, timeout=20))
        try:
            search.Best(search_pb2.Query(question="a cat"), timeout=20)
        except grpc.RpcError as error:
            refusal = [error.code().name, error.details()]
    with grpc.insecure_channel(embedding_address) as channel:
        embedding = embedding_pb2_grpc.EmbeddingStub(channel)
        tensor = embedding.Embed(embedding_pb2.Text(text="a cat"), timeout=20).values
    numbers = array.array("f", tensor.data)
    answers = {
        "best": best.document,
        "ranked": [hit.document for hit in ranked],
        "is_best_first_of_all": max(ranked, key=lambda hit: hit.score) == best,
        "refusal": refusal,
        "tensor": [tensor.DESCRIPTOR.full_name, tensor.dtype, list(tensor.shape)],
        "length": round(sum(number * number for number in numbers), 4),
        "toolkit": sorted(name for name in sys.modules if name.partition(".")[0] == "toolkit"),
    }
    print(json.dumps(answers))  # noqa: T201 - its output is its answer


if __name__ == "__main__":
    main(*sys.argv[1:])
