import csv
import json
import logging
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cryptomnesia import UsageError, read_prompts
from cryptomnesia.prompts import captions_of
from cryptomnesia.prompts.formats import READERS

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
    (folder / "p.json").write_text(json.dumps([{"id": 1, "prompt": text} for text in texts]), encoding="utf-8")
    for name, dialect in (("p.csv", "excel"), ("p.tsv", "excel-tab")):
        with (folder / name).open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file, dialect)
            writer.writerow(["id", "prompt"])
            writer.writerows([number, text] for number, text in enumerate(texts))
    pq.write_table(pa.table({"prompt": texts}), folder / "p.parquet")
    for name in ("p.txt", "p.jsonl", "p.json", "p.csv", "p.tsv", "p.parquet"):
        assert read_prompts(folder / name) == expected


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("p.txt", b"\xef\xbb\xbfa\r\nb\rc\n\n", ["a", "b", "c"]),
        ("p.csv", b"id;Prompt\n1;a, b\n", ["a, b"]),
        ("p.csv", b"id\tcaption\n1\ta, b\n", ["a, b"]),
        ("p.csv", b'text\n"a\nb"\n"c ""q"""\n', ["a\nb", 'c "q"']),
        ("p.tsv", b"text\tid\na, b\t1\n", ["a, b"]),
        ("p.ndjson", b'{"caption": "a"}\n{"caption": "b", "x": NaN}\n', ["a", "b"]),
        ("p.jsonl", b'{"text": "a", "id": ' + b"1" * 5000 + b"}", ["a"]),
        ("p.jsonl", b'{"prompt": ["a", "b"]}\n', ["a", "b"]),
        ("p.json", b'["a", "b"]', ["a", "b"]),
        ("p.json", b'{"images": [], "annotations": [{"image_id": 1, "caption": "a dog"}]}', ["a dog"]),
    ],
)
def test_what_people_have_is_read(tmp_path, name, content, expected, caplog):
    path = tmp_path / name
    path.write_bytes(content)
    assert read_prompts(path) == expected
    assert not caplog.records


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("p.txt", b"\n \n", "holds no prompt"),
        ("p.txt", b"\xff\xfe\x00", r"not UTF-8 \(byte 0\) and seems to be UTF-16; save it as UTF-8"),
        ("p.txt", b"a\xe9", r"not UTF-8 \(byte 1\); save"),
        ("p.txt", b"a\nb\0", "prompt 2 holds a NUL character; take it out"),
        ("p.csv", b"texts\na\n", "has columns texts; name one of them `prompt`, or give --column NAME"),
        ("p.csv", b"", "has columns nothing"),
        ("p.csv", b'"a\nb","' + b"c" * 100 + b'"\n', r"has columns a b, c{37}\.\.\.; name one"),
        ("p.csv", b"prompt,prompt\na,b\n", "columns prompt, prompt, which are the same; rename all but one"),
        ("p.csv", b'id,prompt\n1,a\n2,"b\n3,c\n', "line 3: a quote is not closed; quote its fields"),
        ("p.csv", b'id,prompt\n1,"b\n3,"c"\n4,d\n', "line 2: ',' expected after '\"'"),
        ("p.tsv", b'id\tprompt\n1\t"b\n', "line 2: a quote is not closed"),
        ("p.csv", b"prompt\na cat, sitting\n", "line 2 has 2 fields, and the header 1; quote fields that hold"),
        ("p.csv", b"id,prompt\n1,a\n2\n", "line 3 ends before 'prompt'; complete the line"),
        ("p.csv", b'prompt\n"' + b"a" * 200_000, "quote its fields"),
        ("p.jsonl", b'{"prompt": "a"}\n{"text": "b"}\n', "line 2: expected an object .* no key 'prompt'"),
        ("p.jsonl", b"[1]\n", "line 1: expected an object"),
        ("p.jsonl", b"{\n", "line 1: expected an object"),
        ("p.jsonl", b"[" * 100_000, "line 1 is nested too deeply"),
        ("p.jsonl", b'{"prompt":' + b"1" * 5000 + b"}", "line 1: .* got a prompt that is no text"),
        ("p.jsonl", b'{"prompt": NaN}', "line 1: .* got a prompt that is no text"),
        ("p.jsonl", b'{"prompt": "a", "prompt": "b"}', "line 1 has a key twice; leave one out"),
        ("p.jsonl", b'{"prompt": "\\ud800"}', "prompt 1 holds half of a surrogate pair"),
        ("p.jsonl", b'{"key": "a"}', "line 1 has keys key; name one of them `prompt`"),
        ("p.json", b'{"prompt": "a"}', "expected a list of texts, or of objects"),
        ("p.json", b'["a", 1]', "item 1: expected an object"),
        ("p.parquet", b"", "is damaged or incomplete"),
        ("p.xlsx", b"", "expected a .txt, .csv, .tsv, .jsonl, .json or .parquet file, or the folder of a data set"),
    ],
)
def test_bad_files_are_explained(tmp_path, name, content, message):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(UsageError, match=message) as refused:
        read_prompts(path)
    assert "\n" not in str(refused.value)


def test_a_missing_file_and_a_folder_are_explained(tmp_path):
    for name in ("none.txt", "none.parquet", "a" * 300 + ".txt"):
        with pytest.raises(UsageError, match="no prompts file"):
            read_prompts(tmp_path / name)
    (tmp_path / "folder.txt").mkdir()
    with pytest.raises(UsageError, match="cannot be read"):
        read_prompts(tmp_path / "folder.txt")


def test_the_column_is_the_first_usual_one_or_the_one_that_is_named(tmp_path, caplog):
    path = tmp_path / "p.csv"
    path.write_text("text,caption,description\na,b,c\n")
    assert read_prompts(path) == ["b"]
    assert caplog.messages == [
        f"prompts file {path} has the columns text, caption; prompts are from caption, and --column names another"
    ]
    assert read_prompts(path, column="description") == ["c"]
    with pytest.raises(UsageError, match=r"has no descriptin \(did you mean description\?\), its columns are text"):
        read_prompts(path, column="descriptin")
    (tmp_path / "p.txt").write_text("a")
    with pytest.raises(UsageError, match="whose lines are the prompts; leave --column out"):
        read_prompts(tmp_path / "p.txt", column="text")
    assert len(caplog.records) == 1


def test_blank_fields_are_counted_and_repeated_prompts_are_kept(tmp_path, caplog):
    path = tmp_path / "p.jsonl"
    path.write_text('{"prompt": "a"}\n{"prompt": null}\n{"prompt": " "}\n{"prompt": "a"}\n')
    assert read_prompts(path) == ["a", "a"]
    assert caplog.messages == [f"{path}: 2 of 4 prompts are blank and left out"]


def test_parquet_of_several_types(tmp_path, caplog):
    caplog.set_level(logging.ERROR)
    path = tmp_path / "p.parquet"
    table = {
        "caption": pa.array(["a", None, "c"]).dictionary_encode(),
        "number": [1.0, 2.0, 3.0],
        "several": [["x", "y"], None, ["z"]],
    }
    pq.write_table(pa.table(table), path)
    assert read_prompts(path) == ["a", "c"]
    assert read_prompts(str(path), column="several") == ["x", "y", "z"]
    with pytest.raises(UsageError, match="the column number holds double, expected texts"):
        read_prompts(path, column="number")
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(UsageError, match=r"is damaged or incomplete \(.*\); copy it again"):
        read_prompts(path)


def saved_split(folder, texts):
    """What `datasets.Dataset.save_to_disk` writes."""
    folder.mkdir(parents=True)
    held = pa.table({"text": texts})
    with pa.OSFile(str(folder / "data-00000-of-00001.arrow"), "wb") as file, pa.ipc.new_stream(file, held.schema) as to:
        to.write_table(held)
    (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": "data-00000-of-00001.arrow"}]}))


def test_a_data_set_on_disk(tmp_path):
    saved_split(tmp_path / "set" / "train", ["a", "b"])
    assert read_prompts(tmp_path / "set" / "train") == read_prompts(tmp_path / "set") == ["a", "b"]
    saved_split(tmp_path / "set" / "test", ["c"])
    with pytest.raises(UsageError, match=r"holds the splits test, train; give one, for instance .*test"):
        read_prompts(tmp_path / "set")
    arrow = next((tmp_path / "set" / "test").glob("*.arrow"))
    for content in (arrow.read_bytes()[:40], b""):
        arrow.write_bytes(content)
        with pytest.raises(UsageError, match="is damaged or incomplete"):
            read_prompts(tmp_path / "set" / "test")
    (tmp_path / "set" / "test" / "state.json").write_text("[]")
    with pytest.raises(UsageError, match="is damaged or incomplete"):
        read_prompts(tmp_path / "set" / "test")


def test_a_damaged_column_does_not_end_the_process(tmp_path):
    saved_split(tmp_path / "set", ["a", "b"])
    arrow = next((tmp_path / "set").glob("*.arrow"))
    offsets, beyond = (np.array(values, dtype=np.int32).tobytes() for values in ([0, 1, 2], [0, 2**30, 2]))
    assert offsets in arrow.read_bytes()
    arrow.write_bytes(arrow.read_bytes().replace(offsets, beyond))
    with pytest.raises(UsageError, match="is damaged or incomplete"):
        read_prompts(tmp_path / "set")


@settings(max_examples=100)
@given(st.binary(max_size=60), st.integers(0, 60), st.sampled_from(sorted(READERS)))
def test_whatever_a_file_holds_is_read_or_refused_in_one_line(tmp_path_factory, content, place, suffix):
    path = tmp_path_factory.mktemp("fuzzed") / f"p{suffix}"
    usual = b'{"prompt": "a"}\n' if "j" in suffix else b'id,prompt\n1,"a b"\n2,c\n'
    path.write_bytes(usual[:place] + content + usual[place:])
    try:
        found = read_prompts(path)
    except UsageError as refused:
        found = [" "] if "\n" in str(refused) else ["refused"]
    assert all(prompt.strip() for prompt in found)


def test_a_folder_of_pictures_and_a_clone_of_the_hub(tmp_path):
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    with pytest.raises(UsageError, match="is no data set: expected what `save_to_disk` writes"):
        read_prompts(pictures)
    (pictures / "metadata.csv").write_text("file_name,text\n1.png,a\n")
    assert read_prompts(pictures) == ["a"]
    shards = tmp_path / "clone" / "data"
    shards.mkdir(parents=True)
    for number, text in enumerate(["a", "b"]):
        pq.write_table(pa.table({"text": [text]}), shards / f"train-0000{number}-of-00002.parquet")
    assert read_prompts(tmp_path / "clone") == ["a", "b"]
    pq.write_table(pa.table({"text": ["c"]}), shards / "validation-00000-of-00001.parquet")
    with pytest.raises(UsageError, match="holds Parquet files of train, validation; give one file"):
        read_prompts(tmp_path / "clone")


@pytest.mark.parametrize(
    "prompts", [iter(["a", "b"]), ("a", "b"), pa.chunked_array([["a"], ["b"]]), (text for text in "ab")]
)
def test_texts_in_an_order_are_prompts(prompts):
    assert captions_of(prompts) == ["a", "b"]


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        ({"a": 1}, "got prompts of type dict; give a list of texts, or one column of a table"),
        ({"a"}, "got prompts of type set"),
        (pa.table({"prompt": ["a"]}), "got prompts of type Table"),
        (5, "got prompts=5; give a text, a list of texts, or the Path of a prompts file"),
        (["a", None], "got None among the prompts; give texts only"),
        ([float("nan")], "got nan among the prompts"),
        (b"ab", "got 97 among the prompts"),
        (["a\0"], "holds a NUL character"),
        (["\ud800"], "holds half of a surrogate pair"),
        (["caf\udce9"], "holds bytes that are not UTF-8"),
        (Path("nosuch.csv"), "no prompts file nosuch.csv"),
    ],
)
def test_what_are_no_texts_is_refused(prompts, message):
    with pytest.raises(UsageError, match=message):
        captions_of(prompts)
