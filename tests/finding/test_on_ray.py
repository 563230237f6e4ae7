"""A search by the processes of a Ray cluster finds what one process finds."""

import pytest

from cryptomnesia import find
from cryptomnesia.testing.miniatures import stable_diffusion
from looked_for import pictures

ray = pytest.importorskip("ray", reason="ray is not installed")

CALL = {"num_inference_steps": 2, "guidance_scale": 2.0, "alpha": 0.2, "batch_size": 2, "device": "cpu"}


@pytest.fixture
def cluster():
    """A cluster of this machine with two cores."""
    ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


@pytest.mark.slow
def test_a_cluster_gives_the_answers_of_one_process(cluster, tmp_path):
    stable_diffusion().save_pretrained(tmp_path / "model")
    (tmp_path / "pictures").mkdir()
    for number, one in enumerate(pictures(1, 3)):
        one.save(tmp_path / "pictures" / f"{number}.png")
    captions = ["a blue ring", "a red disc", "a green bar"]
    given = {"controls": pictures(100, 5), "control_captions": [f"a red star {number}" for number in range(5)]}
    for folder, more in (("here", {}), ("there", {"engine": "ray", "workers": 2})):
        found = find(
            tmp_path / "model", tmp_path / "pictures", captions, output=tmp_path / folder, **given, **more, **CALL
        )
        # some are close enough for the closer look
        assert any(answer.restorations for answer in found.answers)
    here, there = ({path.name: path.read_bytes() for path in (tmp_path / name).iterdir()} for name in ("here", "there"))
    assert here == there
