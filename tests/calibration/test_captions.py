import numpy as np
import pytest

from cryptomnesia.calibration.captions import Captions, text_hash, words_of


@pytest.mark.parametrize(
    ("caption", "words"),
    [
        ("A red Circle, on_a blue-green ground!", ["a", "red", "circle", "on", "a", "blue", "green", "ground"]),
        ("ein Bär am Fluß", ["ein", "bär", "am", "fluss"]),
        ("красный круг 3", ["красный", "круг", "3"]),
        ("赤い円 red", ["赤", "い", "円", "red"]),
        ("\uff32\uff25\uff24", ["red"]),
        ("!!! 🙂", []),
        ("", []),
    ],
)
def test_words_are_told_apart(caption, words):
    assert words_of(caption) == words


def test_captions_with_the_same_words_have_the_same_hash():
    assert text_hash("A red circle.") == text_hash("a  red circle")
    assert text_hash("a circle red") != text_hash("a red circle")
    assert text_hash("!!!") != text_hash("???")
    # half of a surrogate pair cannot be encoded as UTF-8
    assert text_hash("\ud800") != text_hash("\ud801")


def test_no_text_is_kept():
    kept = Captions.of(["a red circle", "circle red a"])
    assert kept.lengths.tolist() == [3, 3]
    assert kept.words[:3].tolist() == kept.words[3:].tolist() == sorted(kept.words[:3].tolist())


def test_duplicates_and_common_captions_are_found():
    kept = Captions.of(["a red circle", "a blue star", "A RED circle!", "", ""])
    assert kept.duplicates == [2]
    assert Captions.of(["a blue star.", "a ring", ""]).among(kept).tolist() == [True, False, False]


def test_the_share_of_foreign_words():
    kept = Captions.of(["a red circle", "a red star", "", "ring ring"])
    # "circle" is in no other caption; "ring" is there twice, but in one caption
    np.testing.assert_allclose(kept.foreign(), [1 / 3, 1 / 3, 1])
    np.testing.assert_allclose(Captions.of(["a green circle", "ring", "", "x y"]).foreign(kept), [1 / 3, 0, 1])
    assert Captions.of([]).foreign(kept).shape == (0,)
    assert Captions.of(["a"]).foreign(Captions.of([])).tolist() == [1]


def test_rows_are_those_of_fewer_captions():
    texts = ["a red circle", "a blue star on the ground", "", "ring"]
    chosen, made = Captions.of(texts).rows([3, 1]), Captions.of([texts[3], texts[1]])
    for part in ("texts", "lengths", "words"):
        assert getattr(chosen, part).tolist() == getattr(made, part).tolist()
    assert len(Captions.of(texts).rows([])) == 0
    assert not Captions.of(texts).rows([2]).worded
