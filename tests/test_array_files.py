"""Array files: what is read, what is refused in one sentence, and that saving stays within its folder."""

from __future__ import annotations

import io
import os
import pickle
import struct
import sys
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image

from toolkit import array_files
from toolkit.array_files import ArrayFolder, read_array
from toolkit.errors import ToolkitError
from toolkit.tensor import EXTENDED, DType, Tensor

MIB = 1 << 20
PLAIN = [dtype for dtype in DType if dtype and dtype not in EXTENDED]


def read(path: Path, name: str = "", **options: Any) -> Tensor:
    return read_array(f"{path}{name}", **{"limit": MIB, **options})


def refused(path: Path, name: str = "", **options: Any) -> str:
    """Why; the file is named first, and it is one line."""
    with pytest.raises(ToolkitError) as error:
        read(path, name, **options)
    said = str(error.value)
    assert said.startswith(f"{path}: ")
    assert "\n" not in said
    return said.removeprefix(f"{path}: ")


# .npy


@pytest.mark.parametrize("dtype", PLAIN)
def test_npy_of_every_dtype(dtype: DType, tmp_path: Path) -> None:
    array = (np.arange(6).reshape(2, 3) % 2).astype(dtype.name.lower())
    np.save(tmp_path / "a.npy", array)
    assert read(tmp_path / "a.npy") == Tensor.of(array)


@pytest.mark.parametrize(
    "array",
    [
        np.float32(3),
        np.zeros((0, 3), np.int8),
        np.arange(6, dtype=">f4").reshape(2, 3),
        np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        np.zeros((1,) * 32),
    ],
    ids=["scalar", "empty", "big-endian", "Fortran", "rank 32"],
)
def test_npy_of_every_layout(array: Any, tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", array)
    assert read(tmp_path / "a.npy") == Tensor.of(array)


@pytest.mark.parametrize(
    ("array", "said"),
    [
        (
            np.array([1, None], object),
            "holds Python objects, a pickle, which is never loaded: save an array of numbers",
        ),
        (np.array(["a"]), "an array of strings (<U1) is not a tensor of numbers"),
        (np.zeros(2, [("x", "f4")]), "a structured array is not a tensor: send each of its fields (x)"),
        (np.zeros(2, "M8[s]"), "datetime64[s] is not a number"),
        (np.zeros(2, np.longdouble), "numpy's float128 is no dtype of tensors"),
        (np.zeros(2, "V7"), "numpy's |V7 is no dtype of tensors"),
        (np.zeros((1,) * 33), "tensor of rank 33; at most 32"),
        (np.array([2], np.uint8).view(bool), "only 0 and 1 are booleans"),
        (np.zeros(2 * MIB, np.uint8), "an array of 2 MiB; a call carries at most 1 MiB"),
        (np.zeros(2, ml_dtypes.bfloat16), 'cannot name: send {"dtype": "bfloat16", "data": "@FILE"}'),
    ],
)
def test_npy_of_what_cannot_travel(array: Any, said: str, tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", array)
    assert said in refused(tmp_path / "a.npy")


def npy(header: str, data: bytes = b"") -> bytes:
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header.encode("latin-1") + data


def header(shape: str, descr: str = "'<f4'") -> str:
    return f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}}}\n"


BROKEN = {
    "nothing": b"",
    "text": b"hello, world",
    "a zip": b"PK\x03\x04" + bytes(40),
    "a bare pickle": pickle.dumps([1]),
    "cut off": npy(header("(4,)"), bytes(15)),
    "no header": b"\x93NUMPY\x01\x00\xff\xff",
    "an open bracket": npy("(" * 80),
    "too deep": npy("(" * 4000 + ")" * 4000),
    "code": npy("__import__('os').abort()"),
    "negative": npy(header("(-1, 4)"), bytes(16)),
    "overflowing": npy(header(f"({1 << 62}, 8)")),
    "huge": npy(header(f"({1 << 50},)")),
    "not a shape": npy(header("'x'")),
    "not a dtype": npy(header("(1,)", "'nonsense'"), bytes(4)),
    "float8 by its own name": npy(header("(1,)", "'<f1'"), bytes(4)),
    "an object": npy(header("(1,)", "'|O'"), pickle.dumps([1])),
    "objects inside": npy(header("(1,)", "[('a', '|O')]"), pickle.dumps([1])),
    "version 9": b"\x93NUMPY\x09\x00" + bytes(100),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_npy_is_refused(case: str, tmp_path: Path) -> None:
    (tmp_path / "a.npy").write_bytes(BROKEN[case])
    said = refused(tmp_path / "a.npy")
    assert said.startswith("holds Python objects" if "object" in case else "not a whole .npy file: ")


def test_a_pickle_in_a_file_is_never_run(tmp_path: Path) -> None:
    class Touch:
        def __reduce__(self) -> Any:
            return os.mkdir, (str(tmp_path / "ran"),)

    np.save(tmp_path / "a.npy", np.array([Touch()], object), allow_pickle=True)
    refused(tmp_path / "a.npy")
    assert not (tmp_path / "ran").exists()


# Which file


def test_what_is_no_array_file(tmp_path: Path) -> None:
    (tmp_path / "dir.npy").mkdir()
    (tmp_path / "a.txt").write_text("1 2 3")
    assert refused(tmp_path / "none.npy") == "no such file"
    assert refused(tmp_path / "dir.npy") == "not a file"
    known = "not an array file; these are: .npy, .safetensors, .png, .jpg, .jpeg"
    assert [refused(tmp_path / name) for name in ("a.txt", "a", "a.npz", "a.pkl", "a.pt")] == [known] * 5
    os.mkfifo(tmp_path / "pipe.npy")
    assert refused(tmp_path / "pipe.npy") == "not a file"


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_a_file_that_may_not_be_read(tmp_path: Path) -> None:
    (tmp_path / "a.npy").touch(mode=0)
    assert refused(tmp_path / "a.npy") == "Permission denied"


def test_the_home_folder_and_capital_letters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    np.save(tmp_path / "a.npy", np.ones(2))
    (tmp_path / "a.npy").rename(tmp_path / "odd #1.NPY")
    assert read_array("~/odd #1.NPY", limit=MIB) == Tensor.of([1.0, 1.0])


# .safetensors


def torch_tensor(dtype: DType) -> torch.Tensor:
    plain = torch.tensor([[1, 0, 1], [1, 1, 1]] if dtype != DType.FLOAT8_E8M0FNU else [[1, 1, 2]])
    return plain.float().to(getattr(torch, dtype.name.lower()))


@pytest.mark.parametrize("dtype", list(array_files._SAFETENSORS.values()))
def test_safetensors_of_every_dtype(dtype: DType, tmp_path: Path) -> None:
    tensor = torch_tensor(dtype)
    safetensors.torch.save_file({"a": tensor, "b": torch.ones(1)}, tmp_path / "a.safetensors")
    assert read(tmp_path / "a.safetensors", "#a") == Tensor.of(tensor)


def test_safetensors_picks_by_name(tmp_path: Path) -> None:
    path = tmp_path / "all.safetensors"
    safetensors.torch.save_file({"a": torch.ones(1), "layer.0#b": torch.zeros(2)}, path)
    assert read(path, "#layer.0#b") == Tensor.of(torch.zeros(2))
    assert refused(path) == "holds several tensors; pick one with #NAME: a, layer.0#b"
    assert refused(path, "#c") == "has no tensor c; pick one with #NAME: a, layer.0#b"
    safetensors.torch.save_file({"only": torch.ones(3)}, path)
    assert read(path) == read(path, "#only") == Tensor.of(torch.ones(3))
    safetensors.torch.save_file({}, path)
    assert refused(path) == "holds no tensor"


def test_safetensors_that_cannot_travel(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    safetensors.torch.save_file({"a": torch.zeros(MIB)}, path)
    assert refused(path) == "an array of 4 MiB; a call carries at most 1 MiB"
    safetensors.torch.save_file({"a": torch.zeros(MIB, dtype=torch.bfloat16)}, path)
    assert refused(path) == "an array of 2 MiB; a call carries at most 1 MiB"
    safetensors.torch.save_file({"a": torch.zeros(2, dtype=torch.float4_e2m1fn_x2)}, path)
    assert refused(path) == "a is of F4, which is no dtype of tensors"
    for broken in (b"", b"\xff" * 20, path.read_bytes()[:-1]):
        path.write_bytes(broken)
        assert refused(path).startswith("not a whole .safetensors file: ")


# Images


@pytest.mark.parametrize(("mode", "channels"), [("1", 1), ("L", 1), ("LA", 4), ("P", 3), ("RGB", 3), ("RGBA", 4)])
def test_png_is_height_width_channels(mode: str, channels: int, tmp_path: Path) -> None:
    image = Image.new(mode, (3, 2))
    image.putpixel((2, 0), 1 if mode in "1LP" else (1,) * len(mode))
    image.save(tmp_path / "a.png")
    tensor = read(tmp_path / "a.png")
    assert (tensor.dtype, tensor.shape) == (DType.UINT8, (2, 3, channels))
    expected = np.asarray(image.convert({1: "L", 3: "RGB", 4: "RGBA"}[channels]))
    assert np.array_equal(tensor.numpy().squeeze(), expected)


@pytest.mark.parametrize("transparency", [0, b"\x00\xff"])
def test_a_transparent_colour_makes_a_fourth_channel(transparency: Any, tmp_path: Path) -> None:
    Image.new("P", (3, 2)).save(tmp_path / "a.png", transparency=transparency)
    assert read(tmp_path / "a.png").shape == (2, 3, 4)


@pytest.mark.parametrize(("mode", "channels"), [("L", 1), ("RGB", 3), ("CMYK", 3)])
def test_jpeg(mode: str, channels: int, tmp_path: Path) -> None:
    Image.new(mode, (3, 2)).save(tmp_path / "a.jpg")
    assert read(tmp_path / "a.jpg").shape == (2, 3, channels)
    (tmp_path / "a.jpg").rename(tmp_path / "a.JPEG")
    assert read(tmp_path / "a.JPEG").shape == (2, 3, channels)


def test_a_photograph_stands_upright(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    Image.new("RGB", (3, 2)).save(tmp_path / "a.jpg", exif=exif)
    assert read(tmp_path / "a.jpg").shape == (3, 2, 3)


def test_images_that_cannot_travel(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.fromarray(np.zeros((2, 3), np.uint16)).save(path)
    assert refused(path).startswith("has more than 8 bits a channel, which would be lost")
    Image.new("L", (2048, 1024)).save(path)
    assert refused(path) == "an array of 2 MiB; a call carries at most 1 MiB"
    Image.new("RGB", (3, 2)).save(path, format="GIF")
    assert "cannot identify image file" in refused(path)
    whole = io.BytesIO()
    Image.effect_noise((100, 100), 50).save(whole, "PNG")
    for size in (0, 20, 60, len(whole.getvalue()) // 2):
        path.write_bytes(whole.getvalue()[:size])
        assert refused(path)


def test_a_bomb_is_refused_before_it_is_unpacked(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    Image.new("1", (8, 8)).save(buffer, "PNG")
    whole = bytearray(buffer.getvalue())
    for side in (12_000, 60_000):  # pixels: where Pillow warns, and where it refuses
        ihdr = struct.pack(">4sIIBBBBB", b"IHDR", side, side, 1, 0, 0, 0, 0)
        whole[12:33] = ihdr + struct.pack(">I", zlib.crc32(ihdr))
        (tmp_path / "a.png").write_bytes(whole)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert refused(tmp_path / "a.png", limit=64 * MIB)


@pytest.mark.parametrize(
    ("name", "module", "cure"),
    [
        ("a.png", "PIL", "reading it needs the package Pillow: `pip install pillow`"),
        ("a.jpg", "PIL", "reading it needs the package Pillow: `pip install pillow`"),
        ("a.safetensors", "safetensors", "reading it needs the package safetensors: `pip install safetensors`"),
    ],
)
def test_a_missing_package_is_named(
    name: str, module: str, cure: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / name).touch()
    monkeypatch.setitem(sys.modules, module, None)
    assert refused(tmp_path / name) == cure


# A dtype that is asked for


def test_the_dtype_that_is_asked_for_must_be_there(tmp_path: Path) -> None:
    path = tmp_path / "a.npy"
    np.save(path, np.ones(2))
    assert read(path, dtype=DType.FLOAT64).dtype == DType.FLOAT64
    assert refused(path, dtype=DType.FLOAT32) == "holds float64, not float32"
    assert refused(path, dtype=DType.BFLOAT16) == "holds float64, not bfloat16"


@pytest.mark.parametrize("dtype", EXTENDED)
def test_bits_are_read_as_what_they_are(dtype: DType, tmp_path: Path) -> None:
    tensor = Tensor(DType(dtype), (1, 2), bytes([1, 2, 3, 4])[: 4 if dtype == DType.BFLOAT16 else 2])
    path = tmp_path / "a.npy"
    raw = np.array([[0x0201, 0x0403]], "<u2") if dtype == DType.BFLOAT16 else np.array([[1, 2]], "u1")
    for array in (raw, raw.astype(raw.dtype.newbyteorder(">")), raw.view(f"V{raw.itemsize}")):
        np.save(path, array)
        assert read(path, dtype=tensor.dtype) == tensor
    np.save(path, raw.astype("u4"))
    assert refused(path, dtype=tensor.dtype) == f"holds uint32, not {tensor.dtype.name.lower()}"


# Saving


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def folder(tmp_path: Path, said: list[str]) -> ArrayFolder:
    made = ArrayFolder(tmp_path / "out", said.append)
    made.make()
    return made


@pytest.mark.parametrize("dtype", [dtype for dtype in DType if dtype])
@pytest.mark.parametrize("shape", [(), (2, 3), (0,)])
def test_what_is_saved_can_be_read(dtype: DType, shape: tuple[int, ...], folder: ArrayFolder, said: list[str]) -> None:
    size = Tensor(dtype, (0,), b"").numpy().itemsize * int(np.prod(shape, dtype=int))
    tensor = Tensor(dtype, shape, b"\1" * size)
    path = folder.save(("a", "b"), tensor)
    assert path == str(folder.path / "a.b.npy")
    assert read_array(path, limit=MIB, dtype=dtype) == tensor
    bits = {True: " as uint16" if dtype == DType.BFLOAT16 else " as uint8"}.get(dtype in EXTENDED, "")
    assert said == [f"saved {path}: {dtype.name.lower()}{bits}, {list(shape)}"]
    assert os.listdir(folder.path) == ["a.b.npy"]


HOSTILE = [
    "../../x",
    "/etc/passwd",
    "..",
    ".",
    "",
    "a/b",
    "a.b",
    "a\\b",
    "a\0b",
    "ü",
    "~",
    "%2E",
    "\n",
    "x" * 5000,
    "CON",
]


def test_names_stay_in_the_folder_and_apart(folder: ArrayFolder, tmp_path: Path) -> None:
    before = set(tmp_path.iterdir())
    names = [("m", key) for key in HOSTILE] + [("m", "a", "b"), ("m", "a"), ("m", "x" * 5001)]
    for place, name in enumerate(names):
        folder.save(name, Tensor.of(place))
    assert set(tmp_path.iterdir()) == before
    saved = sorted(int(np.load(path)) for path in folder.path.iterdir())
    assert saved == list(range(len(names))), "no two share a file"
    assert all(path.name.isascii() and len(path.name) < 255 for path in folder.path.iterdir())


def test_a_link_in_the_folder_is_replaced_not_followed(folder: ArrayFolder, tmp_path: Path) -> None:
    precious = tmp_path / "precious.txt"
    precious.write_text("mine")
    (folder.path / "a.npy").symlink_to(precious)
    (folder.path / f".{os.getpid()}.part").symlink_to(precious)
    folder.save(("a",), Tensor.of([1]))
    assert precious.read_text() == "mine"
    assert not (folder.path / "a.npy").is_symlink()
    assert os.listdir(folder.path) == ["a.npy"]


def test_a_file_that_is_there_is_replaced(folder: ArrayFolder) -> None:
    for value in (1, 2):
        folder.save(("a",), Tensor.of([value]))
    assert np.load(folder.path / "a.npy").tolist() == [2]


def _not_a_folder(path: Path) -> None:
    path.write_text("")


def _read_only_folder(path: Path) -> None:
    path.mkdir(mode=0o500)


def _under_a_file(path: Path) -> None:
    path.parent.joinpath("file").write_text("")
    path.symlink_to(path.parent / "file" / "out")


@pytest.mark.parametrize("prepare", [_not_a_folder, _read_only_folder, _under_a_file])
def test_a_folder_that_cannot_be_written_to(prepare: Callable[[Path], None], tmp_path: Path) -> None:
    if prepare is _read_only_folder and os.geteuid() == 0:
        pytest.skip("root writes everywhere")
    prepare(tmp_path / "out")
    with pytest.raises(ToolkitError, match=r"cannot save to .*/out: "):
        ArrayFolder(tmp_path / "out", print).make()


def test_a_file_that_cannot_be_written_leaves_nothing(folder: ArrayFolder) -> None:
    (folder.path / "a.npy").mkdir()
    with pytest.raises(ToolkitError, match=r"cannot save to .*a\.npy: Is a directory"):
        folder.save(("a",), Tensor.of([1]))
    assert os.listdir(folder.path) == ["a.npy"]


def test_the_folder_is_made_with_those_above_it(tmp_path: Path) -> None:
    ArrayFolder(tmp_path / "a" / "b", print).make()
    assert os.listdir(tmp_path / "a" / "b") == []
