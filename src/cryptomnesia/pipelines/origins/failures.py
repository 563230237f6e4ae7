"""Errors of loading, in one line: what was got, what was expected, and the fix."""

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from cryptomnesia.errors import UsageError

_LONGEST = 300
"""Letters of an error of another package that are shown."""

_PACKAGES = ("sentencepiece", "protobuf", "tiktoken", "bitsandbytes", "torchao", "gguf", "peft", "accelerate")
"""Packages that some models need, by the names under which they are installed."""


def explained(
    subject: str, error: BaseException, *, folder: Path | None = None, variant: str | None = None
) -> UsageError:
    """The error of a library as one line.

    Args:
        subject: what was loaded, for instance "model 'org/name'".
        error: that was raised.
        folder: from which the model was loaded, None for the hub.
        variant: of the files that were asked for.
    """
    if isinstance(error, UsageError):
        return error
    reason = _of_hub(error) or _of_package(error) or _of_device(error) or _of_files(error, folder, variant)
    if reason is None:
        words = " ".join(str(error).split())
        if not words or not isinstance(error, OSError | ValueError | RuntimeError):
            words = f"{type(error).__name__}: {words}"
        reason = words if len(words) <= _LONGEST else f"{words[: _LONGEST - 1]}…"
    return UsageError(f"{subject} cannot be loaded: {reason}")


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """An error and those that led to it."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _of_hub(error: BaseException) -> str | None:
    from huggingface_hub import errors

    log_in = "log in with `hf auth login`"
    cached = "its files are not all in the local cache"
    known = {
        errors.GatedRepoError: f"its terms have to be accepted on its page of the hub; do so, and {log_in}",
        errors.RepositoryNotFoundError: f"the hub has no such model, or it is private; check the name, or {log_in}",
        errors.RevisionNotFoundError: "the hub does not have this revision of it; check --revision",
        errors.HFValidationError: "this is no name of a model; give a local folder, or a hub id such as org/name",
        errors.LocalEntryNotFoundError: f"the hub cannot be reached, and {cached}; check the connection, or give a "
        "local folder",
        errors.OfflineModeIsEnabled: f"the hub must not be asked (HF_HUB_OFFLINE), and {cached}; unset it, or give a "
        "local folder",
        errors.EntryNotFoundError: "the hub's repository lacks a file that is needed; give that of a diffusers model",
    }
    links = list(_chain(error))
    for link in links:
        for kind, reason in known.items():
            if isinstance(link, kind):
                return reason
    for link in links:
        status = getattr(getattr(link, "response", None), "status_code", None)
        if isinstance(link, errors.HfHubHTTPError) and status is not None:
            return (
                f"the hub answers with the status {status}; log in with `hf auth login` for 401 and 403, or try later"
            )
        if isinstance(link, ConnectionError | TimeoutError) or "connect to the Hub" in str(link):
            return "the hub cannot be reached; check the connection, or give a local folder"
    return None


def _of_package(error: BaseException) -> str | None:
    for link in _chain(error):
        text = " ".join(str(link).split())
        asked = isinstance(link, ImportError) or any(word in text for word in ("nstall", "requires", "instantiate"))
        for package in _PACKAGES if asked else ():
            if package in text.lower():
                return f"it needs the package {package}; pip install {package}"
        if isinstance(link, ModuleNotFoundError) and link.name:
            return f"it needs the package {link.name}, which is not installed; install it"
    return None


def _of_device(error: BaseException) -> str | None:
    import torch

    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return "it does not fit into the memory; give --dtype float16 or bfloat16, or another --device"
    return None


def _of_files(error: BaseException, folder: Path | None, variant: str | None) -> str | None:
    """What is wrong with the files of a folder."""
    text = " ".join(str(error).split())
    if folder is not None and (broken := _broken(folder)) is not None:
        return broken
    if "no such modeling files" in text or "no file named" in text:
        variants = variants_in(folder) if folder is not None else []
        if variant is not None:
            has = f"has the variants {', '.join(variants)}" if variants else "has no variants"
            return f"got the variant {variant!r}, and it {has}; give one that it has, or leave --variant out"
        if variants:
            return f"it has its weights as the variant {' and '.join(variants)} only; give --variant {variants[0]}"
        return f"{text.removeprefix('Error ').rstrip('.')}; copy or download it again"
    if "meta tensor" in text:
        return "weights are missing from it; copy or download it again"
    if "expected shape" in text or "size mismatch" in text or "ignore_mismatched_sizes" in text:
        detail = f" ({text[:120]}…)" if "shape" in text or "size mismatch" in text else ""
        return f"its weights have other shapes than its configuration says{detail}; give files of one model"
    return None


def variants_in(folder: Path) -> list[str]:
    """The variants of weights in a diffusers folder: `fp16` for `diffusion_pytorch_model.fp16.safetensors`."""
    found = set()
    for path in folder.glob("*/*model*.safetensors"):
        parts = path.name.split(".")
        if len(parts) == 3 and not parts[1].isdigit():
            found.add(parts[1].split("-")[0])
    return sorted(found)


def _broken(folder: Path) -> str | None:
    """What is wrong with the first safetensors file in a folder that cannot be read, None if all can be read."""
    from safetensors import SafetensorError, safe_open

    for path in sorted([*folder.glob("*.safetensors"), *folder.glob("*/*.safetensors")]):
        try:
            with safe_open(path, "pt"):
                pass
        except (SafetensorError, OSError):
            with suppress(OSError), path.open("rb") as file:
                if file.read(20).startswith(b"version https://git"):
                    return f"{path} is only a pointer of Git LFS; run `git lfs pull` in the folder"
            return f"{path} is damaged or incomplete; copy or download it again"
    return None
