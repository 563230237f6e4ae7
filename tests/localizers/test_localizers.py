from dataclasses import replace

import pytest
import torch
from diffusers import FluxPipeline
from diffusers.models.attention_processor import AttnProcessor
from scipy.stats import ortho_group

from cryptomnesia import CurvatureDifference, Sampling, ScoreDifference, UsageError, generate, watch
from cryptomnesia.localizers import (
    BrightEnding,
    Collapse,
    Curvature,
    DiagonalEstimator,
    GuidanceMap,
    MapReference,
    Watched,
    checkpoint,
    conditioning,
    empty_caption,
    end_positions,
    upsampled,
)
from cryptomnesia.localizers.base import over_channels
from cryptomnesia.localizers.bright_ending import cross_attention
from cryptomnesia.localizers.collapse import guided
from cryptomnesia.localizers.methods import check_methods, method
from cryptomnesia.pipelines.families import Shared, adapter_for
from cryptomnesia.proving_ground import components
from cryptomnesia.statistics import auc
from cryptomnesia.testing.oracles import FiniteSet, Gaussian
from test_families import CASES
from cryptomnesia.testing.miniatures import call_oracle, oracle_pipeline, stable_diffusion, stable_diffusion_xl

SIZE = 16
PLANTED = torch.zeros(4, 4, dtype=torch.bool)
PLANTED[:, :2] = True


def gaussian(kind="epsilon", mixed=False):
    """The caption (condition 1) fixes the planted half; without it (condition 0) nothing is fixed."""
    basis = torch.eye(SIZE, dtype=torch.float64).repeat(2, 1, 1)
    if mixed:
        basis = torch.stack([torch.from_numpy(ortho_group.rvs(SIZE, random_state=seed)) for seed in (0, 1)])
    fixed = torch.where(PLANTED.flatten(), 1e-4, 1.0).double()
    return Gaussian(
        mean=torch.stack([torch.zeros(SIZE), torch.randn(SIZE, generator=torch.Generator().manual_seed(0))]).double(),
        basis=basis,
        variances=torch.stack([torch.ones(SIZE, dtype=torch.float64), fixed]),
        kind=kind,
    )


@pytest.fixture(scope="module")
def gaussian_run():
    pipe = oracle_pipeline(gaussian())
    with watch(pipe, keep="all") as seen:
        call_oracle(pipe, which=1, seeds=range(3), steps=50)
    return seen.trajectory, view(pipe)


def view(pipe):
    """The oracle as a denoiser of the conditioning that was recorded."""
    return lambda x, t, inputs: pipe.unet.oracle(x, t, {"which": inputs["encoder_hidden_states"][:, 0, 0].long()})


@pytest.mark.parametrize(
    "estimator",
    [
        DiagonalEstimator(engine="exact"),
        # the covariances are diagonal here, so every single probe gives the exact diagonal
        DiagonalEstimator(engine="reverse", design="random", probes=1),
        DiagonalEstimator(engine="finite", probes=4, group=4),
    ],
)
def test_curvature_difference_matches_the_closed_form(gaussian_run, estimator):
    trajectory, denoiser = gaussian_run
    oracle = gaussian()
    t = trajectory.step().t
    expected = (oracle.curvature(1, t) - oracle.curvature(0, t)).diagonal().view(4, 4).float().expand(3, -1, -1)
    localizer, seen = CurvatureDifference(-1, estimator), Watched(trajectory, denoiser)
    # the rounding of fp32, over the length of the step and over σ
    torch.testing.assert_close(localizer.estimate(seen).value, expected, rtol=2e-5, atol=1e-2)
    torch.testing.assert_close(localizer.difference(seen).value, expected[:, None], rtol=2e-5, atol=1e-2)
    assert torch.equal(localizer.map(seen), localizer.estimate(seen).value.relu())


@pytest.mark.parametrize("localizer", [CurvatureDifference(-1), Curvature(-1), ScoreDifference(), GuidanceMap()])
def test_every_localizer_points_at_the_planted_half_of_a_gaussian(localizer, gaussian_run):
    maps = localizer.map(Watched(*gaussian_run))
    assert maps.shape == (3, 4, 4)
    assert (maps >= 0).all()
    for each in maps:
        assert auc(each[PLANTED].numpy(), each[~PLANTED].numpy()) > 0.95


def test_the_curvature_map_points_at_the_planted_half_of_a_memorizer():
    generator = torch.Generator().manual_seed(0)
    everything = 2.0 * torch.randint(0, 2, (4096, 1, 4, 4), generator=generator) - 1
    template = torch.where(PLANTED, everything[:1], everything)
    pipe = oracle_pipeline(FiniteSet((everything, template)))
    # in the middle of the run: at its end a finite set pins every pixel, planted or not
    with watch(pipe, keep=(25,)) as seen:
        call_oracle(pipe, which=1, seeds=range(2), steps=50)
    maps = CurvatureDifference(25, DiagonalEstimator(probes=64)).map(Watched(seen.trajectory, view(pipe)))
    for each in maps:
        assert auc(each[PLANTED].numpy(), each[~PLANTED].numpy()) > 0.95


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample", "flow_prediction"])
@pytest.mark.parametrize("step", [0.3, -1])
def test_collapse_is_the_share_of_variance_that_is_gone(gaussian_run, step, kind):
    trajectory, oracle = gaussian_run[0], gaussian(kind)
    seen, inputs = trajectory.step(step), {"which": torch.ones(3, dtype=torch.long)}
    made = replace(seen, cond=oracle(seen.cond.x, seen.t, inputs), cond_inputs=inputs)
    alpha, sigma = made.cond.alpha, made.cond.sigma
    # of a Gaussian that was measured with noise of deviation σ/α
    posterior = 1 / (1 / oracle.variances[1].view(4, 4).float() + (alpha / sigma) ** 2)
    run = Watched(replace(trajectory, steps={seen.index: made}), oracle)
    found = Collapse(step, estimator=DiagonalEstimator(engine="exact")).estimate(run).value
    torch.testing.assert_close(found, (1 - posterior).expand(3, -1, -1), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["sd-epsilon", "sd-v"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_collapse_of_a_network_in_half_precision_is_that_in_single(name, dtype):
    family = CASES[name]
    pipe = family.make()
    run = watched(pipe, family.sampling)
    estimator = DiagonalEstimator(engine="reverse", probes=32, group=16)
    localizer, step = Collapse(1, estimator=estimator), run.trajectory.step(1)
    single = localizer.estimate(run).value

    def half(inputs):
        return {key: value.to(dtype) if value.is_floating_point() else value for key, value in inputs.items()}

    narrow = replace(
        step,
        cond=replace(step.cond, x=step.cond.x.to(dtype), value=step.cond.value.to(dtype)),
        cond_inputs=half(step.cond_inputs),
    )
    pipe.to(dtype)
    found = localizer.estimate(replace(run, trajectory=replace(run.trajectory, steps={step.index: narrow})))
    torch.testing.assert_close(found.value, single, rtol=2e-3, atol=5e-3)


def test_a_run_under_autocast_is_not_subtracted_from_what_is_computed_without():
    family = CASES["sd-v"]
    pipe = double(family.make()).to(torch.float32)
    run = watched(pipe, family.sampling)
    places = {
        place: replace(step, cond=replace(step.cond, value=step.cond.value.bfloat16()))
        for place, step in run.trajectory.steps.items()
    }
    coarse = replace(run, trajectory=replace(run.trajectory, steps=places))
    for localizer in (Collapse(1, estimator=CHEAP), Curvature(1, CHEAP), CurvatureDifference(1, CHEAP)):
        expected = localizer.estimate(run).value
        torch.testing.assert_close(localizer.estimate(coarse).value, expected, rtol=1e-4, atol=1e-4)


def test_collapse_refuses_a_flow_model_whose_run_is_too_short():
    family = CASES["sd3"]
    pipe = family.make()
    short = replace(family.sampling, steps=3)
    with pytest.raises(UsageError, match="with 3 steps collapse would look at pure noise"):
        check_methods(pipe, short, [method("collapse")])
    check_methods(pipe, short, [method("collapse", step=1)])
    check_methods(pipe, replace(short, steps=4), [method("collapse")])
    # Heun makes nearly twice as many evaluations as steps
    check_methods(pipe, short, [method("collapse", step=4)])
    check_methods(CASES["sd-epsilon"].make(), short, [method("collapse", step=4), method("curvature")])


def test_collapse_points_at_the_planted_half_of_a_memorizer():
    generator = torch.Generator().manual_seed(0)
    everything = 2.0 * torch.randint(0, 2, (4096, 1, 4, 4), generator=generator) - 1
    template = torch.where(PLANTED, everything[:1], everything)
    pipe = oracle_pipeline(FiniteSet((everything, template)))
    with watch(pipe, keep=(0, 0.3)) as seen:
        call_oracle(pipe, which=1, seeds=range(2), steps=50)
    localizer = Collapse(estimator=DiagonalEstimator(probes=64))
    run = Watched(seen.trajectory, view(pipe))
    maps = localizer.map(run)
    assert (maps >= 0).all()
    for each, share in zip(maps, localizer.estimate(run).value, strict=True):
        assert auc(each[PLANTED].numpy(), each[~PLANTED].numpy()) == 1
        torch.testing.assert_close(share[PLANTED], torch.ones(8), atol=0.05, rtol=0)
        assert share[~PLANTED].mean() < 0.3


def test_the_guide_of_collapse_says_something_where_there_is_no_signal_yet():
    """A flow model's first evaluation sees nothing but noise, of which the branches say the same."""
    family = CASES["sd3"]
    seen = watched(family.make(), family.sampling)
    first = seen.trajectory.step(0)
    assert first.cond.alpha == 0
    assert torch.equal(first.cond.epsilon, first.uncond.epsilon)
    localizer = Collapse(1, estimator=CHEAP)
    share = localizer.estimate(seen).value
    share += 1 - share.min()  # random weights give no share of anything
    assert not torch.allclose(localizer.filtered(share, seen), guided(share, torch.ones_like(share)))


def test_collapse_needs_some_signal(gaussian_run):
    first, denoiser = gaussian_run[0].step(0), gaussian_run[1]
    blind = replace(gaussian_run[0], steps={15: replace(first, cond=replace(first.cond, alpha=0.0))})
    with pytest.raises(UsageError, match="sees nothing but noise; look at a later one"):
        Collapse().estimate(Watched(blind, denoiser))


def test_a_guided_filter_takes_the_noise_and_leaves_the_edges():
    generator = torch.Generator().manual_seed(0)
    truth = torch.zeros(2, 16, 16)
    truth[0, :, 5:], truth[1, 3:9] = 1, 1
    noisy = truth + torch.randn(truth.shape, generator=generator)
    guide = 5 - 3 * truth + 0.1 * torch.randn(truth.shape, generator=generator)
    found = guided(noisy, guide)
    assert (found - truth).square().mean() < (noisy - truth).square().mean() / 10
    torch.testing.assert_close(guided(noisy, 7 * guide - 2), found)
    torch.testing.assert_close(guided(3 * noisy + 1, guide), 3 * found + 1)
    torch.testing.assert_close(guided(noisy[1:], guide[1:]), found[1:])
    # without a guide only means of windows are left
    assert guided(noisy, torch.ones(2, 16, 16)).std() < noisy.std() / 2


CHEAP = DiagonalEstimator(probes=16, group=16)
MAPS = (
    Collapse(1, estimator=CHEAP),
    CurvatureDifference(-1, CHEAP),
    Curvature(-1, CHEAP),
    ScoreDifference(),
    GuidanceMap(),
    BrightEnding(),
)
PROMPTS = ["a red circle", "a small striped blue star"]


def watched(pipe, sampling, baseline=None, ends=True, prompts=PROMPTS, seeds=(0, 1)):
    (batch,) = generate(pipe, prompts, seeds, sampling, keep=(0, 1, -1))
    positions = end_positions(pipe, prompts) if ends else None
    return Watched(batch.trajectory, adapter_for(pipe).denoiser(), baseline, positions, seeds)


def double(pipe):
    """The pipeline in float64, where finite differences have no rounding to speak of."""
    return pipe.to(torch.float64)


@pytest.mark.parametrize("name", ["sd-epsilon", "sd-v", "sdxl", "sd3", "flux true guidance"])
def test_maps_of_every_family_do_not_depend_on_the_batch(name):
    family = CASES[name]
    pipe = double(family.make())
    seen = watched(pipe, family.sampling)
    again = watched(pipe, family.sampling, prompts=PROMPTS[1:], seeds=(1,))
    for localizer in MAPS:
        if isinstance(localizer, BrightEnding) and not hasattr(seen.denoiser.module, "down_blocks"):
            with pytest.raises(UsageError, match="no cross-attention on its way down"):
                localizer.map(seen)
            continue
        both = localizer.map(seen)
        assert both.shape == (2, 8, 8), localizer.name
        assert (both >= 0).all()
        for alone in (seen.rows([1]), again):
            torch.testing.assert_close(both[1:], localizer.map(alone), rtol=1e-6, atol=1e-8)


def test_packed_latents_are_laid_out_as_their_pipeline_does():
    channels, height, width = 4, 6, 4
    latents = torch.arange(2.0 * channels * height * width).view(2, channels, height, width)
    packed = FluxPipeline._pack_latents(latents, 2, channels, height, width)
    positions = FluxPipeline._prepare_latent_image_ids(2, height // 2, width // 2, "cpu", torch.float32)
    torch.testing.assert_close(over_channels(packed, {"img_ids": Shared(positions)}), latents.sum(dim=1))


@pytest.mark.parametrize("name", ["sd unguided", "sd3 unguided", "flux distilled"])
def test_an_unguided_run_can_be_compared_with_an_empty_caption(name):
    family = CASES[name]
    pipe = family.make()
    seen = watched(pipe, family.sampling)
    for localizer in (CurvatureDifference(-1), ScoreDifference()):
        with pytest.raises(UsageError, match="no unconditional branch"):
            localizer.map(seen)
    asked = replace(seen, baseline=empty_caption(pipe, 2, family.sampling))
    assert ScoreDifference().map(asked).shape == (2, 8, 8)
    assert CurvatureDifference(-1).map(asked).max() > 0


def test_an_empty_caption_is_the_unconditional_branch_of_a_guided_run():
    family = CASES["sd-epsilon"]
    pipe = double(family.make())
    seen = watched(pipe, family.sampling)
    asked = replace(seen, baseline=empty_caption(pipe, 2, family.sampling))
    for localizer in (CurvatureDifference(-1), ScoreDifference()):
        torch.testing.assert_close(localizer.map(asked), localizer.map(seen), rtol=1e-6, atol=1e-8)


def test_another_checkpoint_is_a_baseline():
    family = CASES["sd-v"]
    pipe, other = double(family.make()), double(family.make())
    seen = watched(pipe, family.sampling)
    same = replace(seen, baseline=checkpoint(pipe, other, PROMPTS, family.sampling))
    # of the same model with the same caption: nothing is remembered better
    for localizer in (CurvatureDifference(-1), ScoreDifference()):
        assert localizer.map(same).max() < 1e-8 < localizer.map(seen).max()
    with torch.no_grad():
        for weight in other.unet.parameters():
            weight.mul_(0.5)
    earlier = replace(seen, baseline=checkpoint(pipe, other, PROMPTS, family.sampling))
    short, forward = (
        CurvatureDifference(-1, estimator).difference(earlier).value
        for estimator in (DiagonalEstimator(step=1e-6), DiagonalEstimator(engine="forward"))
    )
    torch.testing.assert_close(short, forward, rtol=1e-4, atol=1e-5)
    # a step of σ/10 is short enough
    assert (CurvatureDifference(-1).difference(earlier).value - forward).norm() < 0.05 * forward.norm()


def test_compiled_networks_are_mapped():
    family = CASES["sd-epsilon"]
    pipe = family.make()
    estimators = [DiagonalEstimator(engine=engine, probes=16) for engine in ("finite", "reverse", "forward")]
    localizers = [*(CurvatureDifference(-1, estimator) for estimator in estimators), BrightEnding()]
    seen = watched(pipe, family.sampling)
    plain = [localizer.map(seen) for localizer in localizers]
    pipe.unet.compile(backend="eager")
    for localizer, expected in zip(localizers, plain, strict=True):
        torch.testing.assert_close(localizer.map(seen), expected, rtol=1e-3, atol=1e-3)


def test_a_baseline_of_another_kind_is_refused():
    pipe = stable_diffusion()
    sampling = Sampling(2, 2.0)
    with pytest.raises(UsageError, match="prediction type is v_prediction, the model's epsilon"):
        checkpoint(pipe, stable_diffusion("v_prediction"), PROMPTS, sampling)
    with pytest.raises(UsageError, match="family is StableDiffusionXLPipeline, the model's StableDiffusionPipeline"):
        checkpoint(pipe, stable_diffusion_xl(), PROMPTS, sampling)
    other = stable_diffusion()
    with torch.no_grad():
        next(other.vae.parameters()).mul_(2.0)
    with pytest.raises(UsageError, match="autoencoder is"):
        checkpoint(pipe, other, PROMPTS, sampling)


def test_bright_ending_is_the_attention_of_the_stock_processors():
    """Against the probabilities that diffusers' plain attention processor computes."""
    family = CASES["sd-epsilon"]
    pipe = family.make()
    seen = watched(pipe, family.sampling)
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
    seen.denoiser(step.cond.x, step.t, step.cond_inputs)
    expected = probabilities[0].unflatten(0, (2, layer.heads)).mean(dim=1)
    expected = torch.stack([expected[row, :, end] for row, end in enumerate(seen.ends)])
    assert layer.heads > 1
    torch.testing.assert_close(BrightEnding().map(seen).flatten(1), expected, rtol=1e-4, atol=1e-5)
    assert seen.ends.tolist() == [4, 6]


def test_maps_explain_what_they_lack():
    pipe = stable_diffusion()
    seen = watched(pipe, Sampling(4, 2.0), ends=False)
    with pytest.raises(UsageError, match="need the positions of the end tokens"):
        BrightEnding().map(seen)
    with pytest.raises(UsageError, match="step 2 of 4 holds no tensors"):
        ScoreDifference(step=2).map(seen)
    with pytest.raises(UsageError, match="got 0 probes"):
        DiagonalEstimator(probes=0)
    with torch.no_grad():
        next(pipe.unet.parameters()).fill_(torch.nan)
    with pytest.raises(UsageError, match="not finite"):
        CurvatureDifference(-1).map(seen)


def reference_maps(count=90):
    return torch.rand((count, 8, 8), generator=torch.Generator().manual_seed(0))


def test_masks_keep_the_rate_on_new_references():
    reference = MapReference.fit(reference_maps())
    fresh = torch.rand((200, 8, 8), generator=torch.Generator().manual_seed(1))
    mask = reference.mask(fresh, rate=0.05)
    assert mask.pixels.float().mean().item() == pytest.approx(0.05, abs=0.01)
    assert (mask.p_value <= 0.1).double().mean() <= 0.15
    assert torch.equal(mask.pixels, mask.regions > 0)


def test_the_mean_of_a_map_has_a_p_value_of_its_own():
    reference = MapReference.fit(reference_maps())
    # a little brighter everywhere: no pixel stands out, but the mean does
    mask = reference.mask(torch.cat([reference_maps(1), 0.2 + 0.8 * reference_maps(1), torch.zeros(1, 8, 8)]))
    expected = reference_maps(1).double().mean().item()
    assert mask.mean.tolist() == pytest.approx([expected, 0.2 + 0.8 * expected, 0.0])
    assert mask.mean_p_value[1].item() == pytest.approx(1 / 61)
    assert mask.mean_p_value[2].item() == 1.0
    assert mask.p_value[1].item() > 0.1
    one = mask.image(1)
    assert one.pixels.shape == (8, 8)
    assert one.mean_p_value.item() == mask.mean_p_value[1].item()


def test_a_bright_region_is_found_whole_and_is_no_accident():
    reference = MapReference.fit(reference_maps())
    bright = 0.3 * reference_maps(1)
    bright[0, 2:6, 2:6] += 2.0
    bright[0, 0, 7] = 2.0
    mask = reference.mask(bright, rate=0.05, smallest=2)
    assert mask.pixels[0, 2:6, 2:6].all()
    assert mask.fraction.item() == 16 / 64
    assert mask.regions.unique().tolist() == [0, 1]
    assert mask.p_value.item() == pytest.approx(1 / 61)
    both = reference.mask(bright, rate=0.05)
    assert both.regions.unique().tolist() == [0, 1, 2]
    smooth = reference.mask(bright, rate=0.05, smooth=1.0)
    assert smooth.pixels[0, 3:5, 3:5].all()


def test_masks_explain_what_does_not_fit():
    reference = MapReference.fit(reference_maps())
    with pytest.raises(UsageError, match="pixel rate 1e-05 for 1920 reference pixels"):
        reference.threshold(1e-5)
    with pytest.raises(UsageError, match=r"got maps of \(4, 4\), the reference has \(8, 8\)"):
        reference.mask(torch.zeros(1, 4, 4))
    with pytest.raises(UsageError, match="blur of -1 pixels"):
        reference.threshold(0.05, smooth=-1.0)
    with pytest.raises(UsageError, match="got 2 reference maps"):
        MapReference.fit(torch.zeros(2, 8, 8))


def test_upsampling_keeps_a_flat_map_flat():
    assert torch.equal(upsampled(torch.ones(1, 4, 4), 16, 16), torch.ones(1, 16, 16))


def test_every_layer_that_attends_to_the_caption_counts():
    network = components.unet()
    first = network.down_blocks[0].attentions[0].transformer_blocks[0]
    assert cross_attention(network) == [first.attn1, first.attn2]


def test_reading_the_conditioning_leaves_no_trace():
    pipe = stable_diffusion()
    torch.manual_seed(0)
    conditioning(pipe, PROMPTS, Sampling(3, 2.0))
    assert torch.initial_seed() == 0
    assert torch.equal(torch.randn(3), torch.randn(3, generator=torch.Generator().manual_seed(0)))
    assert pipe.interrupt is False


def test_a_score_difference_of_the_run_costs_no_evaluation():
    family = CASES["sd-epsilon"]
    seen = watched(family.make(), family.sampling)
    evaluated = []
    seen.denoiser.module.register_forward_hook(lambda *_: evaluated.append(1))
    for each in (seen, seen.rows([1])):
        ScoreDifference().map(each)
        GuidanceMap().map(each)
    assert evaluated == []
