"""What generated code may name, and how it and the runtime agree."""

from __future__ import annotations

import warnings
from typing import Any

import pytest

from toolkit import gencode


def test_code_of_this_version_and_of_older_ones_is_understood() -> None:
    for version in range(1, gencode.VERSION + 1):
        gencode.require(version)


def test_code_of_a_newer_version_is_refused_with_the_cure() -> None:
    with pytest.raises(ImportError) as caught:
        gencode.require(gencode.VERSION + 1)
    assert str(caught.value) == (
        f"this module was generated for version {gencode.VERSION + 1} of toolkit.gencode, and the installed toolkit has "
        f"{gencode.VERSION}: upgrade it with `pip install -U grpc-model-toolkit`, or run `toolkit generate` again"
    )


def test_a_deprecated_method_warns_its_caller_and_works() -> None:
    @gencode.deprecated("use Better")
    def old(a: int, *, b: int) -> int:
        """Adds."""
        return a + b

    with pytest.warns(DeprecationWarning, match="^use Better$") as caught:
        assert old(1, b=2) == 3
    assert caught[0].filename == __file__
    assert (old.__name__, old.__doc__) == ("old", "Adds.")


def test_a_deprecated_method_does_not_warn_before_it_is_called() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        gencode.deprecated("reason")(lambda: None)


def test_every_name_that_is_promised_is_there() -> None:
    module: Any = gencode
    assert [name for name in module.__all__ if not hasattr(module, name)] == []
