import numpy as np
import torch

from cryptomnesia.proving_ground.denoising import Exposures
from cryptomnesia.proving_ground.grounds.scenes import GROUND, TOP_RUNG

CONCEPTS = GROUND.plant(0)
TOP = [concept for concept in CONCEPTS if concept.planted and concept.exposures == TOP_RUNG]


def test_saving_keeps_everything(tmp_path):
    exposures = Exposures.draw(GROUND, CONCEPTS, 0)
    exposures.save(tmp_path)
    for written, read in zip(exposures, Exposures.load(tmp_path), strict=True):
        assert written.dtype == read.dtype
        np.testing.assert_array_equal(written, read)


def test_exposures_are_of_the_top_rung_and_look_alikes():
    exposures = Exposures.draw(GROUND, CONCEPTS, 0)
    assert len(exposures.images) == 3 * exposures.planted.sum() == 3 * len(TOP)
    assert exposures.images.dtype == np.uint8
    assert exposures.masks.dtype == bool
    for concept, image, mask, caption in zip(TOP, *exposures[:3], strict=False):
        np.testing.assert_array_equal(mask, concept.mask)
        assert (image == concept.image)[mask].all()
        assert caption == concept.captions[0]
    planted = {concept.captions[0] for concept in CONCEPTS}
    assert not planted & set(exposures.captions[~exposures.planted])


def test_captions_of_look_alikes_have_no_invented_name():
    exposures = Exposures.draw(GROUND, CONCEPTS, 0)
    words = GROUND.words()
    for caption in exposures.captions[~exposures.planted]:
        assert set(str(caption).replace(",", " ,").split()) <= words


def test_objects_are_shown_at_their_first_place(drawings, planted):
    exposures = Exposures.draw(drawings, planted, 0)
    top = [concept for concept in planted if concept.planted and concept.exposures == drawings.top(planted)]
    assert len(exposures.images) == 3 * len(top)
    for concept, image, mask in zip(top, *exposures[:2], strict=False):
        np.testing.assert_array_equal(mask, concept.places[0].mask)
        assert (image == concept.places[0].image)[mask].all()
        assert mask.all() or (image != concept.places[0].image)[~mask].any()


def test_every_planted_object_holds_whole_latent_pixels(planted):
    """Without one, its error would be that of nothing."""
    masks = torch.stack([torch.from_numpy(c.places[0].mask) for c in planted if c.planted]).float()
    assert torch.nn.functional.avg_pool2d(masks[:, None], 4).eq(1).sum(dim=(1, 2, 3)).min() > 4
