import pytest
import torch

from cryptomnesia import UsageError
from cryptomnesia.localizers.diagonal import DiagonalEstimator, coloured, rademacher
from test_localizers import SIZE, gaussian

ENGINES = ("reverse", "forward", "finite")


def linear(matrices):
    """f(x) = A·x, another A for every image, (B, n, n)."""
    return lambda x, rows: torch.einsum("bij,bj->bi", matrices[rows], x.flatten(1)).view_as(x)


def local(seed, shape=(4, 6, 6)):
    """A matrix whose entries fall off with the distance of places, as a network's Jacobian does."""
    generator = torch.Generator().manual_seed(seed)
    channel, y, x = (each.flatten() for each in torch.meshgrid(*map(torch.arange, shape), indexing="ij"))
    apart = ((y[:, None] - y) ** 2 + (x[:, None] - x) ** 2).double().sqrt()
    size = len(channel)
    return torch.randn((size, size), generator=generator, dtype=torch.float64) * torch.exp(-apart)


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample", "flow_prediction"])
@pytest.mark.parametrize("engine", ["exact", *ENGINES])
def test_the_curvature_of_a_gaussian_is_exact_with_spanning_probes(kind, engine):
    oracle = gaussian(kind, mixed=True)
    x = torch.randn((3, 1, 4, 4), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    which = torch.tensor([1, 1, 0])
    sigma = oracle(x, 201, {"which": which}).sigma
    # one colour for every entry: the Hadamard set spans the space
    estimator = DiagonalEstimator(engine=engine, probes=SIZE, group=SIZE, rows=5)
    found = estimator.estimate(lambda at, rows: oracle(at, 201, {"which": which[rows]}).epsilon, x, scale=sigma)
    expected = torch.stack([oracle.curvature(int(c), 201).diagonal().view(1, 4, 4) for c in which])
    torch.testing.assert_close(found.value / sigma, expected, rtol=1e-6, atol=1e-6)
    assert (found.probes == SIZE).all()


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("design", ["random", "orthogonal"])
def test_estimates_come_within_their_own_standard_error(engine, design):
    matrices = torch.stack([local(0), local(1)])
    x = torch.zeros((2, 4, 6, 6), dtype=torch.float64)
    estimator = DiagonalEstimator(engine=engine, design=design, probes=256, group=16, rows=100)
    found = estimator.estimate(linear(matrices), x)
    truth = matrices.diagonal(dim1=1, dim2=2).view_as(x)
    apart = (found.value - truth).abs() / found.error
    assert (apart < 2).double().mean() > 0.85  # 16 sets: a t-distribution
    assert (apart < 8).all()


def test_orthogonal_probes_beat_random_ones():
    matrices = torch.stack([local(seed) for seed in range(4)])
    x = torch.zeros((4, 4, 6, 6), dtype=torch.float64)
    truth = matrices.diagonal(dim1=1, dim2=2).view_as(x)

    def error(**settings):
        found = DiagonalEstimator(engine="reverse", **settings).estimate(linear(matrices), x)
        return (found.value - truth).square().mean().sqrt().item()

    assert error(probes=32, group=32) < 0.6 * error(probes=32, design="random")
    assert error(probes=32, group=16) < 0.8 * error(probes=32, design="random")


def test_estimation_stops_when_the_wanted_error_is_reached_image_by_image():
    easy, hard = (local(0)[None] + strength * torch.eye(144, dtype=torch.float64) for strength in (20, 2))
    x = torch.zeros((1, 4, 6, 6), dtype=torch.float64)
    for design in ("random", "orthogonal"):
        estimator = DiagonalEstimator(design=design, probes=4096, wanted=0.05)
        alone = estimator.estimate(linear(easy), x)
        both = estimator.estimate(linear(torch.cat([hard, easy])), torch.cat([x, x]))
        assert both.probes[0] > both.probes[1] == alone.probes[0]
        assert (both.relative_error <= 0.05).all()
        torch.testing.assert_close(both.value[1:], alone.value)
        for found, matrices in ((both.value[0], hard[0]), (alone.value[0], easy[0])):
            truth = matrices.diagonal().view_as(found)
            assert (found - truth).norm() < 0.25 * truth.norm()


def test_pure_noise_never_looks_like_an_estimate():
    """A matrix without a diagonal: the estimate is all error, and says so."""
    matrices = (local(0) * (1 - torch.eye(144, dtype=torch.float64)))[None]
    x = torch.zeros((1, 4, 6, 6), dtype=torch.float64)
    found = DiagonalEstimator(probes=512, design="random", wanted=1.0).estimate(linear(matrices), x)
    assert found.relative_error.item() > 2
    assert found.probes.item() == 512


def test_an_estimate_depends_neither_on_the_batch_nor_on_how_it_is_cut():
    matrices = torch.stack([local(0), local(1), local(2)])
    x = torch.zeros((3, 4, 6, 6), dtype=torch.float64)
    for engine in ENGINES:
        whole = DiagonalEstimator(engine=engine, rows=1000).estimate(linear(matrices), x).value
        cut = DiagonalEstimator(engine=engine, rows=7).estimate(linear(matrices), x).value
        alone = DiagonalEstimator(engine=engine).estimate(linear(matrices[1:2]), x[1:2]).value
        torch.testing.assert_close(whole, cut)
        torch.testing.assert_close(whole[1:2], alone)


def test_colours_separate_channels_and_neighbours():
    colours = coloured(torch.Size((4, 8, 8)), 16)
    block = colours[:, :2, :2].flatten()
    assert sorted(block.tolist()) == list(range(16))
    assert torch.equal(colours[:, 2:, 2:], colours[:, :-2, :-2])
    assert coloured(torch.Size((4, 8, 8)), 4).unique().tolist() == [0, 1, 2, 3]
    assert coloured(torch.Size((4, 8, 8)), 64)[:, :4, :4].unique().numel() == 64
    assert coloured(torch.Size((4, 8, 8)), 32)[:, :2, :4].unique().numel() == 32
    assert coloured(torch.Size((3, 8, 8)), 16).max() < 16
    assert coloured(torch.Size((16, 8, 8)), 4).max() == 3
    packed = coloured(torch.Size((9, 16)), 32)
    assert packed.shape == (9, 16)
    assert packed[:2].unique().numel() == 32


def test_random_signs_are_signs():
    signs = rademacher(torch.Size((4, 8, 8)), 50, torch.Generator().manual_seed(0))
    assert signs.unique().tolist() == [-1.0, 1.0]
    assert abs(signs.mean().item()) < 0.05


def test_half_precision_is_never_silently_wrong():
    def half(x, rows):
        return 3 * x

    x = torch.ones((1, 4, 4, 4), dtype=torch.bfloat16)
    with pytest.raises(UsageError, match="finite differences drown in the rounding of bfloat16"):
        DiagonalEstimator(engine="finite").estimate(half, x)
    assert (DiagonalEstimator().estimate(half, x).value == 3).all()
    with torch.autocast("cpu", torch.bfloat16):
        with pytest.raises(UsageError, match="rounding of autocast"):
            DiagonalEstimator(engine="finite").estimate(half, x.float())
        assert (DiagonalEstimator().estimate(half, x.float()).value == 3).all()
    # errors are kept in fp32, where their squares do not vanish
    small = DiagonalEstimator(design="random").estimate(lambda at, rows: 1e-4 * at.flip(-1) + 1e-2 * at, x.half())
    assert small.error.dtype == torch.float32
    assert 0 < small.relative_error.item() < 0.1


def test_bad_settings_are_explained():
    for settings, message in [
        ({"probes": 0}, "got 0 probes"),
        ({"engine": "tarot"}, "got engine 'tarot'"),
        ({"design": "tarot"}, "design 'tarot'"),
        ({"probes": 20}, "20 orthogonal probes in groups of 16"),
        ({"group": 12, "probes": 12}, "group of 12 probes; give a power of two"),
        ({"rows": 0}, "rows=0"),
        ({"step": 0.0}, "step=0"),
        ({"wanted": 0.0}, "wanted error of 0"),
    ]:
        with pytest.raises(UsageError, match=message):
            DiagonalEstimator(**settings)
    with pytest.raises(UsageError, match="not finite"):
        DiagonalEstimator().estimate(lambda x, rows: x * torch.nan, torch.zeros(1, 4, 4, 4))
