"""SSCD (Pizzi et al., CVPR 2022): an embedding in which copies of a picture lie close together.

The weights are not part of this package. Their authors publish them as TorchScript; give the path of that file.
Preprocessing is the authors': a square of 288 (or 320) pixels, ImageNet's mean and deviation. Embeddings have length 1,
and are stored times √P, so that the distance of two pictures, the root mean square difference, is √(2 − 2·cosine).
"""

import hashlib
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cryptomnesia.errors import UsageError

_MEAN = (0.485, 0.456, 0.406)
_DEVIATION = (0.229, 0.224, 0.225)


class SSCD:
    """A TorchScript copy-detection network as `Descriptor`; its numbers belong to no place, so it takes no masks.

    Attributes:
        name: with a hash of the file.
        side: of the pictures that the network is given.
        shape: (1, P).
    """

    def __init__(self, path: Path, *, side: int = 288, batch_size: int = 32) -> None:
        """Load the network.

        Raises:
            UsageError: for a file that is missing or no TorchScript of an embedding of pictures.
        """
        try:
            digest = hashlib.sha256(path.read_bytes()).hexdigest()
            with warnings.catch_warnings():
                # torch would rather have another format, but this is the one that the authors publish
                warnings.simplefilter("ignore", DeprecationWarning)
                self._network: Any = torch.jit.load(path, map_location="cpu").eval()
        except FileNotFoundError:
            raise UsageError(f"no file {path}; give the TorchScript file of SSCD's authors") from None
        except (RuntimeError, OSError) as error:
            reason = " ".join(str(error).split())[:200]
            raise UsageError(f"{path} is no TorchScript file ({reason}); give the one of SSCD's authors") from None
        self.side = side
        self._batch_size = batch_size
        try:
            width = self._embed(torch.zeros(1, 3, side, side)).shape[-1]
        except (RuntimeError, AttributeError) as error:
            reason = " ".join(str(error).split())[:200]
            raise UsageError(f"{path} embeds no pictures ({reason}); give the file of SSCD's authors") from None
        self.shape = (1, width)
        self.name = f"sscd {digest[:12]}, {side} pixels"

    def describe(self, pictures: Tensor) -> Tensor:
        """The embeddings, (B, 1, P), of length √P."""
        found = torch.cat([self._embed(some) for some in pictures.split(self._batch_size)])
        return torch.nn.functional.normalize(found, dim=1)[:, None] * self.shape[1] ** 0.5

    def weights(self, masks: Tensor) -> Tensor:
        """Refused: an embedding is of the whole picture."""
        raise UsageError("SSCD compares whole pictures; compare regions with the tiles descriptor")

    @torch.no_grad()
    def _embed(self, pictures: Tensor) -> Tensor:
        mean, deviation = (torch.tensor(values).view(3, 1, 1) for values in (_MEAN, _DEVIATION))
        return self._network((pictures - mean) / deviation).float()
