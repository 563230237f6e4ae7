from types import SimpleNamespace

import pytest
import torch
from diffusers import DiffusionPipeline
from huggingface_hub import errors

from cryptomnesia import UsageError, load_pipeline
from cryptomnesia.pipelines.origins.failures import explained


def answer(status):
    return SimpleNamespace(status_code=status, headers={}, request=None)


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (
            errors.GatedRepoError("403", response=answer(403)),
            "its terms have to be accepted on its page of the hub",
        ),
        (
            errors.RepositoryNotFoundError("404", response=answer(404)),
            "the hub has no such model, or it is private",
        ),
        (errors.RevisionNotFoundError("404", response=answer(404)), "the hub does not have this revision of it; check"),
        (
            errors.LocalEntryNotFoundError("gone"),
            "the hub cannot be reached, and its files are not all in the",
        ),
        (errors.EntryNotFoundError("404"), "the hub's repository lacks a file that is needed"),
        (errors.OfflineModeIsEnabled("off"), r"the hub must not be asked \(HF_HUB_OFFLINE\), and its files"),
        (errors.HFValidationError("a/b c"), "this is no name of a model; give a local folder, or a hub id"),
        (errors.HfHubHTTPError("401", response=answer(401)), "the hub answers with the status 401; log in with"),
        (ConnectionError("no route"), "the hub cannot be reached; check the connection"),
        (
            ImportError("T5Tokenizer requires the SentencePiece library"),
            "needs the package sentencepiece; pip install",
        ),
        (ValueError("Couldn't instantiate the backend tokenizer: install protobuf"), "needs the package protobuf; pip"),
        (ImportError("Using `bitsandbytes` 4-bit quantization requires it"), "needs the package bitsandbytes; pip"),
        (
            ModuleNotFoundError("No module named 'tarot'", name="tarot"),
            "needs the package tarot, which is not",
        ),
        (
            torch.OutOfMemoryError("CUDA out of memory"),
            "does not fit into the memory; give --dtype float16",
        ),
        (KeyError("conv_in"), "cannot be loaded: KeyError: 'conv_in'"),
        (OSError(), "cannot be loaded: OSError"),
        (RuntimeError("first\nsecond " + "x" * 1000), "cannot be loaded: first second x+…$"),
    ],
)
def test_errors_of_loading_are_one_line(monkeypatch, error, message):
    def refuse(*_, **__):
        raise error

    monkeypatch.setattr(DiffusionPipeline, "load_config", refuse)
    with pytest.raises(UsageError, match=message) as refused:
        load_pipeline("org/name", device="cpu")
    assert str(refused.value).startswith("model 'org/name' cannot be loaded: ")
    assert "\n" not in str(refused.value)
    assert len(str(refused.value)) < 400
    assert refused.value.__cause__ is error


def test_the_cause_counts_when_an_error_was_wrapped():
    error = OSError("v2 is not a valid git identifier")
    error.__context__ = errors.RevisionNotFoundError("404", response=answer(404))
    assert "check --revision" in str(explained("model 'a/b'", error))
    own = UsageError("as it is")
    assert explained("model", own) is own
