import itertools
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch.utils.checkpoint import checkpoint

from cryptomnesia import UsageError
from cryptomnesia.localizers.jacobian.diagonal import DiagonalEstimator, coloured, lattice, rademacher
from cryptomnesia.localizers.jacobian.memory import peak_bytes
from mapped_runs import SIZE, gaussian

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
    estimator = DiagonalEstimator(engine=engine, probes=SIZE, group=SIZE)
    found = estimator.estimate(lambda at, rows: oracle(at, 201, {"which": which[rows]}).epsilon, x, scale=sigma)
    expected = torch.stack([oracle.curvature(int(c), 201).diagonal().view(1, 4, 4) for c in which])
    torch.testing.assert_close(found.value / sigma, expected, rtol=1e-6, atol=1e-6)
    assert (found.probes == SIZE).all()


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(("design", "group"), [("random", 16), ("orthogonal", 16), ("orthogonal", 15)])
def test_estimates_come_within_their_own_standard_error(engine, design, group):
    matrices = torch.stack([local(0), local(1)])
    x = torch.zeros((2, 4, 6, 6), dtype=torch.float64)
    estimator = DiagonalEstimator(engine=engine, design=design, probes=16 * group, group=group)
    found = estimator.estimate(linear(matrices), x)
    truth = matrices.diagonal(dim1=1, dim2=2).view_as(x)
    apart = (found.value - truth).abs() / found.error
    assert (apart < 2).double().mean() > 0.85  # 16 sets: a t-distribution
    assert (apart < 8).all()


@pytest.mark.parametrize("engine", ENGINES)
def test_a_set_of_any_size_is_exact_if_every_entry_has_its_own_colour(engine):
    matrix = torch.randn((6, 6), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x = torch.zeros((2, 1, 2, 3), dtype=torch.float64)
    assert coloured(x.shape[1:], 6).unique().numel() == 6
    found = DiagonalEstimator(engine=engine, probes=12, group=6).estimate(linear(matrix.expand(2, 6, 6)), x)
    torch.testing.assert_close(found.value, matrix.diagonal().view(1, 1, 2, 3).expand_as(x))


def test_the_error_falls_with_every_colour():
    """Also if their number is no power of two."""
    matrices = torch.stack([local(seed) for seed in range(4)])
    x = torch.zeros((4, 4, 6, 6), dtype=torch.float64)
    truth = matrices.diagonal(dim1=1, dim2=2).view_as(x)

    def error(group):
        made = (DiagonalEstimator(probes=group, group=group, seed=seed) for seed in range(8))
        return sum((each.estimate(linear(matrices), x).value - truth).square().mean().item() for each in made)

    errors = [error(group) for group in (4, 6, 8, 12, 16)]
    assert errors == sorted(errors, reverse=True)


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


@pytest.mark.parametrize("engine", ENGINES)
def test_an_estimate_depends_neither_on_the_batch_nor_on_memory(engine):
    matrices = torch.stack([local(0), local(1), local(2)])
    x = torch.zeros((3, 4, 6, 6), dtype=torch.float64)
    sizes = []

    def function(at, rows):
        sizes.append(len(at))
        return linear(matrices)(at, rows)

    whole = DiagonalEstimator(engine=engine).estimate(function, x, seeds=[5, 6, 7])
    assert max(sizes) == (3 if engine == "reverse" else 24)
    sizes.clear()
    cut = DiagonalEstimator(engine=engine, memory=1).estimate(function, x, seeds=[5, 6, 7])
    assert set(sizes) == {1}
    alone = DiagonalEstimator(engine=engine).estimate(linear(matrices[1:2]), x[1:2], seeds=[6])
    for part in ("value", "error"):
        torch.testing.assert_close(getattr(whole, part), getattr(cut, part))
        torch.testing.assert_close(getattr(whole, part)[1:2], getattr(alone, part))


@pytest.mark.parametrize("engine", ENGINES)
def test_an_evaluation_keeps_within_its_memory(engine):
    """A function that needs half a megabyte for every point of half a kilobyte."""
    x = torch.randn((8, 4, 4, 4), generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def greedy(at, rows):
        return at.repeat(1, 1000, 1, 1).sin().unflatten(1, (1000, 4)).mean(dim=1)

    memory = 8 * 2**20
    peak = peak_bytes(lambda: DiagonalEstimator(engine=engine, memory=memory).estimate(greedy, x))
    assert 0.6 * memory < peak < 1.1 * memory


def test_new_tensors_count_as_long_as_they_live():
    weight = torch.zeros(1000)

    def call():
        first = weight.view(10, 100) + 1
        second = first.sum(dim=0)  # both live
        del first
        return second.view(-1) * 2

    assert peak_bytes(call) == 4 * 1100


def test_reverse_mode_keeps_no_graph_for_the_weights():
    torch.manual_seed(0)
    widths = [64, *[512] * 9, 64]  # activations outweigh probes
    network = torch.nn.Sequential(*(torch.nn.Linear(*pair) for pair in pairwise(widths)))
    x = torch.randn(50, 4, 4, 4)

    def estimate():
        return DiagonalEstimator(engine="reverse").estimate(lambda at, rows: network(at.flatten(1)).view_as(at), x)

    learning = peak_bytes(estimate)
    before = estimate().value
    assert all(weight.requires_grad and weight.grad is None for weight in network.parameters())
    network.requires_grad_(False)
    assert learning == peak_bytes(estimate)
    assert torch.equal(before, estimate().value)


def test_a_network_that_recomputes_its_activations_is_refused_in_reverse_mode():
    network = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.SiLU(), torch.nn.Linear(4, 4))

    def function(at, rows):
        return checkpoint(network, at, use_reentrant=False)

    with pytest.raises(UsageError, match=r"call its disable_gradient_checkpointing\(\)"):
        DiagonalEstimator(engine="reverse").estimate(function, torch.zeros(1, 4, 4, 4))
    assert DiagonalEstimator().estimate(function, torch.zeros(1, 4, 4, 4)).value.shape == (1, 4, 4, 4)


@pytest.mark.parametrize("design", ["random", "orthogonal"])
def test_a_sum_over_channels_knows_its_own_error(design):
    """Each of 200 images has probes of its own, so their spread is what the standard error should be."""
    matrix = local(0) + local(0).T
    x = torch.zeros((200, 4, 6, 6), dtype=torch.float64)
    estimator = DiagonalEstimator(probes=64, group=4, design=design)

    def function(at, rows):
        return (at.flatten(1) @ matrix).view_as(at)

    summed = estimator.estimate(function, x, seeds=range(200), reduce=lambda values: values.sum(dim=1))
    assert summed.value.shape == summed.error.shape == (200, 6, 6)
    spread = summed.value.std(dim=0).square().mean().sqrt()
    assert summed.error.square().mean().sqrt().item() == pytest.approx(spread.item(), rel=0.05)
    each = estimator.estimate(function, x, seeds=range(200))
    torch.testing.assert_close(each.value.sum(dim=1), summed.value)
    if design == "random":  # where channels of one place are not told apart their errors add up
        assert each.error.square().sum(dim=1).mean().sqrt() < 0.9 * spread
    exact = DiagonalEstimator(engine="exact").estimate(function, x[:1], reduce=lambda values: values.sum(dim=1))
    torch.testing.assert_close(exact.value[0], matrix.diagonal().view(4, 6, 6).sum(dim=0))


def test_the_wanted_error_is_that_of_the_sum():
    matrix = local(0) + 2 * torch.eye(144, dtype=torch.float64)
    x = torch.zeros((1, 4, 6, 6), dtype=torch.float64)
    estimator = DiagonalEstimator(design="random", probes=4096, wanted=0.05)
    each, summed = (
        estimator.estimate(linear(matrix[None]), x, **more) for more in ({}, {"reduce": lambda v: v.sum(dim=1)})
    )
    assert summed.relative_error.item() <= 0.05
    assert summed.probes.item() < each.probes.item()


def test_probes_belong_to_the_image_and_to_the_estimator():
    matrices = local(0).repeat(3, 1, 1)
    x = torch.zeros((3, 4, 6, 6), dtype=torch.float64)
    found = DiagonalEstimator().estimate(linear(matrices), x, seeds=[3, 4, 3]).value
    assert torch.equal(found[0], found[2])
    assert not torch.allclose(found[0], found[1])
    assert not torch.allclose(DiagonalEstimator(seed=1).estimate(linear(matrices), x, seeds=[3, 4, 3]).value, found)
    same = DiagonalEstimator().estimate(linear(matrices), x).value
    assert torch.equal(same[0], same[1])
    # any seed that makes an image will do
    assert DiagonalEstimator(seed=-1).estimate(linear(matrices), x, seeds=[-1, 2**63 - 1, 0]).value.isfinite().all()


def places(shape):
    """Squared distance of positions, plus 1 between channels, of all pairs of entries."""
    channel, y, x = (each.flatten() for each in torch.meshgrid(*map(torch.arange, shape), indexing="ij"))
    return (y[:, None] - y) ** 2 + (x[:, None] - x) ** 2 + (channel[:, None] != channel)


@pytest.mark.parametrize(
    ("shape", "colours", "closest"),
    [
        ((1, 8, 8), 16, 16),
        ((3, 8, 8), 16, 5),
        ((4, 8, 8), 4, 2),
        ((4, 8, 8), 8, 3),
        ((4, 8, 8), 16, 5),
        ((4, 8, 8), 64, 17),
        ((16, 8, 8), 4, 1),
        ((16, 8, 8), 64, 5),
        ((4, 8, 1), 16, 17),
    ],
)
def test_like_colours_are_far_apart(shape, colours, closest):
    colour = coloured(torch.Size(shape), colours).flatten()
    assert colour.unique().tolist() == list(range(colours))
    like = (colour[:, None] == colour).fill_diagonal_(fill_value=False)
    assert places(shape)[like].min() == closest


@pytest.mark.parametrize("colours", [4, 6, 7, 8, 12, 16])
def test_no_lattice_keeps_like_colours_farther_apart(colours):
    shape = (4, 9, 9)
    weight = (1.0 + places(shape)).double() ** -2
    weight.fill_diagonal_(0)
    channel, y, x = (each.flatten() for each in torch.meshgrid(*map(torch.arange, shape), indexing="ij"))

    def cost(steps):
        colour = (steps[0] * channel + steps[1] * y + steps[2] * x) % colours
        return weight[colour[:, None] == colour].sum().item()

    # borders count here and do not there
    least = min(map(cost, itertools.product(range(colours // 2 + 1), range(colours), range(colours))))
    assert cost(lattice(*shape, colours)) < 1.02 * least


def test_which_lattice_it_is_depends_on_no_rounding():
    # mirrored and turned lattices are as good; calibrations rest on these
    assert lattice(4, 64, 64, 8) == (2, 1, 3)
    assert lattice(4, 16, 16, 16) == (4, 1, 6)
    assert lattice(16, 128, 128, 8) == (1, 1, 3)


def test_packed_latents_are_coloured_as_a_row_of_tokens():
    packed = coloured(torch.Size((9, 16)), 32)
    assert packed.shape == (9, 16)
    assert packed[:2].unique().numel() == 32
    assert torch.equal(packed, coloured(torch.Size((16, 1, 9)), 32)[:, 0].T)


def test_random_signs_are_signs():
    signs = rademacher(torch.Size((4, 8, 8)), 50, np.random.default_rng(0))
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
        ({"probes": 20}, "20 orthogonal probes in groups of 8"),
        ({"wanted": 0.1}, "a wanted error with 16 probes, .* give 24 or more"),
        ({"group": 512, "probes": 512}, "group of 512 probes; give 1 … 256"),
        ({"memory": 0}, "memory=0"),
        ({"step": 0.0}, "step=0"),
        ({"wanted": 0.0}, "wanted error of 0"),
    ]:
        with pytest.raises(UsageError, match=message):
            DiagonalEstimator(**settings)
    with pytest.raises(UsageError, match="not finite"):
        DiagonalEstimator().estimate(lambda x, rows: x * torch.nan, torch.zeros(1, 4, 4, 4))
