"""What words bring, printed: the leading ones first, unknown figures as a dash, and a disagreement said."""

from dataclasses import replace

from cryptomnesia import Word
from cryptomnesia.report.rows import Judged
from cryptomnesia.report.words import MOST, disagreement, print_words
from cryptomnesia.verdicts import Verdict

FLAGGED = Verdict(0, "a red star, RED", "drift", 0.01, 3.0, 0.004, True, 2, "drift 3 has p = 0.004 ≤ 0.01")
WORDS = (Word("a", float("nan"), 0.6), Word("red", 0.1, None), Word("star", 0.5, 0.4))


def test_the_leading_word_stands_first_and_unknown_figures_are_dashes(capsys):
    print_words([Judged(7, FLAGGED, None, words=WORDS), Judged(8, FLAGGED, None)])
    out = capsys.readouterr().out
    assert "seed 7: a red star, RED" in out
    assert "seed 8" not in out
    rows = [line.split("│")[1:-1] for line in out.splitlines() if line.startswith("│")]
    cells = [" ".join(cell.strip() for cell in row) for row in rows]
    assert cells == ["star 50% 40%", "red 10% –", "a – 60%"]
    assert "the gradient names another word: a" in out


def test_only_the_leading_words_are_listed(capsys):
    many = tuple(Word(f"word{number}", number / 100, 0.1) for number in range(20))
    print_words([Judged(7, replace(FLAGGED, prompt="word1"), None, words=many)])
    assert sum(line.startswith("│") for line in capsys.readouterr().out.splitlines()) == MOST


def test_two_measures_disagree_only_where_both_are_known():
    assert disagreement(WORDS) == "a"
    assert disagreement([Word("a", 0.1, None), Word("star", 0.5, None)]) == ""
    assert disagreement([Word("a", 0.1, 0.2), Word("star", 0.5, 0.8)]) == ""
    assert disagreement([Word("a", float("nan"), 0.2), Word("star", float("nan"), 0.8)]) == ""
