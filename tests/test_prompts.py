import csv
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cryptomnesia import UsageError
from cryptomnesia.prompts import read_prompts

TEXTS = st.lists(
    st.text(st.characters(exclude_categories=("Cs", "Cc"), exclude_characters="\ufeff"), min_size=1).filter(
        lambda text: text.strip()
    ),
    min_size=1,
)


@given(TEXTS)
def test_every_format_gives_back_its_prompts(tmp_path_factory, texts):
    folder = tmp_path_factory.mktemp("prompts")
    expected = [text.strip() for text in texts]
    (folder / "p.txt").write_text("\n".join(texts), encoding="utf-8")
    (folder / "p.jsonl").write_text("\n".join(json.dumps({"prompt": text}) for text in texts), encoding="utf-8")
    with (folder / "p.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "prompt"])
        writer.writerows([number, text] for number, text in enumerate(texts))
    for name in ("p.txt", "p.jsonl", "p.csv"):
        assert read_prompts(folder / name) == expected


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("p.txt", b"\n \n", "holds no prompt"),
        ("p.txt", b"\xff\xfe\x00", "not UTF-8"),
        ("p.csv", b"text\na\n", "has columns text; name one of them `prompt`"),
        ("p.csv", b"", "has columns nothing"),
        ("p.jsonl", b'{"prompt": "a"}\n{"text": "b"}\n', "line 2: expected an object"),
        ("p.jsonl", b"[1]\n", "line 1: expected an object"),
        ("p.csv", b'prompt\n"' + b"a" * 200_000, "quote its fields"),
        ("p.jsonl", b"{\n", "line 1: expected an object"),
        ("p.parquet", b"", "expected a .txt, .csv or .jsonl file"),
    ],
)
def test_bad_files_are_explained(tmp_path, name, content, message):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(UsageError, match=message):
        read_prompts(path)


def test_a_missing_file_and_a_folder_are_explained(tmp_path):
    with pytest.raises(UsageError, match="no prompts file"):
        read_prompts(tmp_path / "none.txt")
    (tmp_path / "folder.txt").mkdir()
    with pytest.raises(UsageError, match="cannot be read"):
        read_prompts(tmp_path / "folder.txt")
