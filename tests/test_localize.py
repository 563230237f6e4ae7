import pytest
import torch
from scipy.linalg import hadamard
from scipy.stats import ortho_group
from sklearn.metrics import roc_auc_score

from cryptomnesia import CurvatureDifference, ScoreDifference, UsageError, watch
from cryptomnesia.adapters import adapter_for
from cryptomnesia.localize import upsampled
from cryptomnesia.localize.curvature import jacobian_diagonal, rademacher
from oracles import FiniteSet, Gaussian
from tiny_pipelines import FAMILIES, call_oracle, oracle_pipeline, stable_diffusion

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


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
def test_curvature_of_a_gaussian_is_exact_with_spanning_probes(kind):
    oracle = gaussian(kind, mixed=True)
    x = torch.randn(3, 1, 4, 4)
    which = {"which": torch.tensor([1, 1, 0])}
    probes = torch.from_numpy(hadamard(SIZE)).float().view(SIZE, 1, 4, 4)
    diagonal = jacobian_diagonal(lambda at: oracle(at, 201, which).epsilon, x, probes)
    sigma = oracle(x, 201, which).sigma
    expected = torch.stack([oracle.curvature(c, 201).diagonal().view(1, 4, 4) for c in (1, 1, 0)])
    torch.testing.assert_close(diagonal / sigma, expected.float(), rtol=2e-3, atol=1e-4)


def test_random_probes_come_within_their_standard_error():
    oracle = gaussian(mixed=True)
    x = torch.randn(1, 1, 4, 4)
    which = {"which": torch.tensor([1])}
    probes = rademacher(torch.Size((1, 4, 4)), 2000, seed=0)
    estimate = jacobian_diagonal(lambda at: oracle(at, 201, which).epsilon, x, probes).flatten().double()
    jacobian = oracle.curvature(1, 201) * oracle(x, 201, which).sigma
    # the variance of one probe's estimate of J_ii is the sum of J_ij² over j ≠ i
    error = (jacobian.square().sum(dim=1) - jacobian.diagonal() ** 2).sqrt() / 2000**0.5
    assert ((estimate - jacobian.diagonal()).abs() < 5 * error).all()


@pytest.fixture(scope="module")
def gaussian_run():
    pipe = oracle_pipeline(gaussian())
    with watch(pipe, keep="all") as seen:
        call_oracle(pipe, which=1, seeds=range(3), steps=50)
    return seen.trajectory, view(pipe)


def view(pipe):
    """The oracle as a denoiser of the conditioning that was recorded."""
    return lambda x, t, inputs: pipe.unet.oracle(x, t, {"which": inputs["encoder_hidden_states"][:, 0, 0].long()})


def test_curvature_difference_matches_the_closed_form(gaussian_run):
    trajectory, denoiser = gaussian_run
    oracle = gaussian()
    t = trajectory.step().t
    expected = (oracle.curvature(1, t) - oracle.curvature(0, t)).diagonal().view(4, 4).float()
    # the covariances are diagonal here, so every single probe gives the exact diagonal
    maps = CurvatureDifference(probes=1).map(trajectory, denoiser)
    torch.testing.assert_close(maps, expected.relu().expand(3, -1, -1), rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("localizer", [CurvatureDifference(), ScoreDifference()])
def test_every_localizer_points_at_the_planted_half_of_a_gaussian(localizer, gaussian_run):
    maps = localizer.map(*gaussian_run)
    assert maps.shape == (3, 4, 4)
    assert (maps >= 0).all()
    for each in maps:
        assert roc_auc_score(PLANTED.flatten(), each.flatten()) > 0.95


def test_the_curvature_map_points_at_the_planted_half_of_a_memorizer():
    generator = torch.Generator().manual_seed(0)
    everything = 2.0 * torch.randint(0, 2, (4096, 1, 4, 4), generator=generator) - 1
    template = torch.where(PLANTED, everything[:1], everything)
    pipe = oracle_pipeline(FiniteSet((everything, template)))
    # in the middle of the run: at its end a finite set pins every pixel, planted or not
    with watch(pipe, keep=(25,)) as seen:
        call_oracle(pipe, which=1, seeds=range(2), steps=50)
    maps = CurvatureDifference(probes=64, step=25).map(seen.trajectory, view(pipe))
    for each in maps:
        assert roc_auc_score(PLANTED.flatten(), each.flatten()) > 0.95


@pytest.mark.parametrize("family", FAMILIES)
def test_maps_of_every_family_do_not_depend_on_the_batch(family):
    pipe = FAMILIES[family]()
    with watch(pipe, keep=(-1,)) as seen:
        generators = [torch.Generator().manual_seed(seed) for seed in (0, 1)]
        pipe(["a red circle", "a blue star"], generator=generators, num_inference_steps=3, output_type="latent")
    denoiser = adapter_for(pipe).denoiser()
    for localizer in (CurvatureDifference(probes=4), ScoreDifference()):
        both = localizer.map(seen.trajectory, denoiser)
        alone = localizer.map(seen.trajectory.rows([1]), denoiser)
        assert both.shape == (2, 8, 8)
        assert torch.isfinite(both).all()
        torch.testing.assert_close(both[1:], alone, rtol=1e-3, atol=1e-3 * both.max().item())


def test_maps_explain_what_they_lack():
    pipe = stable_diffusion()
    with watch(pipe, keep=(-1,)) as seen:
        pipe("a red circle", guidance_scale=1.0, num_inference_steps=2, output_type="latent")
    for localizer in (CurvatureDifference(), ScoreDifference()):
        with pytest.raises(UsageError, match="no unconditional branch"):
            localizer.map(seen.trajectory, adapter_for(pipe).denoiser())
    with pytest.raises(UsageError, match="got 0 probes"):
        CurvatureDifference(probes=0)


def test_upsampling_keeps_a_flat_map_flat():
    assert torch.equal(upsampled(torch.ones(1, 4, 4), 16, 16), torch.ones(1, 16, 16))
