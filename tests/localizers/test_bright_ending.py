import pytest
import torch
from diffusers.models.attention_processor import AttnProcessor

from cryptomnesia import UsageError
from cryptomnesia.detectors.attention_entropy import AttentionEntropyLate
from cryptomnesia.detectors.bright_ending import BrightEndingMagnitude
from cryptomnesia.localizers import BrightEnding
from cryptomnesia.localizers.bright_ending import cross_attention, end_positions
from cryptomnesia.proving_ground.latent import LatentText
from family_cases import CASES
from mapped_runs import PROMPTS, watched


def test_bright_ending_is_the_attention_of_the_stock_processors():
    """Against the probabilities that diffusers' plain attention processor computes."""
    case = CASES["sd-epsilon"]
    pipe = case.make()
    seen = watched(case.setup(pipe))
    ends = end_positions(pipe, PROMPTS)
    (layer,) = cross_attention(pipe.unet)
    assert layer is pipe.unet.down_blocks[0].attentions[0].transformer_blocks[0].attn2
    probabilities = []

    class Plain(AttnProcessor):
        def __call__(self, attn, *args, **kwargs):
            scores = attn.get_attention_scores
            attn.get_attention_scores = lambda *a: probabilities.append(scores(*a)) or probabilities[-1]
            result = super().__call__(attn, *args, **kwargs)
            del attn.get_attention_scores
            return result

    layer.set_processor(Plain())
    step = seen.trajectory.step()
    seen.denoiser(step.cond.x, step.level, step.cond_inputs)
    expected = probabilities[0].unflatten(0, (2, layer.heads)).mean(dim=1)
    expected = torch.stack([expected[row, :, end] for row, end in enumerate(ends)])
    assert layer.heads > 1
    torch.testing.assert_close(BrightEnding().map(seen).values.flatten(1), expected, rtol=1e-4, atol=1e-5)
    assert ends.tolist() == [4, 6]


def test_every_layer_that_attends_to_the_caption_counts():
    network = LatentText().unet()
    first = network.down_blocks[0].attentions[0].transformer_blocks[0]
    assert cross_attention(network) == [first.attn1, first.attn2]


@pytest.mark.parametrize("method", [BrightEnding(), BrightEndingMagnitude(), AttentionEntropyLate()])
def test_a_tokenizer_that_does_not_pad_at_the_end_is_refused(method, monkeypatch):
    pipe = CASES["sd-epsilon"].make()
    setup = CASES["sd-epsilon"].setup(pipe)
    setup.check([method])
    monkeypatch.setattr(pipe.tokenizer, "padding_side", "left")
    with pytest.raises(UsageError, match="which pads on the left, so it is not known where a caption ends"):
        setup.check([method])
    pipe.tokenizer = None
    with pytest.raises(UsageError, match="has no tokenizer, so it is not known where a caption ends"):
        setup.check([method])


def test_a_textual_inversion_counts_as_many_tokens():
    pipe = CASES["sd-epsilon"].make()
    (plain,) = end_positions(pipe, ["a red circle"]).tolist()
    pipe.maybe_convert_prompt = lambda prompt, tokenizer: f"{prompt} {prompt}"
    assert end_positions(pipe, ["a red circle"]).tolist() == [2 * plain - 1]
