"""The generator: what a .proto says, as Python that builds on toolkit.gencode and on nothing else of the toolkit."""

from protoc_gen_toolkit.main import generate, main

__all__ = ["generate", "main"]
