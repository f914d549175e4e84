"""Every name in generated code is made here. Each rule maps different names to different names, or says how it could not."""

from __future__ import annotations

import re
from collections.abc import Iterable


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


KEYWORDS = _words("""
    False None True and as assert async await break class continue def del elif else except finally for from global if
    import in is lambda nonlocal not or pass raise return try while with yield
""")
ENUM_ATTRIBUTES = _words("""
    as_integer_ratio bit_count bit_length conjugate denominator from_bytes imag is_integer mro name names numerator real
    to_bytes value values
""")
"""What an IntEnum has already, in any Python."""
BUILTINS = _words("""
    ArithmeticError AssertionError AttributeError BaseException BaseExceptionGroup BlockingIOError BrokenPipeError
    BufferError BytesWarning ChildProcessError ConnectionAbortedError ConnectionError ConnectionRefusedError
    ConnectionResetError DeprecationWarning EOFError Ellipsis EncodingWarning EnvironmentError Exception
    ExceptionGroup FileExistsError FileNotFoundError FloatingPointError FutureWarning GeneratorExit IOError
    ImportError ImportWarning IndentationError IndexError InterruptedError IsADirectoryError KeyError
    KeyboardInterrupt LookupError MemoryError ModuleNotFoundError NameError NotADirectoryError NotImplemented
    NotImplementedError OSError OverflowError PendingDeprecationWarning PermissionError ProcessLookupError
    PythonFinalizationError RecursionError ReferenceError ResourceWarning RuntimeError RuntimeWarning
    StopAsyncIteration StopIteration SyntaxError SyntaxWarning SystemError SystemExit TabError TimeoutError
    TypeError UnboundLocalError UnicodeDecodeError UnicodeEncodeError UnicodeError UnicodeTranslateError
    UnicodeWarning UserWarning ValueError Warning ZeroDivisionError abs aiter all anext any ascii bin bool
    breakpoint bytearray bytes callable chr classmethod compile complex delattr dict dir divmod enumerate eval exec
    filter float format frozenset getattr globals hasattr hash hex id input int isinstance issubclass iter len list
    locals map max memoryview min next object oct open ord pow print property range repr reversed round set setattr
    slice sorted staticmethod str sum super tuple type vars zip
""")
"""A class called like one of these is known by an alias in annotations: before it is defined, mypy takes the builtin."""
BUILTIN_TYPES = {
    "toolkit.v1.DType": "_gencode.DType",
    "toolkit.v1.Tensor": "_gencode.Tensor",
}
"""Types of the toolkit's own .proto that the runtime implements by hand."""
_IDENTIFIER = re.compile(r"[A-Za-z][A-Za-z0-9_]*")


def escape(name: str, reserved: frozenset[str] = KEYWORDS) -> str:
    """`class` → `class_`, and so that nothing meets, `class_` → `class__`."""
    return f"{name}_" if name.rstrip("_") in reserved else name


def enum_value(name: str) -> str:
    return escape(name, KEYWORDS | ENUM_ATTRIBUTES)


def snake_case(name: str) -> str:
    """`GetURLList` → `get_url_list`. Two names can meet; the caller checks."""
    name = re.sub(r"([A-Z]+)([A-Z][a-z])", r"\1_\2", name)
    return re.sub(r"([a-z0-9])([A-Z])", r"\1_\2", name).lower()


def attribute(method: str) -> str:
    """The handler's and client's method for an `rpc`."""
    return escape(snake_case(method))


def skeleton(service: str) -> str:
    return f"{service}Base"


def client(service: str) -> str:
    return f"{service}Client"


def constant(*names: str) -> str:
    """`_SCORING_SCORE` for the method Score of the service Scoring."""
    return "".join(f"_{snake_case(name).upper()}" for name in names)


def is_protobuf(path: str) -> bool:
    """Files of Google's own packages keep protobuf's classes; users have them from PyPI."""
    return path.startswith("google/")


def module(path: str) -> str:
    """The module for a .proto: `services/a-b/v1/x.proto` → `services.a_b.v1.x_toolkit`."""
    stem = path.removesuffix(".proto").replace("-", "_").replace("/", ".")
    return f"{stem}_pb2" if is_protobuf(path) else f"{stem}_toolkit"


def output(path: str) -> str:
    """The file for a .proto, relative to the project."""
    return module(path).replace(".", "/") + ".py"


def module_problem(path: str) -> str | None:
    """Why Python could not import the module for this .proto."""
    if not path.endswith(".proto"):
        return f"{path}: a file name must end in .proto"
    *folders, last = path.removesuffix(".proto").replace("-", "_").split("/")
    for segment in (*folders, last):
        if not _IDENTIFIER.fullmatch(segment):
            return f"{path}: Python cannot import `{segment}`; rename it to letters, digits and _, a letter first"
    for segment in folders:
        if segment in KEYWORDS:
            return f"{path}: Python cannot import `{segment}`, a keyword; rename the folder"
    return None


def module_alias(path: str) -> str:
    """What the module for an imported .proto is called: `_services_a_b_v1_x_toolkit`, `_timestamp_pb2`."""
    name = module(path)
    return "_" + (name.rpartition(".")[2] if is_protobuf(path) else name.replace(".", "_"))


def class_alias(name: str) -> str:
    """What a class is called where a member of the same name hides it."""
    return f"_{name}"


def distinct(wanted: Iterable[str]) -> list[str]:
    """The same names; where two are equal, or one equals a name of ours, the later gets underscores at its end."""
    taken = {"_AsyncIterable", "_AsyncIterator", "_builtins", "_dataclasses", "_gencode"}
    found: list[str] = []
    for name in wanted:
        while name in taken:
            name += "_"
        taken.add(name)
        found.append(name)
    return found
