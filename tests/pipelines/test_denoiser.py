import math

import pytest
import torch
from diffusers import FluxPipeline

from cryptomnesia.pipelines.denoiser import FINEST, Prediction, detail, norms
from cryptomnesia.pipelines.inputs import GRID, Shared
from cryptomnesia.testing.oracles import value_of


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample", "flow_prediction"])
def test_prediction_types_say_the_same(kind):
    x0, epsilon = torch.randn(2, 3, 4, 4), torch.randn(2, 3, 4, 4)
    alpha, sigma = (0.8, 0.6) if kind != "flow_prediction" else (0.7, 0.3)
    x = alpha * x0 + sigma * epsilon
    prediction = Prediction(x, value_of(x, epsilon, alpha, sigma, kind), alpha, sigma, kind)
    torch.testing.assert_close(prediction.epsilon, epsilon)
    torch.testing.assert_close(prediction.x0, x0)
    torch.testing.assert_close(prediction.score, -epsilon / sigma)
    assert torch.equal(prediction.rows([1]).value, prediction.value[1:])


def test_norms_are_taken_in_fp32():
    assert norms(torch.full((1, 4, 100, 100), 100.0, dtype=torch.float16)).item() == pytest.approx(20_000)


def test_detail_is_what_neighbours_differ_by():
    flat = torch.full((2, 3, 4, 4), 0.7)
    assert detail(flat, {}).tolist() == [0, 0]
    # columns that differ by 0.05, and rows that do not
    stripes = torch.arange(4.0).mul(0.05).expand(1, 1, 4, 4)
    assert detail(stripes, {}).item() == pytest.approx(math.log(1 + 0.05 / FINEST) / 2, rel=1e-5)
    assert detail(torch.ones(1, 1, 1, 1), {}).tolist() == [0]


def test_packed_latents_have_the_detail_of_the_picture():
    latents = torch.randn(2, 4, 6, 8)
    packed = FluxPipeline._pack_latents(latents, 2, 4, 6, 8)
    torch.testing.assert_close(detail(packed, {GRID: Shared((3, 4))}), detail(latents, {}))
    # where nothing says how tokens lie
    assert detail(packed, {}).isnan().all()
