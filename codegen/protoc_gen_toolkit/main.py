"""protoc's plugin protocol round `generate`. Source: google/protobuf/compiler/plugin.proto."""

from __future__ import annotations

import sys

from google.protobuf.compiler.plugin_pb2 import CodeGeneratorRequest, CodeGeneratorResponse

from protoc_gen_toolkit import names
from protoc_gen_toolkit.check import check
from protoc_gen_toolkit.render import render
from protoc_gen_toolkit.schema import NEWEST_EDITION, OLDEST_EDITION, read


def generate(request: CodeGeneratorRequest) -> CodeGeneratorResponse:
    """One module for each file to generate, or in `error` one line a problem and no file. It depends on the request alone."""
    response = CodeGeneratorResponse(
        supported_features=CodeGeneratorResponse.FEATURE_PROTO3_OPTIONAL
        | CodeGeneratorResponse.FEATURE_SUPPORTS_EDITIONS,
        minimum_edition=OLDEST_EDITION,
        maximum_edition=NEWEST_EDITION,
    )
    if request.parameter:
        response.error = f"--toolkit_opt={request.parameter}: protoc-gen-toolkit takes no options"
        return response
    schema = read(request)
    problems = check(schema)
    if problems:
        response.error = "\n".join(map(str, problems))
        return response
    for file in schema.files:
        response.file.add(name=names.output(file.path), content=render(file, schema.symbols))
    return response


def main() -> None:
    """The plugin: a request on standard input, a response on standard output."""
    if sys.stdin.isatty():
        sys.exit("protoc-gen-toolkit is a plugin of protoc: run `toolkit generate`, or protoc with --toolkit_out=DIR")
    request = CodeGeneratorRequest.FromString(sys.stdin.buffer.read())
    sys.stdout.buffer.write(generate(request).SerializeToString())
