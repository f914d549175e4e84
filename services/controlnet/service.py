"""Outlines on cores, painting on a GPU: two services with needs of their own, pictures as tensors between them."""

from __future__ import annotations

import asyncio
import secrets
import threading
from typing import Any, Final

import cv2
import numpy as np
from numpy.typing import NDArray

from services.controlnet.model import Order, Painter
from services.controlnet.v1.controlnet_toolkit import (
    ControlNetBase,
    DiffusionBase,
    DiffusionClient,
    GenerateReply,
    GenerateRequest,
    PaintRequest,
    Params,
    Picture,
)
from toolkit.blocking import ModelThread
from toolkit.context import Context
from toolkit.errors import Code, ServiceError
from toolkit.service import depends
from toolkit.tensor import DType, Tensor

SIDES: Final = range(64, 1025, 8)
USUAL_STEPS: Final = 25
MAX_STEPS: Final = 100
USUAL_SCALE: Final = 0.5
WEAK, STRONG = 100, 200
"""Canny's thresholds: an outline starts at a strong edge, and goes on along weak ones."""


class Diffusion(DiffusionBase):
    """One pipeline on one device, one picture at a time."""

    def __init__(self, *, model: str = "sdxl", device: str = "cpu") -> None:
        self._painter = Painter(model, device)
        self._thread = ModelThread()

    async def paint(self, request: PaintRequest, context: Context) -> Picture:
        order = _order(request.params)
        outlines = _pixels(request.outlines, "outlines", 2)
        cancelled = threading.Event()
        try:
            image = await self._thread.run(self._painter.paint, outlines, order, lambda: not cancelled.is_set())
        finally:
            cancelled.set()  # where the caller has gone, the model stops at its next step
        return Picture(image=Tensor.of(image))


class ControlNet(ControlNetBase):
    diffusion = depends(DiffusionClient)

    async def generate(self, request: GenerateRequest, context: Context) -> GenerateReply:
        _order(request.params)  # refused here, before there is any work
        outlines = Tensor.of(await asyncio.to_thread(find_outlines, _pixels(request.image, "image", 3)))
        picture = await self.diffusion.paint(PaintRequest(params=request.params, outlines=outlines))
        return GenerateReply(image=picture.image, outlines=outlines)


def find_outlines(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """[height, width, 3] → [height, width], 255 on an outline, else 0.

    Source: Canny, A Computational Approach to Edge Detection, 1986.
    """
    return np.asarray(cv2.Canny(np.ascontiguousarray(image), WEAK, STRONG), np.uint8)


def _order(params: Params | None) -> Order:
    if params is None or not params.prompt.strip():
        raise ServiceError(Code.INVALID_ARGUMENT, "params.prompt: empty; say what to paint")
    if not 0 <= params.num_inference_steps <= MAX_STEPS:
        said = f"params.num_inference_steps: {params.num_inference_steps} is not in 0 to {MAX_STEPS}"
        raise ServiceError(Code.INVALID_ARGUMENT, said)
    scale = params.controlnet_conditioning_scale
    if scale is not None and not 0 <= scale <= 2:
        raise ServiceError(Code.INVALID_ARGUMENT, f"params.controlnet_conditioning_scale: {scale:g} is not in 0 to 2")
    return Order(
        prompt=params.prompt,
        negative_prompt=params.negative_prompt,
        scale=USUAL_SCALE if scale is None else scale,
        steps=params.num_inference_steps or USUAL_STEPS,
        seed=secrets.randbits(32) if params.seed is None else params.seed,
    )


def _pixels(tensor: Tensor | None, name: str, rank: int) -> NDArray[Any]:
    wanted = "uint8 [height, width]" if rank == 2 else "uint8 [height, width, 3]"
    if tensor is None or tensor.dtype != DType.UINT8 or tensor.ndim != rank or tensor.shape[2:] not in ((), (3,)):
        raise ServiceError(Code.INVALID_ARGUMENT, f"{name}: {'missing' if tensor is None else tensor}; send {wanted}")
    if any(side not in SIDES for side in tensor.shape[:2]):
        height, width = tensor.shape[:2]
        said = f"{name}: {height} by {width} pixels; sides must be multiples of 8 from {SIDES[0]} to {SIDES[-1]}"
        raise ServiceError(Code.INVALID_ARGUMENT, said)
    return tensor.numpy()
