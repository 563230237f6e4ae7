"""Settings of the whole process while a map is computed."""

from threading import Event, Thread

import pytest
import torch

from cryptomnesia import Collapse, DiagonalEstimator
from cryptomnesia.detectors import MapSignal
from cryptomnesia.localizers.jacobian.process import eagerly, whole_floats
from cryptomnesia.pipelines.setup import Setup
from cryptomnesia.testing.miniatures import SAMPLING
from cryptomnesia.tracing.generation import generate

OPERATORS = (torch.backends.cudnn.conv, torch.backends.cudnn.rnn, torch.backends.cuda.matmul)


def older(cudnn, products):
    """The older way to set TF32."""
    torch.backends.cudnn.allow_tf32 = cudnn
    torch.set_float32_matmul_precision(products)


def newer(conv, rnn, matmul):
    """The newer way."""
    for place, value in zip(OPERATORS, (conv, rnn, matmul), strict=True):
        place.fp32_precision = value


STATES = {
    "off": lambda: older(False, "highest"),
    "on": lambda: older(True, "high"),
    "convolutions alone": lambda: older(True, "highest"),
    "products alone": lambda: older(False, "high"),
    "products in bfloat16": lambda: older(True, "medium"),
    "by cuda's own switch": lambda: setattr(torch.backends.cuda.matmul, "allow_tf32", True),
    "newer, off": lambda: newer("ieee", "ieee", "ieee"),
    "newer, on": lambda: newer("tf32", "tf32", "tf32"),
    "newer, products alone": lambda: newer("ieee", "ieee", "tf32"),
    "newer, convolutions alone": lambda: newer("tf32", "ieee", "ieee"),
    "newer for all at once": lambda: setattr(torch.backends, "fp32_precision", "tf32"),
}


def readings():
    """Everything that a program can read, or the error that reading raises."""
    found = {"operators": [place.fp32_precision for place in OPERATORS], "all": torch.backends.fp32_precision}
    for name, read in {
        "cudnn": lambda: torch.backends.cudnn.allow_tf32,
        "matmul": lambda: torch.backends.cuda.matmul.allow_tf32,
        "products": torch.get_float32_matmul_precision,
    }.items():
        try:
            found[name] = read()
        except RuntimeError:
            found[name] = "refused"
    return found


@pytest.fixture(autouse=True)
def _restored():
    general = torch.backends.fp32_precision
    operators = [place.fp32_precision for place in OPERATORS]
    yield
    torch.backends.fp32_precision = general
    newer(*operators)
    older(True, "highest")
    newer(*operators)


@pytest.mark.parametrize("state", STATES)
def test_settings_are_readable_inside_and_restored_afterwards(state):
    STATES[state]()
    before = readings()
    on = "tf32" in before["operators"]
    with whole_floats() as was_on:
        assert was_on == on
        inside = readings()
        assert not {"tf32", "bf16"} & {*inside["operators"]}
        # whatever could be read before can be read now, in this thread and in others
        for name in ("cudnn", "matmul", "products"):
            assert before[name] == "refused" or inside[name] != "refused"
        if before["cudnn"] != "refused":
            assert inside["cudnn"] is False
        if before["products"] != "refused":
            assert inside["products"] == "highest"
    assert readings() == before
    with pytest.raises(ZeroDivisionError), whole_floats():
        1 / 0  # noqa: B018
    assert readings() == before


@pytest.mark.parametrize("state", ["off", "on", "convolutions alone", "products in bfloat16"])
def test_a_map_never_makes_reading_raise_in_another_thread(state, pipe):
    STATES[state]()
    before = readings()
    signal = MapSignal(Collapse(estimator=DiagonalEstimator(engine="finite")))
    over, found = Event(), []

    def read():
        while not over.is_set():
            found.append(readings())

    thread = Thread(target=read)
    thread.start()
    try:
        (batch,) = generate(Setup(pipe, SAMPLING), ["a red circle"], [0], signals=[signal])
    finally:
        over.set()
        thread.join()
    assert found
    assert all("refused" not in (reading["cudnn"], reading["matmul"], reading["products"]) for reading in found)
    assert batch.trajectory.signals["collapse"].isfinite().all()
    assert readings() == before


def test_code_runs_eagerly_inside_and_compiled_again_afterwards():
    compiled = []

    def backend(graph, inputs):
        compiled.append(graph)
        return graph.forward

    @torch.compile(backend=backend)
    def double(x):
        return 2 * x

    with eagerly():
        assert double(torch.ones(2)).tolist() == [2, 2]
    assert compiled == []
    assert double(torch.ones(2)).tolist() == [2, 2]
    assert len(compiled) == 1
