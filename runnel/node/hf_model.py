"""A causal language model of the transformers library, as a model that a run trains on its text.

Needs the extra ``[hf]``. Rows of bytes become text, and text becomes the model's own tokens, so that
a run's corpus is the same whatever model it tunes.
"""

from __future__ import annotations

import logging
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from runnel.errors import ConfigError, InputFileError
from runnel.optim.putting import put_parameters
from runnel.protocols import Float32

_IGNORED = -100


class HfModel(nn.Module):
    """The model and its tokenizer, from a folder or from the hub; parameters are float32."""

    def __init__(self, source: str) -> None:
        """Loads both.

        Raises:
            ConfigError: transformers is not installed.
            InputFileError: there is no causal language model of that name.
        """
        super().__init__()
        library = _library()
        try:
            self.model = library.AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
            self.tokenizer = library.AutoTokenizer.from_pretrained(source)
        except (OSError, ValueError, KeyError) as error:
            reason = " ".join(str(error).split())[:160]
            raise InputFileError(
                f"{source!r} gives no causal language model ({reason}): name a folder with its files"
                " with --source, or one of the hub in model.source"
            ) from None
        if self.tokenizer.pad_token is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token
        self.eval()

    def loss(self, batch: Tensor) -> Tensor:
        """Mean cross-entropy in nats per token, a scalar, of rows of text as bytes, int64 [rows, bytes].

        Characters that a row's edge cuts are left out.
        """
        rows = [bytes(row).decode(errors="ignore") for row in batch.to(torch.uint8).tolist()]
        tokens = self.tokenizer(rows, return_tensors="pt", padding=True)
        labels = tokens["input_ids"].masked_fill(tokens["attention_mask"] == 0, _IGNORED)
        loss: Tensor = self.model(
            input_ids=tokens["input_ids"],
            attention_mask=tokens["attention_mask"],
            labels=labels,
            use_cache=False,
        ).loss
        return loss


def save_tuned(source: str, parameters: dict[str, Float32], out: Path) -> None:
    """Writes a folder that transformers loads: the source with these weights in place of its own.

    Raises:
        ConfigError: transformers is not installed, or there is something at `out`.
        InputFileError: the source is no causal language model, or another one than was tuned.
    """
    if out.exists():
        raise ConfigError(f"{out} exists, expected no such folder: choose another --out")
    tuned = HfModel(source)
    misfit = put_parameters(tuned, parameters)
    if misfit is not None:
        raise InputFileError(
            f"{source!r} has parameter {misfit.name!r} as {misfit.held}, the run as"
            f" {misfit.given}: name the model that the run tuned with --source"
        )
    tuned.model.save_pretrained(out)
    tuned.tokenizer.save_pretrained(out)


def _library() -> Any:
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        import transformers
    except ImportError:
        raise ConfigError(
            "the run tunes a model of the transformers library, which is not installed: pip install"
            " 'runnel[hf]'"
        ) from None
    with suppress(AttributeError):
        transformers.utils.logging.disable_progress_bar()
    for name in ("transformers", "huggingface_hub"):
        logging.getLogger(name).setLevel(logging.ERROR)
    return transformers
