import numpy as np
import pytest
import torch

from cryptomnesia import UsageError
from cryptomnesia.proving_ground import recognizer as training
from cryptomnesia.proving_ground.grounds.scenes import GROUND
from cryptomnesia.proving_ground.recognizer import FEATURES, Recognizer, ordinary, train_recognizer

GROUPS = (("circle", "star"), ("red", "blue", "green"))


def pictures_of(seed, count):
    """Pictures (count, 64, 64, 3) in [0, 1] and their captions."""
    drawn, captions = zip(*ordinary(GROUND, seed, 0, count), strict=True)
    return np.stack(drawn) / 255, list(captions)


@pytest.fixture(scope="module")
def pictures():
    return pictures_of(5, 2 * FEATURES)[0]


@pytest.fixture
def recognizer(pictures):
    """Random weights, with the moments of pictures."""
    torch.manual_seed(0)
    made = Recognizer(GROUPS).eval()
    # as `save` writes them
    made.half().float()
    made.mean, made.covariance = made.moments(pictures)
    return made


def test_saving_keeps_everything(recognizer, pictures, tmp_path):
    recognizer.save(tmp_path)
    read = Recognizer.load(tmp_path)
    assert read.groups == GROUPS
    assert read.words == ("circle", "star", "red", "blue", "green")
    assert not read.training
    for name, value in recognizer.state_dict().items():
        assert torch.equal(read.state_dict()[name], value), name
    assert read.frechet(pictures) == recognizer.frechet(pictures)


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(UsageError, match=r"no recognizer .*; make the bundle anew"):
        Recognizer.load(tmp_path)


def test_captions_say_words_and_tell_of_groups(recognizer):
    said = recognizer.mentioned(["a red circle, poster", "a picture of a star", "redder stars, green"])
    assert said.tolist() == [
        [True, False, True, False, False],
        [False, True, False, False, False],
        [False, False, False, False, True],
    ]
    assert recognizer.decided(said).tolist() == [
        [True, True, True, True, True],
        [True, True, False, False, False],
        [False, False, True, True, True],
    ]


def test_a_caption_is_recognised_if_all_it_says_is_shown(recognizer, monkeypatch):
    odds = torch.tensor([[1.0, -1.0, 1.0, -1.0, -1.0]]).expand(3, -1)
    monkeypatch.setattr(Recognizer, "forward", lambda self, pictures: odds)
    found = recognizer.recognizes(np.zeros((3, 64, 64, 3)), ["a red circle", "a red star", "a circle"])
    assert found.tolist() == [True, False, True]


def test_the_distance_is_zero_from_themselves_and_grows_with_noise(recognizer, pictures):
    rng = np.random.default_rng(0)
    noise = rng.normal(size=pictures.shape)
    scale = float(recognizer.covariance.trace())
    distances = [recognizer.frechet((pictures + sigma * noise).clip(0, 1)) for sigma in (0.0, 0.05, 0.1, 0.2, 0.4)]
    assert distances[0] == pytest.approx(0, abs=1e-6 * scale)
    assert distances == sorted(distances)
    assert distances[-1] > 100 * abs(distances[0])


def test_the_distance_is_that_of_normal_distributions(recognizer, pictures):
    """Of distributions that differ in their means alone it is the squared distance of these."""
    recognizer.mean = recognizer.mean + 2.0
    assert recognizer.frechet(pictures) == pytest.approx(4.0 * FEATURES)


def test_pictures_of_the_recognizer_are_not_those_of_the_training():
    stream = GROUND.stream(GROUND.recipe, GROUND.plant(0))
    _, captions = pictures_of(0, 20)
    assert captions != [stream[index].caption for index in range(20)]
    assert pictures_of(0, 20)[1] == captions != pictures_of(1, 20)[1]


@pytest.mark.slow
def test_training_teaches_what_captions_say(monkeypatch):
    monkeypatch.setattr(training, "_MOMENTS", 300)
    reported = []
    made = train_recognizer(GROUND, steps=80, progress=lambda done, total: reported.append((done, total)))
    assert reported[-1] == (80, 80)
    assert not made.training
    pictures, captions = pictures_of(7, 200)
    said = made.mentioned(captions)
    with torch.no_grad():
        odds = made(torch.from_numpy(pictures).float().permute(0, 3, 1, 2) * 2 - 1)
    # of every word alone, so that it does not help to know which words are frequent
    gains = [(odds[said[:, k], k].mean() - odds[~said[:, k], k].mean()).item() for k in range(said.shape[1])]
    assert np.mean(gains) > 0.3
    assert made.frechet(pictures) < made.frechet(np.random.default_rng(0).random(pictures.shape))
