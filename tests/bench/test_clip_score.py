"""Scores of a CLIP model with random weights."""

import numpy as np
import pytest
import torch
from transformers import CLIPTextModel

from clip_models import network, save
from cryptomnesia import UsageError
from cryptomnesia.bench.clip_score import ClipScore
from cryptomnesia.testing.miniatures.parts import LONGEST, text_config, tokens

CAPTIONS = ["a red circle", "a blue star on the white ground", "a pink heart", "star", "a red circle"]
PICTURES = np.random.default_rng(0).integers(0, 256, (5, 24, 24, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save(tmp_path_factory.mktemp("clip"))


@pytest.fixture
def clip(folder):
    return ClipScore.load(folder)


def embeddings(clip, caption, picture):
    """What the network makes of a caption, (D,), and of a picture before its projection, (V,)."""
    network, seen = clip._network, {}
    hook = network.visual_projection.register_forward_hook(lambda _, given, made: seen.update(given=given[0][0]))
    text = network.text_projection.register_forward_hook(lambda _, given, made: seen.update(text=made[0]))
    clip([caption], picture[None])
    hook.remove()
    text.remove()
    return seen["text"].clone(), seen["given"].clone()


@pytest.mark.parametrize("factor", [3.0, -0.5])
def test_a_picture_with_the_embedding_of_its_caption_has_the_cosine_1_and_with_the_opposite_one_minus_1(clip, factor):
    text, given = embeddings(clip, CAPTIONS[0], PICTURES[0])
    # W·given = factor·text
    weight = factor * torch.outer(text, given) / given.square().sum()
    clip._network.visual_projection.weight.data = weight
    assert clip(CAPTIONS[:1], PICTURES[:1]) == pytest.approx([np.sign(factor)], abs=1e-5)


def test_a_picture_whose_embedding_is_orthogonal_to_that_of_its_caption_has_the_cosine_0(clip):
    text, given = embeddings(clip, CAPTIONS[0], PICTURES[0])
    other = torch.randn(len(text), generator=torch.Generator().manual_seed(0))
    other -= text * (other @ text) / text.square().sum()
    clip._network.visual_projection.weight.data = torch.outer(other, given)
    assert clip(CAPTIONS[:1], PICTURES[:1]) == pytest.approx([0], abs=1e-5)


def test_scores_do_not_depend_on_the_batch(clip, folder):
    scores = clip(CAPTIONS, PICTURES)
    assert len(set(scores)) == 5
    assert all(-1 <= score <= 1 for score in scores)
    assert ClipScore.load(folder, batch_size=2)(CAPTIONS, PICTURES) == pytest.approx(scores, abs=1e-6)
    alone = [clip([caption], picture[None])[0] for caption, picture in zip(CAPTIONS, PICTURES, strict=True)]
    assert alone == pytest.approx(scores, abs=1e-6)
    assert clip([], PICTURES[:0]) == []


def test_a_caption_that_is_too_long_is_cut_off(clip):
    # one token begins a caption, one ends it
    fits = " ".join(["red"] * (LONGEST - 2))
    scores = clip([fits, f"{fits} star", f"{fits} blue heart", fits[4:]], PICTURES[[0] * 4])
    assert scores[1] == scores[2] == pytest.approx(scores[0], abs=1e-6)
    assert scores[3] != pytest.approx(scores[0], abs=1e-6)


def test_the_digest_is_that_of_the_weights(clip, folder, tmp_path):
    assert ClipScore.load(folder).weights == clip.weights
    assert ClipScore.load(save(tmp_path, seed=1)).weights != clip.weights


def test_a_model_that_is_no_whole_clip_model_is_refused_in_one_line(tmp_path):
    text = tmp_path / "text"
    CLIPTextModel(text_config()).save_pretrained(text)
    tokens().save_pretrained(text)
    empty = tmp_path / "empty"
    empty.mkdir()
    part = save(tmp_path / "part")
    whole = network()
    state = {name: value for name, value in whole.state_dict().items() if "text_projection" not in name}
    whole.save_pretrained(part, state_dict=state)
    fewer = save(tmp_path / "fewer")
    (fewer / "preprocessor_config.json").write_text(
        (fewer / "preprocessor_config.json").read_text().replace("16", "24")
    )
    for given, message in (
        (tmp_path / "nothing", "no CLIP model .*; give a folder in which transformers saved one, or a hub id"),
        ("", "no CLIP model ''"),
        ("org/name", "'org/name' cannot be loaded: "),
        (empty, "cannot be loaded: "),
        (text, "holds a model of the type clip_text_model; give one of the type clip"),
        (part, r"weights are missing, which would be random numbers \(text_projection.weight\)"),
        (save(tmp_path / "mute", tokenizer=False), r"has a tokenizer of 2 tokens for a network of \d+, or no files"),
        (save(tmp_path / "blind", processor=False), "cannot be loaded: .*image processor"),
        (fewer, r"cannot be loaded: Input image size \(24\*24\)"),
    ):
        with pytest.raises(UsageError, match=message) as refused:
            ClipScore.load(given)
        assert "\n" not in str(refused.value)
