import pytest
import torch

from cryptomnesia.denoiser import Prediction, norms


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
def test_prediction_types_say_the_same(kind):
    x0, epsilon = torch.randn(2, 3, 4, 4), torch.randn(2, 3, 4, 4)
    alpha, sigma = 0.8, 0.6
    x = alpha * x0 + sigma * epsilon
    value = {"epsilon": epsilon, "v_prediction": alpha * epsilon - sigma * x0, "sample": x0}[kind]
    prediction = Prediction(x, value, alpha, sigma, kind)
    torch.testing.assert_close(prediction.epsilon, epsilon)
    torch.testing.assert_close(prediction.x0, x0)
    torch.testing.assert_close(prediction.score, -epsilon / sigma)
    torch.testing.assert_close(prediction.with_epsilon(epsilon).value, value)
    assert torch.equal(prediction.rows([1]).value, value[1:])


def test_norms_are_taken_in_fp32():
    assert norms(torch.full((1, 4, 100, 100), 100.0, dtype=torch.float16)).item() == pytest.approx(20_000)
