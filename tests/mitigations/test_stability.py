from contextlib import contextmanager
from functools import partial

import pytest
import torch
from diffusers import DDIMScheduler, LCMScheduler

from cryptomnesia import StabilityRule, UsageError, watch
from cryptomnesia.detectors.base import Moments
from cryptomnesia.mitigations.stability import Regions, StabilityCorrection, stabilize
from cryptomnesia.pipelines.denoiser import norms
from cryptomnesia.pipelines.setup import Setup
from cryptomnesia.testing.miniatures import FAMILIES, call_oracle, oracle_pipeline, stable_diffusion
from cryptomnesia.testing.oracles import FiniteSet, Gaussian
from solvers import SOLVERS, call, with_solver


def moments(mean, std, count=1):
    return Moments(torch.full((count,), mean), torch.full((count,), std))


def apply(x0_std, index=0, severity=0, delta_mean=1.0):
    """One image with z = (3, 4), an update to (0, 0) and x̂0 = (6, 8); α_{t−1} = 1/2."""
    count = index + 1
    regions = Regions(
        delta=moments(delta_mean, 0.5, count), z=moments(4.0, 0.25, count), x0=moments(5.0, x0_std, count)
    )
    wanted, active, severity = StabilityRule().apply(
        z=torch.tensor([[3.0, 4.0]]),
        after=torch.zeros(1, 2),
        x0=torch.tensor([[6.0, 8.0]]),
        alpha_after=0.5,
        regions=regions,
        index=index,
        severity=torch.tensor([severity]),
    )
    return wanted[0].tolist(), bool(active), int(severity)


def test_a_strong_case_worked_by_hand():
    # x̂0 → (3, 4): δ = (−3, −4) + ½·(−3, −4) = (−4.5, −6), norm 7.5; clamped to 1 + 3·½: (−1.5, −2);
    # z′ = (1.5, 2), norm 2.5, lifted to 4 − 3·¼ = 3.25
    wanted, active, severity = apply(x0_std=0.25)
    assert wanted == pytest.approx([1.95, 2.6])
    assert (active, severity) == (True, 2)


def test_a_mild_case_worked_by_hand():
    # as above without the clamp of δ: z′ = (−1.5, −2), lifted to norm 3.25
    wanted, active, severity = apply(x0_std=1.0)
    assert wanted == pytest.approx([-1.95, -2.6])
    assert (active, severity) == (True, 1)


@pytest.mark.parametrize(
    ("case", "expected"),
    [
        ({"x0_std": 10.0}, (False, 0)),  # x̂0 in its region: never triggered
        ({"x0_std": 1.0, "delta_mean": 5.0}, (False, 0)),  # δ in its region
        ({"x0_std": 10.0, "severity": 2}, (True, 2)),  # triggered earlier: δ alone decides
        ({"x0_std": 10.0, "severity": 2, "delta_mean": 5.0}, (False, 2)),
        ({"x0_std": 1.0, "index": 9, "severity": 1}, (True, 1)),
        ({"x0_std": 1.0, "index": 10, "severity": 1}, (False, 1)),  # mild ends at k = 10
        ({"x0_std": 1.0, "index": 10, "severity": 2}, (True, 2)),
        ({"x0_std": 0.25, "index": 12, "severity": 1}, (False, 1)),  # severity is kept
    ],
)
def test_when_the_rule_acts(case, expected):
    wanted, *decided = apply(**case)
    assert tuple(decided) == expected
    assert (wanted == [0.0, 0.0]) is not expected[0]


@contextmanager
def stabilized(pipe, references, regions, rule=None):
    """`stabilize` with regions that a test sets."""
    done = StabilityCorrection(references, rule)
    done.regions = regions
    with watch(pipe, steer=done.steer) as seen:
        yield done, seen


def run(pipe, seeds=(0, 1), steps=6):
    return pipe(
        ["a red circle"] * len(seeds),
        generator=[torch.Generator().manual_seed(seed) for seed in seeds],
        num_inference_steps=steps,
        guidance_scale=2.0,
        output_type="latent",
    ).images


def assert_corrected_everywhere(pipe, run):
    """With regions so far off that every image is corrected strongly, the norms are where the rule wants them."""
    with watch(pipe) as seen:
        plain = run(pipe)
    usual = seen.trajectory.norms
    far = Regions(
        *(Moments(0.5 * usual[name].mean(dim=0), 0.005 * usual[name].mean(dim=0)) for name in ("delta", "z", "x0"))
    )
    with stabilized(pipe, seen.trajectory, far) as (done, seen):
        corrected = run(pipe)
    assert (done.severity == 2).all()
    assert done.active.shape == usual["z"].shape
    assert done.active.any(dim=1).all()
    torch.testing.assert_close(done.as_proposed(seen.trajectory).norms["delta"][:, 0], usual["delta"][:, 0])
    z = seen.trajectory.norms["z"]
    deviation = ((z - far.z.mean).abs() / far.z.std)[done.active]
    assert (deviation < 3.01).all()  # γ = 3 and the rounding of the solver's own arithmetic
    assert (deviation > 2.99).any()
    assert not torch.equal(corrected, plain)
    assert torch.equal(run(pipe), plain)


@pytest.mark.parametrize("family", FAMILIES)
def test_corrected_norms_are_where_the_rule_wants_them(family):
    assert_corrected_everywhere(FAMILIES[family](), run)


@pytest.mark.parametrize("solver", SOLVERS)
def test_corrections_arrive_through_every_solver(solver):
    assert_corrected_everywhere(with_solver(solver), partial(call, name=solver))


@pytest.mark.parametrize("solver", SOLVERS)
def test_the_rescaled_x0_arrives_in_the_latents(solver):
    """Mild: the latents are off the solver's own by α_{t−1}·(x̂0′ − x̂0), so they hold an x̂0 of the wanted norm."""
    pipe = with_solver(solver)
    with watch(pipe) as seen:
        call(pipe, solver)
    usual = seen.trajectory.norms
    # another norm at every evaluation, so that every one has something to correct
    x0 = usual["x0"]
    wanted = x0.mean(dim=0) * torch.tensor([0.5, 0.8]).repeat(x0.shape[1])[: x0.shape[1]]
    anywhere = Moments(torch.ones_like(wanted), torch.full_like(wanted, 1e9))
    proposed = []

    def look(step, solver):
        proposed.append((step.sample, solver.after(step.guided.value), step.guided.x0, solver.alpha_after))

    rule = StabilityRule(tau_mild=-1.0, tau_strong=torch.inf, k=len(wanted))
    regions = Regions(anywhere, anywhere, Moments(wanted, wanted))
    with stabilized(pipe, seen.trajectory, regions, rule), watch(pipe, steer=look):
        latents = call(pipe, solver)
    reached = [sample for sample, *_ in proposed[1:]] + [latents]
    for found, (_, after, x0, alpha), norm in zip(reached, proposed, wanted, strict=True):
        rounding = 1e-3 * norms(found) / alpha
        assert ((norms(x0) - norm).abs() > 10 * rounding).all()
        assert ((norms(x0 + (found - after) / alpha) - norm).abs() < rounding).all()


@pytest.mark.parametrize("solver", SOLVERS)
def test_the_clamped_update_arrives(solver):
    """Strong, and the latents' norm is free: every update ends in its region, those outside on its border."""
    pipe = with_solver(solver)
    with watch(pipe) as seen:
        call(pipe, solver)
    usual = seen.trajectory.norms
    delta, x0 = (Moments(0.5 * norm.mean(dim=0), 0.005 * norm.mean(dim=0)) for norm in (usual["delta"], usual["x0"]))
    free = Moments(delta.mean, torch.full_like(delta.mean, 1e9))
    always = StabilityRule(tau_mild=-1.0, tau_strong=-1.0)
    with stabilized(pipe, seen.trajectory, Regions(delta, free, x0), always) as (done, seen):
        call(pipe, solver)
    assert done.active.all()
    found = seen.trajectory.norms
    outside = (found["delta"] - delta.mean).abs() - 3 * delta.std
    assert (outside < 1e-6 * found["z"]).all()
    assert (outside.amax(dim=1) > -1e-6 * found["z"][:, 0]).all()


def test_an_image_inside_its_region_is_not_touched_by_its_neighbour():
    pipe = stable_diffusion()
    with watch(pipe) as seen:
        plain = run(pipe)
    usual = [seen.trajectory.norms[name] for name in ("delta", "z", "x0")]
    # centred on the second image, so narrow that the first one is far outside
    regions = Regions(*(Moments(norm[1], 1e-3 * (norm[0] - norm[1]).abs()) for norm in usual))
    with stabilized(pipe, seen.trajectory, regions) as (done, _):
        corrected = run(pipe)
    assert done.active[0].any()
    assert not done.active[1].any()
    assert not torch.equal(corrected[0], plain[0])
    assert torch.equal(corrected[1], plain[1])


def test_mitigation_explains_what_it_cannot_do():
    pipe = stable_diffusion()
    with watch(pipe) as seen:
        run(pipe, steps=6)
    references = seen.trajectory
    with pytest.raises(UsageError, match="calibration 6"), stabilize(pipe, references):
        run(pipe, steps=5)
    config = pipe.scheduler.config
    pipe.scheduler = DDIMScheduler.from_config(config, clip_sample=True)
    with pytest.raises(UsageError, match="clip_sample=True"), stabilize(pipe, references):
        pass
    pipe.scheduler = LCMScheduler.from_config(config)
    with pytest.raises(UsageError, match="cannot steer a LCMScheduler"), stabilize(pipe, references):
        pass


def test_a_perfect_memorizer_is_pulled_away_from_its_image():
    generator = torch.Generator().manual_seed(0)
    planted = 2.5 * torch.randn((1, 1, 4, 4), generator=generator)
    pipe = oracle_pipeline(FiniteSet((torch.randn((64, 1, 4, 4), generator=generator), planted)))
    ordinary = oracle_pipeline(
        Gaussian(
            mean=torch.zeros(2, 16, dtype=torch.float64),
            basis=torch.eye(16, dtype=torch.float64).repeat(2, 1, 1),
            variances=torch.ones(2, 16, dtype=torch.float64),
        )
    )
    with watch(ordinary) as seen:
        call_oracle(ordinary, which=1, seeds=range(100, 160))
    plain = call_oracle(pipe, which=1, seeds=range(8))
    with stabilize(pipe, seen.trajectory) as (done, _):
        corrected = call_oracle(pipe, which=1, seeds=range(8))
    assert (done.severity > 0).all()
    distance, before = ((images - planted).flatten(1).norm(dim=1) for images in (corrected, plain))
    assert (distance > 5 * before).all()


def test_the_regions_are_those_of_the_reference_runs():
    pipe = stable_diffusion()
    with watch(pipe) as seen:
        run(pipe, seeds=(0, 1, 2))
    references = seen.trajectory
    regions = StabilityRule().correction(references).regions
    for name in ("delta", "z", "x0"):
        found = getattr(regions, name)
        assert torch.equal(found.mean, references.norms[name].mean(dim=0))
        assert torch.equal(found.std, references.norms[name].std(dim=0))


def test_the_rule_says_what_it_alters_and_what_it_needs():
    pipe = stable_diffusion()
    setup = Setup.of(pipe, {"num_inference_steps": 6, "guidance_scale": 2.0})
    rule = StabilityRule()
    assert rule.alters == {"delta"}
    assert rule.cost(setup) == 6
    assert setup.accepts(rule)
    pipe.scheduler = LCMScheduler.from_config(pipe.scheduler.config)
    assert not setup.accepts(rule)
    assert "tau_mild=3.0" in rule.describe()
