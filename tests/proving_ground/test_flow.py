import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, StableDiffusion3Pipeline
from diffusers.models.attention_processor import JointAttnProcessor2_0

from cryptomnesia import UsageError, load_pipeline
from cryptomnesia.pipelines.families import family_of
from cryptomnesia.proving_ground.flow import LatentFlow
from cryptomnesia.proving_ground.ground import ground_of
from cryptomnesia.proving_ground.grounds import drawings, drawings_flow
from cryptomnesia.proving_ground.grounds.pixels import Pixels
from cryptomnesia.proving_ground.grounds.scenes import Scenes
from cryptomnesia.proving_ground.train import train
from tiny_runs import run, same_weights, stopped

NETWORKS = LatentFlow(autoencoder_widths=(8, 8, 16), heads=1, layers=2, width=32)


class FlowScenes(Scenes):
    networks = NETWORKS


GROUND = FlowScenes()


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    run(GROUND, folder)
    return folder


@pytest.fixture(scope="module")
def learner(whole):
    torch.manual_seed(0)
    made = NETWORKS.learner(whole, GROUND.lexicon(GROUND.plant(0)[:4]))
    for module in made.modules.values():
        module.eval()
    return made


def test_the_result_is_a_stock_pipeline_of_a_known_family(whole):
    for name in ("early", "final"):
        pipe = load_pipeline(whole / name, device="cpu")
        pipe.set_progress_bar_config(disable=True)
        assert pipe("a red circle", num_inference_steps=2).images[0].size == (64, 64)
        assert type(pipe) is StableDiffusion3Pipeline
        assert type(pipe.scheduler) is FlowMatchEulerDiscreteScheduler
        assert family_of(pipe).name == "stable-diffusion-3"


@torch.no_grad()
def test_training_evaluates_what_the_stock_pipeline_evaluates(learner):
    """One token has the weight of all that the pipeline puts in the place of those of its T5."""
    captions = ["a red circle on a blue ground", ""]
    tokens = learner.tokens(captions, padding="max_length", return_tensors="pt").input_ids
    pipe = learner.pipeline(learner.modules)
    text, _, pooled, _ = pipe.encode_prompt(captions, None, None, do_classifier_free_guidance=False)
    noisy, t = torch.randn(2, 4, 16, 16), torch.tensor([100, 900])
    transformer = learner.modules["transformer"]
    ours = transformer(noisy, *learner.read(tokens), t, return_dict=False)[0]
    shortened = transformer.attn_processors
    transformer.set_attn_processor(JointAttnProcessor2_0())
    stock = transformer(noisy, text, pooled, t, return_dict=False)[0]
    unweighted = transformer(noisy, *learner.read(tokens), t, return_dict=False)[0]
    transformer.set_attn_processor(shortened)
    torch.testing.assert_close(ours, stock, rtol=0, atol=1e-5)
    assert (unweighted - stock).abs().max() > 1e-3


def test_a_stopped_run_ends_with_the_same_weights(whole, tmp_path):
    stopped(GROUND, tmp_path, 3)
    run(GROUND, tmp_path)
    assert same_weights(whole / "final", tmp_path / "final")


def test_an_autoencoder_that_is_given_takes_the_place_of_one_that_is_trained(whole, tmp_path):
    phases = []
    run(GROUND, tmp_path, autoencoder=whole / "autoencoder", report=lambda phase, *_: phases.append(phase))
    assert set(phases) == {"denoiser"}
    assert same_weights(whole / "final", tmp_path / "final")


def test_an_autoencoder_that_does_not_fit_is_refused(whole, tmp_path):
    with pytest.raises(UsageError, match="holds no autoencoder"):
        run(GROUND, tmp_path / "run", autoencoder=whole)
    with pytest.raises(UsageError, match=r"has block_out_channels \[8, 8, 16\], not \[16, 32, 64\]"):
        run(Scenes(), tmp_path / "run", autoencoder=whole / "autoencoder")
    with pytest.raises(UsageError, match="pixels trains no autoencoder"):
        run(Pixels(), tmp_path / "run", autoencoder=whole / "autoencoder")
    with pytest.raises(UsageError, match="scenes-lora trains no autoencoder"):
        train(ground_of("scenes-lora"), tmp_path / "run", autoencoder=whole / "autoencoder")
    assert not (tmp_path / "run").exists()


def test_the_drawings_have_the_autoencoder_that_the_flow_takes_over():
    """So that a run of one is worth the same for the other."""
    own, other = drawings_flow.GROUND, drawings.GROUND
    # and the classifier, which knows the words of both
    assert own.like is other
    assert own.visible == other.visible
    names = ("channels", "autoencoder_widths", "kl", "half")
    assert [getattr(own.networks, name) for name in names] == [getattr(other.networks, name) for name in names]
    recipes = [(r.seed, r.autoencoder_steps, r.autoencoder_batch, r.warmup) for r in (own.recipe, other.recipe)]
    assert recipes[0] == recipes[1]
