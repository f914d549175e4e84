"""The ControlNet example with its smallest pipeline: real parts of diffusers, random weights."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator

import numpy as np
import pytest

from services.controlnet.demo import draw
from services.controlnet.model import CancelledError, Order, Painter
from services.controlnet.service import ControlNet, Diffusion, find_outlines
from services.controlnet.v1.controlnet_toolkit import (
    ControlNetClient,
    DiffusionClient,
    GenerateRequest,
    PaintRequest,
    Params,
)
from toolkit.errors import Code, ServiceError, StartError
from toolkit.tensor import DType, Tensor
from toolkit.testing import serve

PARAMS = Params(prompt="a house by the sea", num_inference_steps=2, seed=7)


@pytest.fixture(scope="module")
def diffusion() -> Diffusion:
    return Diffusion(model="tiny")


@pytest.fixture
async def controlnet(diffusion: Diffusion) -> AsyncIterator[ControlNetClient]:
    service = ControlNet()
    async with serve(diffusion, DiffusionClient) as service.diffusion, serve(service, ControlNetClient) as client:
        yield client


def test_outlines_are_where_colours_change() -> None:
    image = np.zeros((64, 64, 3), np.uint8)
    image[:, 32:] = 255
    outlines = find_outlines(image)
    assert set(np.unique(outlines)) == {0, 255}
    assert outlines[:, 30:34].any(axis=1).all()
    assert not outlines[:, :28].any()
    assert not outlines[:, 36:].any()


async def test_a_picture_comes_back_as_large_as_it_went(controlnet: ControlNetClient) -> None:
    reply = await controlnet.generate(GenerateRequest(params=PARAMS, image=Tensor.of(draw())))
    assert reply.image is not None
    assert reply.outlines is not None
    assert (reply.image.dtype, reply.image.shape) == (DType.UINT8, (128, 128, 3))
    assert np.array_equal(reply.outlines.numpy(), find_outlines(draw()))
    assert reply.image.numpy().std() > 0


async def test_the_same_seed_paints_the_same_and_other_outlines_something_else(diffusion: Diffusion) -> None:
    async with serve(diffusion, DiffusionClient) as client:
        ask = PaintRequest(params=PARAMS, outlines=Tensor.of(find_outlines(draw())))
        one, again = [await client.paint(ask) for _ in range(2)]
        scale = Params(prompt=PARAMS.prompt, num_inference_steps=2, seed=8)
        other = await client.paint(PaintRequest(params=scale, outlines=ask.outlines))
    assert one.image == again.image
    assert one.image != other.image


@pytest.mark.parametrize(
    ("params", "image", "fault"),
    [
        (None, draw(), "params.prompt: empty"),
        (Params(prompt=" "), draw(), "params.prompt: empty"),
        (Params(prompt="a house", num_inference_steps=101), draw(), "not in 0 to 100"),
        (Params(prompt="a house", controlnet_conditioning_scale=float("nan")), draw(), "not in 0 to 2"),
        (PARAMS, None, "image: missing"),
        (PARAMS, draw().astype(np.float32), "send uint8"),
        (PARAMS, draw()[:, :, 0], "send uint8"),
        (PARAMS, draw()[:60], "60 by 128 pixels"),
        (PARAMS, np.zeros((64, 1032, 3), np.uint8), "64 by 1032 pixels"),
    ],
)
async def test_a_wrong_request_is_refused_with_its_fault(
    controlnet: ControlNetClient, params: Params | None, image: object, fault: str
) -> None:
    tensor = None if image is None else Tensor.of(image)
    with pytest.raises(ServiceError, match=fault) as refused:
        await controlnet.generate(GenerateRequest(params=params, image=tensor))
    assert refused.value.code is Code.INVALID_ARGUMENT


def test_a_picture_that_nobody_wants_any_more_is_not_finished() -> None:
    steps = 0

    def is_wanted() -> bool:
        nonlocal steps
        steps += 1
        return steps < 3

    order = Order(prompt="a house", negative_prompt="", scale=0.5, steps=100, seed=1)
    with pytest.raises(CancelledError):
        Painter("tiny").paint(find_outlines(draw()), order, is_wanted)
    assert steps == 3


async def test_a_caller_that_leaves_frees_the_model(diffusion: Diffusion) -> None:
    long = Params(prompt="a house", num_inference_steps=100, seed=1)
    outlines = Tensor.of(find_outlines(draw()))
    loop, began, has_left, steps = asyncio.get_running_loop(), asyncio.Event(), threading.Event(), 0

    def count(*step: object) -> None:
        nonlocal steps
        steps += 1
        loop.call_soon_threadsafe(began.set)
        assert has_left.wait(30)

    async with serve(diffusion, DiffusionClient) as client:
        with diffusion._painter._pipe.unet.register_forward_hook(count):
            whole = asyncio.create_task(client.paint(PaintRequest(params=long, outlines=outlines)))
            await began.wait()
            whole.cancel()
            await asyncio.wait([whole])
            has_left.set()
            await client.paint(PaintRequest(params=PARAMS, outlines=outlines))  # comes behind what is left of the first
    assert steps == 1 + PARAMS.num_inference_steps


def test_an_unknown_model_stops_the_start() -> None:
    with pytest.raises(StartError, match="use sdxl"):
        Diffusion(model="huge")
