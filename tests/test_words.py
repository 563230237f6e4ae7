import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cryptomnesia.words import PAIRS, without, words


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("a cat, a dog", ["a", "cat", "a", "dog"]),
        ("The cat's toy isn't red-haired", ["The", "cat's", "toy", "isn't", "red-haired"]),
        ("l’homme 'quoted' dogs' “x”", ["l’homme", "quoted", "dogs", "x"]),
        ("3.5 mm, 1,000 at 12:30 in 1999.", ["3.5", "mm", "1,000", "at", "12:30", "in", "1999"]),
        ("红猫坐在垫子上", list("红猫坐在垫子上")),
        ("赤いネコ、人々。", list("赤いネコ人々")),
        ("빨간 고양이", ["빨간", "고양이"]),
        ("cat猫dog", ["cat", "猫", "dog"]),
        ("ก็แมว", ["ก็", "แ", "ม", "ว"]),
        ("cafe\u0301 हिन्दी قِطّة", ["cafe\u0301", "हिन्दी", "قِطّة"]),
        ("🐱on👩‍🚀 👍🏽 🇩🇪🇫🇷 ❤️", ["🐱", "on", "👩‍🚀", "👍🏽", "🇩🇪", "🇫🇷", "❤️"]),
        ("photo_of_cat 30° ©", ["photo_of_cat", "30"]),
        ("", []),
        ("...", []),
    ],
)
def test_what_a_word_is(text, found):
    assert words(text) == found


@pytest.mark.parametrize(
    ("text", "dropped", "left"),
    [
        ("a cat, a dog", "cat", "a, a dog"),
        ("cat, a dog", "cat", "a dog"),
        ("a dog, a cat", "cat", "a dog, a"),
        ("a dog, cat", "cat", "a dog"),
        ("a red cat, sitting", "cat", "a red, sitting"),
        ("a cat , a dog", "cat", "a, a dog"),
        ("a, b, c, d", ["b", "c"], "a, d"),
        ("a cat; a dog: b", "cat", "a; a dog: b"),
        ("Photo of a cat. A dog!", "cat", "Photo of a. A dog!"),
        ("Look, a cat!", "cat", "Look, a!"),
        ("Is it a red cat, a?", ["cat", "a"], "Is it red?"),
        ("wait... cat... dog", "cat", "wait... dog"),
        # spaces and lines
        ("a cat dog", "cat", "a dog"),
        ("a\ncat\ndog", "cat", "a\ndog"),
        ("a cat\nb dog", "cat", "a\nb dog"),
        ("cat dog ", "dog", "cat"),
        # quotes and brackets
        ('a "cat" here', "cat", "a here"),
        ('"a" cat "b"', "cat", '"a" "b"'),
        ("a 'red' cat", "red", "a cat"),
        ("a “red cat” here", "cat", "a “red” here"),
        ("(cat) dog", "cat", "dog"),
        ("a (big cat) here", "cat", "a (big) here"),
        ("a (big cat) here", ["big", "cat"], "a here"),
        ("a ((cat)) [red] {dog}", ["cat", "dog"], "a [red]"),
        ("a (cat, red) dog", "cat", "a (red) dog"),
        ("a (red, cat), dog", "cat", "a (red), dog"),
        ("He said “a cat.” Then", "cat", "He said “a.” Then"),
        ("他说「猫」好", "猫", "他说好"),
        # apostrophes and hyphens
        ("the cat's cat", "cat", "the cat's"),
        ("the cat's cat", "cat's", "the cat"),
        ("the dogs' house is big", "dogs", "the house is big"),
        ("the dogs' house is big", "house", "the dogs' is big"),
        ("a red-haired red cat", "red", "a red-haired cat"),
        ("a cat - a dog", "cat", "a - a dog"),
        ("a cat - a dog", ["a", "cat"], "dog"),
        ("the cat—a dog", "cat", "the a dog"),
        # symbols that join or belong to a word
        ("black/white/red", "white", "black/red"),
        ("black/white cat", "white", "black cat"),
        ("cats and/or dogs", "and", "cats or dogs"),
        ("cat & dog on a mat", "dog", "cat on a mat"),
        ("50% cat dog", "cat", "50% dog"),
        ("cat #1 prize", "cat", "#1 prize"),
        ("a 50% cat", "50", "a cat"),
        # numbers
        ("a 3.5 mm lens", "3.5", "a mm lens"),
        ("3 cats, 3 dogs", "3", "cats, dogs"),
        # scripts without spaces, and emoji
        ("红猫，狗坐在垫子上。", "猫", "红，狗坐在垫子上。"),
        ("猫，狗。", "猫", "狗。"),
        ("写真：赤い猫、黒い犬。", ["赤", "い", "猫"], "写真：黒犬。"),
        ("cat猫dog", "猫", "cat dog"),
        ("3猫.5", "猫", "3. 5"),
        ("🐱 cat 🐶", "cat", "🐱 🐶"),
        ("a 🐱, a dog", "🐱", "a, a dog"),
        ("👩‍🚀👩", "👩", "👩‍🚀"),
        # repeated words, in capitals or not
        ("Cat and cat, CAT", "cat", "and"),
        ("a cat, a cat, a dog", "cat", "a, a, a dog"),
        # the rest of the text stays, whatever is in it
        ("un chat !  (( )) ,, rouge cat", "cat", "un chat !  (( )) ,, rouge"),
        ("a dog", "cat", "a dog"),
        ("cat", "cat", ""),
        ('"cat"', "cat", ""),
    ],
)
def test_a_text_without_words(text, dropped, left):
    assert without(text, [dropped] if isinstance(dropped, str) else dropped) == left


PIECES = st.sampled_from(
    [
        *("cat", "Cat", "dog", "l'or", "red-haired", "3.5", "1", "é", "e\u0301", "_"),
        *("猫", "犬", "い", "हिन्दी", "ก็", "🐱", "👩‍🚀", "🇩🇪", "🇪", "🏽"),
        *(" ", " ", " ", "  ", "\n", "\u3000", ", ", ",", ".", ":", ";", "!", "?!", "…", "，", "。", "·", "ー"),
        *(" - ", "-", "—", "/", "&", "#", "%", "’", "'", '"', *"()[]“”「」", "\u0301", "\u200d", "\u200c"),
    ]
)
TEXTS = st.lists(PIECES, max_size=14).map("".join)


def some_words(data, text):
    found = words(text)
    return data.draw(st.lists(st.sampled_from(found), max_size=3)) if found else []


@given(TEXTS, st.data())
def test_the_dropped_words_are_gone_and_no_other_is_lost(text, data):
    dropped = some_words(data, text)
    lost = {word.casefold() for word in dropped}
    assert words(without(text, dropped)) == [word for word in words(text) if word.casefold() not in lost]


@given(TEXTS, st.data())
def test_no_punctuation_and_no_space_is_doubled(text, data):
    left = without(text, some_words(data, text))
    for doubled in re.finditer(r"([\s,.;:!?，。…\-—/&#%·()\[\]])\1", left):
        assert doubled.group() in text


@given(TEXTS)
def test_a_text_of_which_nothing_is_dropped_stays(text):
    assert without(text, []) == text
    assert without(text, ["absent"]) == text


PHRASES = st.recursive(
    st.lists(st.sampled_from(["cat", "dog", "red", "猫"]), min_size=1, max_size=3).map(" ".join),
    lambda inner: st.tuples(
        st.sampled_from(["", "a ", "a, "]),
        st.sampled_from(["()", "[]", "“”", "「」", "{}"]),
        inner,
        st.sampled_from(["", " b", ", b"]),
    ).map(lambda parts: f"{parts[0]}{parts[1][0]}{parts[2]}{parts[1][1]}{parts[3]}"),
    max_leaves=4,
)


@given(PHRASES, st.data())
def test_brackets_stay_in_pairs_and_none_is_empty(text, data):
    left = without(text, some_words(data, text))
    opened = []
    for char in left:
        if char in PAIRS:
            opened.append(char)
        elif any(char in closing for closing in PAIRS.values()):
            assert char in PAIRS[opened.pop()]
    assert not opened
    assert not re.search(r"\(\W*\)|\[\W*\]|\{\W*\}|“\W*”|「\W*」", left)


@given(PHRASES, st.data())
def test_no_punctuation_is_left_alone(text, data):
    """None begins the text, and no comma ends it or stands behind a space."""
    left = without(text, some_words(data, text))
    assert not re.search(r"^[\s,]|[\s,]$|\s,|[(\[{“「]\s*,|,\s*[)\]}”」]", left)
