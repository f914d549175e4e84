"""`python -m services.controlnet.demo`: the outlines of a drawing, and what a very small model paints along them."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from services.controlnet.v1.controlnet_toolkit import ControlNetClient, GenerateRequest, Params
from services.demo import main, running
from toolkit.tensor import Tensor

SIDE: Final = 128
PICTURES: Final = Path(__file__).parents[2] / ".cache" / "controlnet"


async def show() -> None:
    drawing = draw()
    async with running(Path(__file__).with_name("graph.yaml"), ControlNetClient) as controlnet:
        params = Params(prompt="a house by the sea", num_inference_steps=4, seed=7)
        reply = await controlnet.generate(GenerateRequest(params=params, image=Tensor.of(drawing)), timeout=120)
    assert reply.image is not None
    assert reply.outlines is not None
    PICTURES.mkdir(parents=True, exist_ok=True)
    for name, picture in (
        ("drawing", drawing),
        ("outlines", reply.outlines.numpy()),
        ("painting", reply.image.numpy()),
    ):
        Image.fromarray(picture).save(PICTURES / f"{name}.png")
    sys.stdout.write(f"The outlines that went to the model:\n\n{as_text(reply.outlines.numpy())}\n")
    sys.stdout.write(f"It painted {reply.image.shape[1]} by {reply.image.shape[0]} pixels. All pictures: {PICTURES}\n")


def draw() -> NDArray[np.uint8]:
    """A house."""
    image = Image.new("RGB", (SIDE, SIDE), "lightblue")
    pen = ImageDraw.Draw(image)
    pen.rectangle((30, 60, 98, 118), fill="white")
    pen.polygon(((22, 60), (64, 20), (106, 60)), fill="brown")
    pen.rectangle((56, 84, 74, 118), fill="darkgreen")
    return np.asarray(image)


def as_text(outlines: NDArray[Any]) -> str:
    """A character for each 4 by 2 pixels."""
    cells = outlines.reshape(SIDE // 4, 4, SIDE // 2, 2).max(axis=(1, 3)) > 0
    return "\n".join("".join("#" if cell else " " for cell in row).rstrip() for row in cells)


if __name__ == "__main__":
    sys.exit(main(show, __doc__))
