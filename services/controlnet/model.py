"""A diffusion model that paints along outlines. Knows nothing of calls; every method blocks.

`sdxl` is the real one, from the Hugging Face hub, for a GPU of 24 GiB or so. `tiny` has the same parts and random weights: it
shows that everything fits together, on any machine, and paints noise.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import diffusers as typed_diffusers
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer
from transformers.convert_slow_tokenizer import bytes_to_unicode

from services.models import known_device
from toolkit.errors import StartError
from toolkit.service import progress

diffusers: Any = typed_diffusers
"""Its annotations do not allow what its documentation shows."""
CONTROLNET_MODEL: Final = "diffusers/controlnet-canny-sdxl-1.0"
VAE_MODEL: Final = "madebyollin/sdxl-vae-fp16-fix"
BASE_MODEL: Final = "stabilityai/stable-diffusion-xl-base-1.0"


class CancelledError(Exception):
    """Nobody waits for the picture any more."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Order:
    """What to paint, and how."""

    prompt: str
    negative_prompt: str
    scale: float
    steps: int
    seed: int


class Painter:
    """The pipeline and its weights. Use it from one thread at a time."""

    def __init__(self, model: str, device: str = "cpu") -> None:
        """`model` is `sdxl` or `tiny`. Raises StartError."""
        place = known_device(device)
        if model not in ("sdxl", "tiny"):
            raise StartError(f"model {model!r}: use sdxl, for a GPU, or tiny, which needs no hub and paints noise")
        self._pipe = _tiny() if model == "tiny" else _sdxl(place)
        self._pipe.to(place)
        self._pipe.set_progress_bar_config(disable=True)

    def paint(self, outlines: NDArray[np.uint8], order: Order, is_wanted: Callable[[], bool]) -> NDArray[np.uint8]:
        """[height, width] → [height, width, 3]. Raises CancelledError at the next step once it is not wanted any more."""

        def look(pipe: Any, step: int, at: Any, values: dict[str, Any]) -> dict[str, Any]:
            if not is_wanted():
                raise CancelledError
            return values

        found = self._pipe(
            order.prompt,
            negative_prompt=order.negative_prompt,
            image=Image.fromarray(np.stack([outlines] * 3, axis=2)),
            controlnet_conditioning_scale=order.scale,
            num_inference_steps=order.steps,
            generator=torch.Generator().manual_seed(order.seed),
            callback_on_step_end=look,
            output_type="np",
        ).images[0]
        return np.asarray(np.rint(np.nan_to_num(found) * 255), np.uint8)


def _sdxl(device: torch.device) -> Any:
    """Half precision on a GPU, where this VAE is the one that bears it."""
    dtype = torch.float32 if device.type == "cpu" else torch.float16
    options = {"torch_dtype": dtype, "use_safetensors": True}
    try:
        progress(f"load {CONTROLNET_MODEL}")
        controlnet = diffusers.ControlNetModel.from_pretrained(CONTROLNET_MODEL, **options)
        progress(f"load {VAE_MODEL}")
        vae = diffusers.AutoencoderKL.from_pretrained(VAE_MODEL, **options)
        progress(f"load {BASE_MODEL}")
        return diffusers.StableDiffusionXLControlNetPipeline.from_pretrained(
            BASE_MODEL, controlnet=controlnet, vae=vae, add_watermarker=False, **options
        )
    except OSError as error:
        first = str(error).partition("\n")[0]
        raise StartError(f"model 'sdxl': {first}; use tiny, which needs no hub and paints noise") from error


def _tiny() -> Any:
    """SDXL's parts, as small as they go: a million weights, drawn at random, the same every time."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        unet = diffusers.UNet2DConditionModel(
            sample_size=32,
            block_out_channels=(32, 64),
            layers_per_block=1,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            attention_head_dim=(2, 4),
            use_linear_projection=True,
            addition_embed_type="text_time",
            addition_time_embed_dim=8,
            projection_class_embeddings_input_dim=80,  # six times 8, and what the second text encoder projects to
            transformer_layers_per_block=(1, 1),
            cross_attention_dim=64,
            norm_num_groups=8,
        )
        vae = diffusers.AutoencoderKL(
            block_out_channels=(16, 16, 32, 32),
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            latent_channels=4,
            norm_num_groups=8,
        )
        tokenizer = _tokenizer()
        text = CLIPTextConfig(
            vocab_size=len(tokenizer),
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
            hidden_size=32,
            intermediate_size=64,
            num_attention_heads=4,
            num_hidden_layers=2,
            projection_dim=32,
        )
        return diffusers.StableDiffusionXLControlNetPipeline(
            vae=vae,
            text_encoder=CLIPTextModel(text),
            text_encoder_2=CLIPTextModelWithProjection(text),
            tokenizer=tokenizer,
            tokenizer_2=tokenizer,
            unet=unet,
            controlnet=diffusers.ControlNetModel.from_unet(unet),
            scheduler=diffusers.DDIMScheduler(),
            add_watermarker=False,
        )


def _tokenizer() -> Any:
    """One token a byte, within a word and at its end."""
    letters = list(bytes_to_unicode().values())
    words = [*letters, *(letter + "</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(vocab={word: place for place, word in enumerate(words)}, merges=[], model_max_length=77)
