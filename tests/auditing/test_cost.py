from dataclasses import asdict

import pytest
from diffusers import DDIMPipeline
from PIL import Image

from cryptomnesia import UsageError
from cryptomnesia.auditing.cost import estimate
from cryptomnesia.testing.miniatures import flux, stable_diffusion, unconditional
from tiny_audit import settings


def training(folder):
    """Twelve training images and a broken one."""
    folder.mkdir()
    for number in range(12):
        Image.effect_noise((16, 16), number).save(folder / f"{number}.png")
    (folder / "broken.png").write_text("no picture")
    return folder


def test_the_cost_is_told_beforehand(audit_folder, tmp_path):
    cost = estimate(**settings(audit_folder, images_per_prompt=5))
    # every reference has a map of 16 probes of one branch too
    assert (cost.images, cost.references, cost.evaluations) == (15, 102, 117 * 3 + 102 * 8)
    assert cost.seconds > 0
    assert "15 images and 102 references: 1,167 denoiser evaluations" in str(cost)
    assert asdict(cost)["flagged_evaluations"] > 8
    mean = estimate(**settings(audit_folder, images_per_prompt=5, detector="curvature-difference"))
    assert mean.evaluations == 117 * (3 + 16) + 102 * 8
    attention = estimate(**settings(audit_folder, images_per_prompt=5, localizer="bright-ending"))
    assert attention.evaluations == 117 * 3 + 102 // 2
    pictures = training(tmp_path / "images")
    with_index = estimate(**settings(audit_folder, images_per_prompt=5, training_images=pictures))
    # in half precision, with their names
    assert with_index.bytes - cost.bytes == pytest.approx(13 * 2 * 3072, rel=0.05)
    with pytest.raises(UsageError, match="no folder"):
        estimate(**settings(audit_folder, training_images=tmp_path / "nowhere"))


def test_what_is_switched_off_costs_nothing(audit_folder):
    cost = estimate(**settings(audit_folder, localize=False, mitigate=False))
    assert (cost.evaluations, cost.flagged_evaluations) == (105 * 3, 0)
    # four captions of 1.5 evaluations, and a gradient of 2.5
    words = estimate(**settings(audit_folder, localize=False, mitigate=False, words=True))
    assert (words.evaluations, words.flagged_evaluations) == (105 * 3, 9)


def test_the_cost_is_that_of_the_call(audit_folder):
    given = settings(audit_folder, localize=False, mitigate=False, steps=None)
    assert estimate(**given, num_inference_steps=5, eta=0.5).evaluations == 105 * 5
    with pytest.raises(UsageError, match="got the unknown setting tarot"):
        estimate(**given, tarot=1)


@pytest.mark.parametrize(
    ("make", "side"), [(stable_diffusion, 16), (flux, 256), (lambda: unconditional(DDIMPipeline), 8)]
)
def test_the_size_of_a_picture_is_known_without_making_one(audit_folder, make, side):
    pipe = make()
    given = settings(audit_folder, model=pipe, guidance=None, localize=False, mitigate=False)
    cost = estimate(**given)
    more = estimate(**{**given, "images_per_prompt": 2})
    row = (more.bytes - cost.bytes) / 3 - 2 * 3 * side**2
    # without the picture an image takes its row and the places of a map
    assert 10_000 < row < 10_000 + 9 * side**2 + 1
