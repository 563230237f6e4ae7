import torch

from cryptomnesia.tracing.columns import columns, trajectory_of
from runs import trajectory


def test_norms_and_signals_come_back_from_columns():
    runs = trajectory([[1.0, 2.0], [3.0, 4.0]], signals={"map": torch.rand(2, 4, 5), "number": torch.rand(2)})
    again = trajectory_of([columns(runs.rows([row])) for row in range(2)])
    assert again.timesteps == runs.timesteps
    assert again.complete
    for name, values in runs.norms.items():
        assert torch.equal(again.norms[name], values)
    for name, values in runs.signals.items():
        assert torch.equal(again.signals[name], values)


def test_an_image_without_a_map_fits_to_those_that_have_one():
    parts = [
        trajectory([[1.0, 2.0]], signals={"map": torch.full((1, 1, 1), torch.nan)}),
        trajectory([[3.0, 4.0]], signals={"map": torch.rand(1, 4, 5)}),
    ]
    again = trajectory_of([columns(part) for part in parts])
    assert again.signals["map"].shape == (2, 4, 5)
    assert again.signals["map"].isnan().flatten(1).all(dim=1).tolist() == [True, False]


def test_a_run_cut_short_has_nan_behind_its_end():
    parts = [trajectory([[1.0]], planned=2), trajectory([[3.0, 4.0]])]
    again = trajectory_of([columns(part) for part in parts])
    assert not again.complete
    assert again.norms["z"][1].tolist() == [3.0, 4.0]
    assert again.norms["z"][0, 1].isnan()
