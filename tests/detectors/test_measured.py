"""Detectors that are measured once during a run: their scores on models of which the answer is known."""

import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from diffusers import DDIMPipeline

from cryptomnesia import BrightEnding, UsageError, watch
from cryptomnesia.detectors import detector
from cryptomnesia.detectors.anisotropy import Anisotropy
from cryptomnesia.detectors.attention_entropy import AttentionEntropy, AttentionEntropyLate
from cryptomnesia.detectors.bright_ending import BrightEndingMagnitude
from cryptomnesia.detectors.caption_gap import CaptionGap
from cryptomnesia.detectors.condition_jacobian import ConditionJacobian
from cryptomnesia.detectors.critical_scale import CriticalScale
from cryptomnesia.detectors.flipd import Flipd
from cryptomnesia.detectors.one_step import OneStep
from cryptomnesia.detectors.overestimation import Overestimation
from cryptomnesia.detectors.sharpness import Sharpness
from cryptomnesia.detectors.spikiness import Spikiness, look_into
from cryptomnesia.localizers.base import Watched
from cryptomnesia.localizers.bright_ending import attention, cross_attention, end_positions
from cryptomnesia.localizers.jacobian.diagonal import DiagonalEstimator
from cryptomnesia.pipelines.denoiser import Prediction
from cryptomnesia.pipelines.schedule import Level, level_at
from cryptomnesia.pipelines.setup import Setup
from cryptomnesia.registry import entries
from cryptomnesia.testing.miniatures import PROMPTS, SAMPLING, stable_diffusion, unconditional
from cryptomnesia.testing.oracles import FiniteSet, Gaussian, schedule
from cryptomnesia.testing.setups import SETUPS
from cryptomnesia.tracing.generation import generate
from cryptomnesia.tracing.trajectory import Step, Trajectory

SIDE, SIZE = 4, 16
TIMES = (981.0, 701.0, 401.0, 101.0, 1.0)


def gaussian(*variances, mean=0.0):
    """A Gaussian with a diagonal covariance per condition, around `mean`."""
    diagonals = torch.stack([torch.as_tensor(v, dtype=torch.float64).expand(SIZE) for v in variances])
    return Gaussian(
        torch.full((len(variances), SIZE), mean, dtype=torch.float64),
        torch.eye(SIZE, dtype=torch.float64).repeat(len(variances), 1, 1),
        diagonals,
    )


def run_of(oracle, xs):
    """A run whose evaluation number i sees xs[i] (B, 1, 4, 4), at the noise levels of `TIMES`."""
    steps = {}
    for number, (t, x) in enumerate(zip(TIMES, xs, strict=True)):
        level = level_at(schedule(), t)
        cond, uncond = ({"which": torch.full((len(x),), which)} for which in (1, 0))
        predicted = oracle(x, level, cond)
        without = oracle(x, level, uncond)
        steps[number] = Step(number, len(TIMES), t, predicted, without, predicted, x, cond, uncond, {})
    return Trajectory(TIMES, {"z": torch.ones(len(xs[0]), len(TIMES))}, steps, xs[-1], complete=True)


def noise(count=3, seed=0):
    return torch.randn(count, 1, SIDE, SIDE, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_sharpness_is_that_of_the_closed_form():
    """Of Gaussians around 0 the Hessians are diagonal: s = −h·x, so (H_c − H_u)·s_Δ = (h_c − h_u)²·x."""
    variances = torch.linspace(0.1, 2.0, SIZE), torch.ones(SIZE)
    oracle, x = gaussian(variances[1], variances[0]), noise()
    level = level_at(schedule(), TIMES[0])
    h = [1 / (level.alpha**2 * v.double() + level.sigma**2) for v in variances]
    expected = ((h[0] - h[1]) ** 2 * x.flatten(1)).norm(dim=1)
    found = Sharpness().measure(run_of(oracle, [x] * 5), oracle)
    torch.testing.assert_close(found.double(), expected, rtol=1e-3, atol=0)
    # the step of the finite difference has the same length for every image, so scaling an image scales its score
    rows = torch.cat([x, 100 * x])
    scores = Sharpness().measure(run_of(oracle, [rows] * 5), oracle)
    torch.testing.assert_close(scores[3:], 100 * scores[:3], rtol=1e-3, atol=0)


def test_anisotropy_is_a_length_and_a_direction():
    """With wide conditional and narrow unconditional variances the guidance points against ε_u everywhere."""
    oracle, x = gaussian(0.01, 4.0), noise()
    run = run_of(oracle, [x] * 5)
    first = run.steps[0]
    length = (first.cond.value - first.uncond.value).flatten(1).norm(dim=1)
    found = Anisotropy().measure(run, oracle)
    torch.testing.assert_close(found, length - 2.0)
    torch.testing.assert_close(Anisotropy(norm=0.0, cosine=1.0).measure(run, oracle), torch.full((3,), -1.0).double())
    aligned = gaussian(4.0, 0.01)
    torch.testing.assert_close(
        Anisotropy(norm=0.0, cosine=1.0).measure(run_of(aligned, [x] * 5), aligned), torch.ones(3).double()
    )


@pytest.mark.parametrize("excess", [0.0, 0.25])
def test_overestimation_is_how_much_more_picture_there_is_than_the_schedule_says(excess):
    picture, first = noise(seed=1), noise(seed=2)
    levels = [level_at(schedule(), t) for t in TIMES]
    xs = [(level.alpha + excess) * picture + level.sigma * first for level in levels]
    oracle = FiniteSet(tuple(picture[:1] for _ in range(2)))
    run = run_of(oracle, [first, *xs[1:]])
    last = replace(run.steps[4], guided=Prediction(xs[4], picture, 0.5, 0.5, "sample"))
    found = Overestimation(early=(1, 2)).measure(replace(run, steps={**run.steps, 4: last}), oracle)
    torch.testing.assert_close(found, torch.full((3,), excess).double(), atol=1e-6, rtol=0)


def test_flipd_counts_the_directions_that_are_left():
    """A quarter of the entries are free, the others fixed: far below the free variance the dimension is a quarter."""
    variances = torch.full((SIZE,), 1e-12)
    variances[::4] = 100.0
    oracle, x = gaussian(1.0, variances), torch.zeros(2, 1, SIDE, SIDE, dtype=torch.float64)
    found = Flipd(level=2, estimator=DiagonalEstimator(engine="exact")).measure(run_of(oracle, [x] * 5), oracle)
    torch.testing.assert_close(-found, torch.full((2,), 0.25).double(), atol=0.02, rtol=0)
    full = gaussian(1.0, 1e6)
    torch.testing.assert_close(
        -Flipd(level=2).measure(run_of(full, [x] * 5), full), torch.ones(2).double(), atol=0.02, rtol=0
    )


def test_an_image_that_is_not_finite_leaves_the_others_their_score():
    oracle, x = gaussian(1.0, 0.5), noise()
    alone = Flipd(level=2).measure(run_of(oracle, [x[[0, 2]]] * 5), oracle)
    x[1] = torch.nan
    found = Flipd(level=2).measure(run_of(oracle, [x] * 5), oracle)
    assert found.isnan().tolist() == [False, True, False]
    torch.testing.assert_close(found[[0, 2]], alone)


def test_the_critical_scale_of_a_gaussian_is_that_of_the_closed_form():
    """D_σ(x) = ρ·x with ρ = λ/(λ + σ²), so x is retained at σ if 1 − ρ^K ≤ r."""
    level_sigmas = [(level := level_at(schedule(), t)).sigma / level.alpha for t in TIMES]
    x = noise()
    method = CriticalScale(levels=5)
    for variance in (1e-3, 1.0, 50.0, 1e4):
        oracle = gaussian(1.0, variance)
        retained = [s for s in level_sigmas if 1 - (variance / (variance + s**2)) ** 16 <= 0.25]
        expected = math.log(max(retained)) if retained else 2 * math.log(level_sigmas[-1]) - math.log(level_sigmas[-2])
        found = method.measure(run_of(oracle, [x] * 5), oracle)
        assert found.tolist() == pytest.approx([expected] * 3)


def test_a_memorized_picture_is_retained_from_the_noisiest_level():
    picture = noise(1, seed=3)
    oracle = FiniteSet((torch.randn(64, 1, SIDE, SIDE), picture))
    level = level_at(schedule(), TIMES[0])
    found = CriticalScale(levels=5).measure(run_of(oracle, [noise()] * 5), oracle)
    assert found.tolist() == pytest.approx([math.log(level.sigma / level.alpha)] * 3)


def test_the_caption_gap_compares_both_branches():
    """With the caption the variance is small, without it large: the gap is the difference of both critical scales."""
    x, method = noise(), CriticalScale(levels=5)
    broad, narrow = gaussian(1.0, 1e-3), gaussian(1.0, 1e4)
    cond, uncond = ({"branch": torch.full((3,), value)} for value in (1.0, 0.0))

    def network(x, level, inputs):
        oracle = narrow if inputs["branch"][0] else broad
        return oracle(x, level, {"which": torch.ones(len(x), dtype=torch.long)})

    run = run_of(narrow, [x] * 5)
    last = replace(run.steps[4], cond_inputs=cond, uncond_inputs=uncond)
    guided = replace(run, steps={**run.steps, 4: last})
    found = CaptionGap(scale=method).measure(guided, network)
    scales = [method.measure(run_of(oracle, [x] * 5), oracle) for oracle in (narrow, broad)]
    torch.testing.assert_close(found, scales[0] - scales[1])
    assert (found > 0).all()
    swapped = replace(last, cond_inputs=last.uncond_inputs, uncond_inputs=last.cond_inputs)
    assert torch.equal(CaptionGap(scale=method).measure(replace(run, steps={**run.steps, 4: swapped}), network), -found)
    bare = replace(run, steps={**run.steps, 4: replace(last, uncond_inputs=None)})
    with pytest.raises(UsageError, match="caption-gap needs; generate with guidance"):
        CaptionGap().measure(bare, network)


def test_one_step_asks_how_alike_the_estimates_are():
    """Of a Gaussian around m, x̂_0 = (1 − c)·m + c·x/α: the spread over noise follows from its variance."""
    x, level = noise(), level_at(schedule(), TIMES[0])
    scores = []
    for variance in (1e-4, 1e-2, 1.0):
        oracle = gaussian(1.0, variance, mean=2.0)
        (score,) = set(OneStep(draws=64).measure(run_of(oracle, [x] * 5), oracle).tolist())
        slope = level.alpha * variance / (level.alpha**2 * variance + level.sigma**2)
        assert -score == pytest.approx(math.log(slope * level.sigma / 2.0), abs=0.15)
        scores.append(score)
    assert scores == sorted(scores, reverse=True)
    memorizer = FiniteSet((torch.randn(64, 1, SIDE, SIDE), torch.randn(1, 1, SIDE, SIDE)))
    found = OneStep().measure(run_of(memorizer, [x] * 5), memorizer)
    assert found.tolist() == pytest.approx([-math.log(1e-6)] * 3)


def test_the_jacobian_of_the_condition_is_that_of_a_linear_network():
    """ε = A_i·e: its Frobenius norm is that of A_i, whatever the size of the embedding is."""
    matrices = torch.randn(3, SIZE, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def network(x, level, inputs):
        tokens, which = inputs["encoder_hidden_states"], inputs["number"]
        value = (matrices[which] @ tokens.flatten(1)[:, :, None]).view_as(x)
        return Prediction(x, value, level.alpha, level.sigma, "epsilon")

    x = noise()
    for size in (0.01, 1.0, 30.0):
        inputs = {
            "encoder_hidden_states": size * torch.randn(3, 2, 3, generator=torch.Generator().manual_seed(1)).double(),
            "number": torch.arange(3),
        }
        level = Level(981.0, 0.1, 0.9)
        predicted = network(x, level, inputs)
        step = Step(0, 1, 981.0, predicted, None, predicted, x, inputs, None, {})
        run = Trajectory((981.0,), {"z": torch.ones(3, 1)}, {0: step}, x, complete=True)
        found = ConditionJacobian(probes=400).measure(run, network)
        expected = matrices.flatten(1).norm(dim=1)
        torch.testing.assert_close(found.double(), expected, rtol=0.06, atol=0)

    class Lists(torch.nn.Module):
        def forward(self, hidden_states, timestep, cap_feats):
            """A network that reads captions as a list."""

    setup = SETUPS["SD 3"]()
    setup.check([ConditionJacobian()])
    setup.family.module = Lists()
    with pytest.raises(UsageError, match="'encoder_hidden_states', and a Lists reads it"):
        ConditionJacobian().check(setup)


def test_the_entropy_of_the_attention_is_that_of_the_probabilities():
    """The network's own attention, whose probabilities are read from a stock processor."""
    pipe = stable_diffusion()
    layer = cross_attention(pipe.unet, 1)[-1]
    seen = []

    def look(module, args, kwargs, output):
        hidden, context = args[0], kwargs["encoder_hidden_states"]
        parts = (module.head_to_batch_dim(part) for part in (module.to_q(hidden), module.to_k(context)))
        seen.append(module.get_attention_scores(*parts).unflatten(0, (len(hidden), -1)).mean(dim=(1, 2)))

    hook = layer.register_forward_hook(look, with_kwargs=True)
    (batch,) = generate(Setup(pipe, SAMPLING), PROMPTS[:2], range(2), signals=AttentionEntropy(step=0).signals)
    hook.remove()
    measured = next(found for found in seen if len(found) == 2)
    torch.testing.assert_close(
        batch.trajectory.signals["attention-entropy"], torch.special.entr(measured).sum(dim=1), rtol=1e-4, atol=1e-5
    )
    with pytest.raises(UsageError, match="has no cross-attention on its way down"):
        Setup(unconditional(DDIMPipeline), SAMPLING).check([AttentionEntropy()])


@pytest.fixture(scope="module")
def captioned():
    """A pipeline, its network, and a run of two captions with all of its tensors."""
    setup = SETUPS["Stable Diffusion"]()
    (batch,) = generate(setup, PROMPTS[:2], range(2), keep="all")
    return setup.pipe, setup.family.denoiser(), batch.trajectory


def test_bright_ending_weighs_the_guidance_by_the_attention_to_the_end(captioned):
    pipe, denoiser, run = captioned
    assert run.prompts == tuple(PROMPTS[:2])
    weights = BrightEnding().map(Watched(run, denoiser, prompts=PROMPTS[:2], pipe=pipe)).values
    last = run.step(-1)
    difference = last.cond.value - last.uncond.value
    expected = (difference * weights[:, None]).flatten(1).norm(dim=1) / weights.mean(dim=(1, 2))
    found = BrightEndingMagnitude(over=(-1,)).measure(run, denoiser)
    torch.testing.assert_close(found, expected)
    places = BrightEndingMagnitude().over
    alone = [BrightEndingMagnitude(over=(place,)).measure(run, denoiser) for place in places]
    found = BrightEndingMagnitude().measure(run, denoiser)
    torch.testing.assert_close(found, torch.stack(alone).mean(dim=0))


def test_late_entropy_adds_how_far_the_summary_moved(captioned):
    pipe, denoiser, run = captioned
    layer = cross_attention(pipe.unet, 1)[-1:]
    ends = end_positions(pipe, PROMPTS[:2]).tolist()
    expected = []
    for row, end in enumerate(ends):
        first, late = (attention(denoiser, run.step(place), layer)[0][row].mean(dim=0) for place in (0, -1))
        moved = torch.special.entr(late)[end:].sum() - torch.special.entr(first)[end:].sum()
        expected.append(torch.special.entr(late).sum() + moved.abs())
    found = AttentionEntropyLate(late=(-1,)).measure(run, denoiser)
    torch.testing.assert_close(found, torch.stack(expected))
    still = AttentionEntropyLate(late=(0,)).measure(run, denoiser)
    torch.testing.assert_close(still, AttentionEntropy(step=0).measure(run, denoiser))
    several = [AttentionEntropyLate(late=(place,)).measure(run, denoiser) for place in AttentionEntropyLate().late]
    torch.testing.assert_close(AttentionEntropyLate().measure(run, denoiser), torch.stack(several).mean(dim=0))


@pytest.mark.parametrize("method", [BrightEndingMagnitude(), AttentionEntropyLate()])
def test_embeddings_without_words_get_no_score(method):
    """The attention cannot be read without knowing where the caption ends, so there is NaN instead of a number."""
    setup = SETUPS["Stable Diffusion"]()
    embeds = setup.pipe.encode_prompt(PROMPTS[:2], "cpu", 1, False)[0]
    call = {name: value for name, value in setup.family.arguments(PROMPTS[:2], SAMPLING).items() if name != "prompt"}
    with watch(setup.pipe, signals=method.signals) as seen:
        setup.pipe(prompt_embeds=embeds, negative_prompt_embeds=torch.zeros_like(embeds), **call)
    assert seen.trajectory.prompts is None
    assert seen.trajectory.signals[method.name].isnan().all()
    with pytest.raises(UsageError, match=r"needs captions|needs the unconditional branch"):
        Setup(unconditional(DDIMPipeline), SAMPLING).check([method])


def test_spikiness_is_that_of_the_middle_block():
    pipe = stable_diffusion()
    seen = []
    hook = pipe.unet.mid_block.register_forward_hook(lambda *given: seen.append(given[2]))
    (batch,) = generate(Setup(pipe, SAMPLING), PROMPTS[:2], range(2), signals=Spikiness(step=1).signals)
    hook.remove()
    # both branches of every step, and the measurement behind the second step
    measured = next(output for output in seen if len(output) == 2)
    expected = measured.flatten(1).std(dim=1)
    torch.testing.assert_close(batch.trajectory.signals["spikiness"], expected)
    assert not pipe.unet.mid_block._forward_hooks
    with pytest.raises(UsageError, match="the middle of a SimpleNamespace is not known"):
        look_into(SimpleNamespace(), [])


def test_of_a_transformer_the_features_are_those_of_the_picture():
    """Its block takes and returns features of the picture and of the caption."""

    class Block(torch.nn.Module):
        def forward(self, hidden_states, encoder_hidden_states):
            return encoder_hidden_states + 1, hidden_states + 1

    blocks = torch.nn.ModuleList([Block() for _ in range(3)])
    seen = []
    hook = look_into(SimpleNamespace(transformer_blocks=blocks), seen)
    picture, caption = torch.zeros(1, 2), torch.ones(1, 2)
    blocks[1](picture, caption)
    blocks[1](encoder_hidden_states=caption, hidden_states=picture)
    hook.remove()
    blocks[1](picture, caption)
    assert len(seen) == 2
    assert all(found is picture for found in seen)


COUNTED = [name for name in entries("detector") if detector(name).cost(SETUPS["Stable Diffusion"]())]


@pytest.mark.parametrize("name", COUNTED)
def test_the_cost_is_what_is_evaluated(name):
    """In evaluations of both branches of one image; the search of the critical scale may end earlier."""
    setup = SETUPS["Stable Diffusion"]()
    made = detector(name, setup)
    evaluated = 0

    def count(module, args, kwargs, output):
        nonlocal evaluated
        evaluated += len(output[0])

    hooks = [pipe.unet.register_forward_hook(count, with_kwargs=True) for pipe in (setup.pipe, setup.checkpoint)]
    (plain,) = generate(setup, PROMPTS[:2], range(2), batch_size=2)
    without, evaluated = evaluated, 0
    (batch,) = generate(setup, PROMPTS[:2], range(2), batch_size=2, signals=made.signals)
    for hook in hooks:
        hook.remove()
    assert torch.equal(plain.images, batch.images)
    measured = (evaluated - without) / 4
    if name in ("critical-scale", "caption-gap"):
        assert 0 < measured <= made.cost(setup)
    else:
        # the estimator of a trace evaluates one image besides, to see how much memory that takes
        assert measured - made.cost(setup) == (0.25 if name == "flipd" else 0)
