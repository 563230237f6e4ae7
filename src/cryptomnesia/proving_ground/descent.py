"""Steps of a training: their inputs, the loss and its gradient, and the step downhill.

On a CPU the inputs of a step are drawn when it is their turn. A GPU of CUDA is faster than one core draws pictures, so
there all other cores draw the inputs of later steps. The networks of the grounds are so small that it would spend most
of its time waiting for the CPU to name the next kernel; so loss and gradient are recorded once and replayed.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from cryptomnesia.proving_ground.learning import Inputs

_AHEAD = 8
"""Steps that a core draws ahead."""


class _Drawn(Dataset[Inputs]):
    """The inputs of steps, drawn by one of many processes."""

    def __init__(self, draw: Callable[[int], Inputs], steps: range) -> None:
        self.draw, self.steps = draw, steps

    def __len__(self) -> int:
        return len(self.steps)

    def __getitem__(self, number: int) -> Inputs:
        return self.draw(self.steps[number])


def drawn(draw: Callable[[int], Inputs], steps: range, device: torch.device) -> Iterator[Inputs]:
    """The inputs of `steps` in their order, in the memory of the CPU.

    Args:
        draw: draws the inputs of a step, which depend on nothing but the step.
        steps: in this order.
        device: that takes the steps.
    """
    if device.type != "cuda":
        return map(draw, steps)
    # forked, so that the processes share what was drawn once, for instance rendered emoji
    loader = DataLoader(
        _Drawn(draw, steps),
        batch_size=None,
        num_workers=max(1, len(os.sched_getaffinity(0)) - 1),
        prefetch_factor=_AHEAD,
        pin_memory=True,
        multiprocessing_context="fork",
    )
    return iter(loader)


class Gradient:
    """The loss of inputs, and its gradient, which is left in the weights."""

    def __init__(self, loss: Callable[[Inputs], Tensor], weights: Sequence[Tensor], device: torch.device) -> None:
        """Prepare the gradient of `loss` with respect to `weights`, which are on `device`."""
        self.loss, self.weights, self.device = loss, weights, device
        self._inputs: Inputs = {}
        self._graph: Any = None
        self._result: Any = None

    def __call__(self, inputs: Inputs) -> Tensor:
        """Put the gradient into the weights, in the place of an earlier one; the loss as a tensor of one number."""
        if self.device.type == "cuda":
            # streams and graphs are those of the current GPU, which need not be that of the networks
            with torch.cuda.device(self.device):
                return self._replayed(inputs)
        self._forget()
        loss = self.loss({name: value.to(self.device) for name, value in inputs.items()})
        loss.backward()
        return loss.detach()

    def _replayed(self, inputs: Inputs) -> Tensor:
        if {name: value.shape for name, value in inputs.items()} != {n: v.shape for n, v in self._inputs.items()}:
            self._record(inputs)
        for name, value in inputs.items():
            self._inputs[name].copy_(value, non_blocking=True)
        self._graph.replay()
        return self._result

    def _record(self, inputs: Inputs) -> None:
        """Record the kernels for inputs of these shapes; a replay writes the gradients to the same memory again."""
        self._inputs = {name: value.to(self.device) for name, value in inputs.items()}
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):
                self._forget()
                self.loss(self._inputs).backward()
        torch.cuda.current_stream().wait_stream(side)
        self._forget()
        self._graph = torch.cuda.CUDAGraph()
        # the thread that pins the inputs of later steps calls CUDA meanwhile
        with torch.cuda.graph(self._graph, capture_error_mode="thread_local"):
            loss = self.loss(self._inputs)
            loss.backward()
        self._result = loss.detach()

    def _forget(self) -> None:
        for weight in self.weights:
            weight.grad = None


@dataclass
class Worker:
    """One of the processes of a training: its share of every batch, and the averaging of gradients."""

    rank: int
    processes: int

    def share(self, batch: int) -> slice:
        """Which samples of a batch are this process's."""
        size = batch // self.processes
        return slice(self.rank * size, (self.rank + 1) * size)

    def descend(self, optimizer: torch.optim.Optimizer, rate: float) -> None:
        """One step down the gradient averaged over the processes, its norm clipped to 1."""
        weights = [weight for group in optimizer.param_groups for weight in group["params"]]
        if self.processes > 1:
            # a weight that a share does not touch has no gradient there
            gradients = [torch.zeros_like(w) if w.grad is None else w.grad for w in weights]
            flat = torch.cat([gradient.flatten() for gradient in gradients])
            dist.all_reduce(flat)
            flat /= self.processes
            for weight, gradient, mean in zip(
                weights, gradients, flat.split([w.numel() for w in weights]), strict=True
            ):
                # copied, not assigned: the fused optimizer expects gradient and weight to have the same strides
                weight.grad = gradient.copy_(mean.view(gradient.shape))
        nn.utils.clip_grad_norm_(weights, 1.0)
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.step()
