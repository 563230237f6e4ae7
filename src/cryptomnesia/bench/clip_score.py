"""How well pictures fit their captions by CLIP.

The score is the cosine of CLIP's embeddings of a picture and of a caption, in [-1, 1]. It is not scaled: Hessel et al.
(arXiv:2104.08718) report 2.5 · max(cosine, 0), others 100 · max(cosine, 0).
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cryptomnesia.errors import UsageError
from cryptomnesia.pipelines.contents.walk import Walk
from cryptomnesia.pipelines.contents.weights import digest, weights_of
from cryptomnesia.pipelines.origins.failures import explained
from cryptomnesia.pipelines.origins.notices import heard
from cryptomnesia.pipelines.origins.parts import check_complete


class ClipScore:
    """The cosine of the embeddings of pictures and captions.

    Attributes:
        weights: digest of the network's weights.
    """

    def __init__(self, network: Any, tokenizer: Any, processor: Any, *, batch_size: int = 32) -> None:
        """Take the parts of a CLIP model.

        Args:
            network: a `CLIPModel` of transformers.
            tokenizer: of its captions.
            processor: makes the network's input from pictures.
            batch_size: pictures that the network embeds at once.
        """
        self.weights = digest("CLIP model", network, weights_of("CLIP model", Walk.through(network)))
        self._network, self._tokenizer, self._processor = network, tokenizer, processor
        self._batch_size = batch_size

    @classmethod
    def load(cls, model: str | Path, *, device: Any = "cpu", batch_size: int = 32) -> "ClipScore":
        """Load a CLIP model in single precision.

        Args:
            model: a folder in which transformers saved a `CLIPModel`, its tokenizer and its image processor, or a hub
                id such as `org/name`.
            device: where the network computes, for instance `cuda`.
            batch_size: pictures that the network embeds at once.

        Raises:
            UsageError: if there is no such model, if it is no CLIP model, or if a part is missing or does not fit.
        """
        from transformers import AutoConfig, AutoImageProcessor, AutoTokenizer, CLIPModel

        name = str(model)
        folder = Path(name) if name.strip() and Path(name).is_dir() else None
        if folder is None and (name.count("/") != 1 or name.startswith((".", "/", "~"))):
            raise UsageError(
                f"no CLIP model {name!r}; give a folder in which transformers saved one, or a hub id such as org/name"
            )
        subject = f"CLIP model {name!r}"
        try:
            with heard() as warned:
                kind = AutoConfig.from_pretrained(name).model_type
                if kind != "clip":
                    raise UsageError(f"{name} holds a model of the type {kind}; give one of the type clip")
                network: Any = CLIPModel.from_pretrained(name, dtype=torch.float32)
                tokenizer = AutoTokenizer.from_pretrained(name)
                # torchvision, if it is installed, resizes a little differently
                processor = AutoImageProcessor.from_pretrained(name, backend="pil")
            check_complete(subject, warned)
            # transformers makes an empty tokenizer where the files of one are missing
            words, most = len(tokenizer), network.config.text_config.vocab_size
            if not len(tokenizer.all_special_tokens) < words <= most:
                raise UsageError(
                    f"{name} has a tokenizer of {words} tokens for a network of {most}, or no files of one; copy the "
                    "tokenizer of the CLIP model into it"
                )
            made = cls(network.eval().to(device), tokenizer, processor, batch_size=batch_size)
            # a processor that does not fit is found out before the pictures of a bench are made
            made(["a"], np.zeros((1, 64, 64, 3), dtype=np.uint8))
        except UsageError:
            raise
        # transformers has errors of many kinds
        except Exception as error:
            raise explained(subject, error, folder=folder) from error
        return made

    @torch.no_grad()
    def __call__(self, captions: Sequence[str], pictures: np.ndarray) -> list[float]:
        """The score of every picture with its caption.

        A caption that is longer than CLIP reads is cut off as CLIP does it: its first tokens are kept, and the one that
        ends a caption behind them (75 and the end, for the models of OpenAI).

        Args:
            captions: one per picture.
            pictures: (B, H, W, 3) uint8.

        Returns:
            B cosines, in [-1, 1].
        """
        scores: list[float] = []
        for start in range(0, len(captions), self._batch_size):
            part = slice(start, start + self._batch_size)
            # padded to the same length in every batch, so that a score hardly depends on the other captions
            longest = self._network.config.text_config.max_position_embeddings
            texts = self._tokenizer(
                list(captions[part]), padding="max_length", truncation=True, max_length=longest, return_tensors="pt"
            )
            pixels = self._processor(list(pictures[part]), input_data_format="channels_last", return_tensors="pt")
            device = self._network.device
            found = self._network(
                input_ids=texts["input_ids"].to(device),
                attention_mask=texts["attention_mask"].to(device),
                pixel_values=pixels["pixel_values"].to(device),
            )
            # both have length 1
            scores += (found.image_embeds * found.text_embeds).sum(dim=1).tolist()
        return scores
