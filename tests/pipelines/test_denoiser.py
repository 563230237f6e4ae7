import pytest
import torch

from cryptomnesia.pipelines.denoiser import Prediction, norms
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
