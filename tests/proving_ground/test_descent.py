import warnings
from functools import partial

import pytest
import torch

from cryptomnesia.proving_ground.descent import Gradient, Worker, drawn

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def draw(step):
    return {"images": torch.full((2, 3), step), "noise": torch.randn(4, generator=torch.Generator().manual_seed(step))}


@pytest.mark.parametrize("device", [CPU, CUDA])
def test_inputs_come_in_the_order_of_the_steps(device):
    """For a GPU other processes draw them; that needs no GPU, and PyTorch warns that it pins nothing."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*pin_memory.*")
        found = [*drawn(draw, range(3, 40), device)]
    assert len(found) == 37
    for step, inputs in zip(range(3, 40), found, strict=True):
        assert inputs.keys() == {"images", "noise"}
        assert all(torch.equal(inputs[name], value) for name, value in draw(step).items())


def squares(weight, inputs):
    return (inputs["x"] * weight).square().sum()


def test_a_gradient_takes_the_place_of_the_one_before():
    weight = torch.tensor([1.0, 2.0], requires_grad=True)
    gradient = Gradient(partial(squares, weight), [weight], CPU)
    for x in ([1.0, 1.0], [2.0, 3.0]):
        loss = gradient({"x": torch.tensor(x)})
        assert loss.item() == pytest.approx(sum((a * b) ** 2 for a, b in zip(x, [1.0, 2.0], strict=True)))
        assert not loss.requires_grad
        torch.testing.assert_close(weight.grad, 2 * torch.tensor(x) ** 2 * weight.detach())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_recorded_gradient_is_that_of_a_cpu():
    """Of the inputs that it is given, not of those with which it was recorded, and of other shapes as well."""
    weight = torch.tensor([1.0, 2.0], requires_grad=True)
    there = weight.detach().to(CUDA).requires_grad_()
    here, recorded = Gradient(partial(squares, weight), [weight], CPU), Gradient(partial(squares, there), [there], CUDA)
    for shape in ((2,), (2,), (5, 2)):
        inputs = {"x": torch.randn(shape)}
        torch.testing.assert_close(recorded(inputs).cpu(), here(inputs))
        torch.testing.assert_close(there.grad.cpu(), weight.grad)


def test_a_step_is_clipped_to_a_gradient_of_norm_one():
    weight = torch.tensor([3.0, 4.0], requires_grad=True)
    weight.grad = torch.tensor([30.0, 40.0])
    Worker(0, 1).descend(torch.optim.SGD([weight]), 0.5)
    torch.testing.assert_close(weight.detach(), torch.tensor([3.0 - 0.3, 4.0 - 0.4]))


def test_shares_are_parts_of_a_batch():
    assert [range(12)[Worker(rank, 3).share(12)] for rank in range(3)] == [range(4), range(4, 8), range(8, 12)]
