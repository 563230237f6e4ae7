"""SSCD (Pizzi et al., CVPR 2022, arXiv:2202.10261): a network whose embeddings of copies lie close together.

The weights are not part of this package. The authors of SSCD publish them as TorchScript. Give the path of that file,
or of the same network as ONNX, which needs the extra `onnx`.

Preprocessing is that of the authors: a square of 288 (or 320) pixels, normalized by ImageNet's mean and standard
deviation. Embeddings have length 1 and are stored times √P, so that the distance of two pictures, a root mean square
difference, is √(2 − 2·cosine).
"""

import copy
import hashlib
import io
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cryptomnesia.errors import UsageError

_MEAN = (0.485, 0.456, 0.406)
_DEVIATION = (0.229, 0.224, 0.225)

Network = Callable[[Tensor], Tensor]
"""Pictures (B, 3, side, side) to embeddings (B, P)."""


class SSCD:
    """A copy-detection network as `Descriptor`. Its numbers belong to no place in the picture, so it takes no masks.

    A process that gets a copy by pickle loads the network from the same path.

    Attributes:
        name: `sscd`, a hash of the file and the side.
        side: side of the square pictures that the network takes, in pixels.
        shape: (1, P), with P the width of the embedding.
        device: where the network computes.
    """

    def __init__(
        self, path: str | Path, *, side: int = 288, batch_size: int = 32, device: str | torch.device = "cpu"
    ) -> None:
        """Load the network.

        Args:
            path: an ONNX file if its name ends in `.onnx`, else a TorchScript file.
            side: side of the square pictures that the network takes, in pixels.
            batch_size: pictures that the network embeds at once.
            device: where the network computes, for instance `cuda`.

        Raises:
            UsageError: if there is no such device, if the file is missing or holds no network that embeds pictures, or
                if it is an ONNX file and the extra `onnx` is not installed.
        """
        self._path, self.device = Path(path), device
        self.side = side
        self.name = ""
        self._batch_size = batch_size
        self._network: Network | None = self._loaded()
        try:
            rows, width = self._embed(torch.zeros(2, 3, side, side)).shape
            if rows != 2:
                raise ValueError(f"2 pictures gave {rows} embeddings")
        except Exception as error:
            raise UsageError(f"{path} embeds no pictures ({_short(error)}); give the file of SSCD's authors") from None
        self.shape = (1, width)

    def __getstate__(self) -> dict[str, Any]:
        """Everything but the network."""
        return {**self.__dict__, "_path": self._path.absolute(), "_network": None}

    def on(self, device: str | torch.device) -> "SSCD":
        """The same network for another device, which this machine need not have: it is loaded when it computes."""
        made = copy.copy(self)
        made.device = device
        return made

    def describe(self, pictures: Tensor) -> Tensor:
        """The embeddings, (B, 1, P), of length √P."""
        embeddings = torch.cat([self._embed(portion) for portion in pictures.split(self._batch_size)])
        return torch.nn.functional.normalize(embeddings, dim=1)[:, None] * self.shape[1] ** 0.5

    def weights(self, masks: Tensor) -> Tensor:
        """Refuse masks: an embedding describes the whole picture.

        Raises:
            UsageError: always.
        """
        raise UsageError("SSCD compares whole pictures; compare regions with the tiles descriptor")

    def contrast(self, described: Tensor, weights: Tensor) -> Tensor:
        """1 for every picture, (n,): an embedding does not tell how much is to be seen."""
        return described.new_ones(len(described))

    def _loaded(self) -> Network:
        """The network in the file, whose name is set, or has to be the one that it was."""
        path, device = self._path, checked_device(self.device)
        form, load = ("ONNX", _onnx) if path.suffix.lower() == ".onnx" else ("TorchScript", _torchscript)
        try:
            content = path.read_bytes()
        except OSError as error:
            raise UsageError(f"no file {path} ({error.strerror}); give the one of SSCD's authors") from None
        name = f"sscd {hashlib.sha256(content).hexdigest()[:12]}, {self.side} pixels"
        if self.name not in ("", name):
            raise UsageError(f"{path} has changed, or is another file on another machine; share one file of SSCD")
        self.name = name
        try:
            return load(content, device)
        except UsageError:
            raise
        # the exceptions of onnxruntime have no base class of their own
        except Exception as error:
            raise UsageError(f"{path} is no {form} file ({_short(error)}); give the one of SSCD's authors") from None

    @torch.no_grad()
    def _embed(self, pictures: Tensor) -> Tensor:
        if self._network is None:
            self._network = self._loaded()
        mean, deviation = (torch.tensor(values).view(3, 1, 1) for values in (_MEAN, _DEVIATION))
        return self._network(((pictures - mean) / deviation).to(self.device)).float().cpu()


def checked_device(device: str | torch.device) -> torch.device:
    """A device on which something has been computed.

    Raises:
        UsageError: if there is none of this name.
    """
    try:
        found = torch.device(device)
        torch.zeros(1, device=found).cpu()
    # a build of torch without the device asserts, a machine without it raises, and `meta` holds no numbers
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        have = ", ".join(["cpu", *(["cuda"] if torch.cuda.is_available() else [])])
        raise UsageError(f"got device {str(device)!r}, which cannot be used ({_short(error)}); have {have}") from None
    return found


def _torchscript(content: bytes, device: torch.device) -> Network:
    with warnings.catch_warnings():
        # torch recommends another format, but the authors publish this one
        warnings.simplefilter("ignore", DeprecationWarning)
        return torch.jit.load(io.BytesIO(content), map_location=device).eval()


def _onnx(content: bytes, device: torch.device) -> Network:
    try:
        import onnxruntime
    except ImportError:
        raise UsageError("an ONNX file needs onnxruntime; pip install 'cryptomnesia[onnx]'") from None
    providers = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
    if providers.get(device.type) not in onnxruntime.get_available_providers():
        raise UsageError(
            f"this onnxruntime cannot compute on {device}; pip install onnxruntime-gpu, or give the TorchScript file"
        )
    provider: Any = providers[device.type]
    if device.index is not None:
        provider = (provider, {"device_id": device.index})
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3  # errors are raised, so they need not be logged too
    # weights in a second file would not be part of the hash, so onnxruntime must not find such a file
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", "/no second file")
    session = onnxruntime.InferenceSession(content, options, providers=[provider])
    name = session.get_inputs()[0].name
    return lambda pictures: torch.as_tensor(session.run(None, {name: pictures.cpu().numpy()})[0])


def _short(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
