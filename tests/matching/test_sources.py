"""Where trainers have their pictures: folders, tar shards, tables, iterables; and everything that is left out."""

import io
import json
import tarfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from cryptomnesia import ImageIndex, UsageError
from cryptomnesia.matching import Changes
from cryptomnesia.matching.sources import by_reason, content_of
from picture_files import encoded, picture, write_tar

CAPTIONS = [f"caption {number}" for number in range(6)]


def index_of(images, tmp_path, **settings):
    return ImageIndex.build(images, tmp_path / "index", **settings)


def captions(index):
    shards = index._search.shards
    return {path: shards.caption(place) for place, path in enumerate(index.paths)}


def check_content(index, name, seed):
    """Check that a query finds the picture, and that the picture is found again by its name."""
    found = index.search([picture(seed)])
    assert index.paths[found.positions.item()] == name
    assert found.distances.item() < 0.03


@pytest.fixture
def samples():
    """The members of a WebDataset shard: six pictures with their captions in three kinds of files."""
    members = {}
    for number in range(6):
        members[f"{number:03}.jpg"] = encoded(picture(number), "JPEG", quality=95)
        if number % 3 == 0:
            members[f"{number:03}.txt"] = CAPTIONS[number].encode()
        elif number % 3 == 1:
            members[f"{number:03}.json"] = json.dumps({"caption": CAPTIONS[number], "width": 48}).encode()
        else:
            members[f"{number:03}.caption"] = CAPTIONS[number].encode()
        members[f"{number:03}.cls"] = b"7"
    return members


@pytest.mark.parametrize("name", ["a.tar", "a.tar.gz"])
def test_a_tar_shard_has_pictures_captions_and_what_is_neither(tmp_path, samples, name):
    write_tar(tmp_path / name, samples)
    index = index_of(tmp_path / name, tmp_path)
    assert captions(index) == {f"{name}/{number:03}.jpg": CAPTIONS[number] for number in range(6)}
    assert set(index.skipped) == {f"{name}/{number:03}.cls" for number in range(6)}
    assert by_reason(index.skipped) == {"not a picture": 6}
    check_content(index, f"{name}/004.jpg", 4)
    assert content_of(tmp_path, f"{name}/004.jpg") == samples["004.jpg"]
    assert content_of(tmp_path / name, f"{name}/004.jpg") == samples["004.jpg"]
    assert content_of(tmp_path, f"{name}/nothing.jpg") is None


def test_shards_are_given_as_a_folder_a_pattern_or_a_list(tmp_path, samples):
    for number in range(3):
        write_tar(tmp_path / "shards" / f"{number:03}.tar", {f"{number}.png": encoded(picture(number))})
    names = [f"{number:03}.tar/{number}.png" for number in range(3)]
    pattern = str(tmp_path / "shards" / "{000..002}.tar")
    several = [tmp_path / "shards" / f"{number:03}.tar" for number in range(3)]
    for place, given in enumerate((tmp_path / "shards", pattern, several)):
        assert ImageIndex.build(given, tmp_path / f"index-{place}").paths == names
    assert ImageIndex.build(str(tmp_path / "shards" / "{001,002}.tar"), tmp_path / "two").paths == names[1:]
    with pytest.raises(UsageError, match=r"no folder or file .*003\.tar"):
        ImageIndex.build(str(tmp_path / "shards" / "{000..003}.tar"), tmp_path / "none")


def test_damaged_shards_are_named_and_what_is_whole_is_read(tmp_path, samples):
    write_tar(tmp_path / "images" / "whole.tar", samples)
    content = (tmp_path / "images" / "whole.tar").read_bytes()
    (tmp_path / "images" / "cut.tar").write_bytes(content[: len(content) // 2])
    (tmp_path / "images" / "nonsense.tar").write_bytes(b"no tar file" * 99)
    (tmp_path / "images" / "empty.tar").touch()
    # between two members, where nothing but the end mark is missing
    end = content.index(b"003.jpg")
    (tmp_path / "images" / "ends.tar").write_bytes(content[:end])
    index = index_of(tmp_path / "images", tmp_path)
    assert sum(path.startswith("whole.tar/") for path in index.paths) == 6
    assert sum(path.startswith("ends.tar/") for path in index.paths) == 3
    assert 0 < sum(path.startswith("cut.tar/") for path in index.paths) < 6
    for name in ("cut.tar", "nonsense.tar", "empty.tar", "ends.tar"):
        assert index.skipped[name].startswith("a damaged shard"), name


def test_two_members_of_one_name_are_two_pictures(tmp_path):
    path = tmp_path / "a.tar"
    write_tar(path, {"x.png": encoded(picture(0))})
    with tarfile.open(path, "a") as archive:
        about = tarfile.TarInfo("x.png")
        about.size = len(encoded(picture(1)))
        archive.addfile(about, io.BytesIO(encoded(picture(1))))
    index = index_of(path, tmp_path)
    assert index.paths == ["a.tar/x.png", "a.tar/x.png#2"]
    assert content_of(tmp_path, "a.tar/x.png#2") == encoded(picture(1))


def table(column, **others):
    return pa.table({"image": column, **others})


def test_parquet_with_structures_and_with_bytes(tmp_path):
    files = [encoded(picture(number)) for number in range(6)]
    (tmp_path / "images").mkdir()
    structures = pa.array([{"bytes": content, "path": None} for content in files[:3]])
    pq.write_table(table(structures, TEXT=CAPTIONS[:3]), tmp_path / "images" / "a.parquet", row_group_size=2)
    plain = pa.array([*files[3:], None, b"no picture"])
    pq.write_table(pa.table({"jpg": plain, "prompt": [*CAPTIONS[3:], "", ""]}), tmp_path / "images" / "b.parquet")
    index = index_of(tmp_path / "images", tmp_path)
    names = [f"a.parquet#{row}" for row in range(3)] + [f"b.parquet#{row}" for row in range(3)]
    assert captions(index) == dict(zip(names, CAPTIONS, strict=True))
    assert index.skipped["b.parquet#3"] == "an empty cell"
    assert index.skipped["b.parquet#4"].startswith("UnidentifiedImageError")
    check_content(index, "b.parquet#1", 4)
    assert content_of(tmp_path / "images", "b.parquet#1") == files[4]
    assert content_of(tmp_path / "images", "b.parquet#99") is None


def test_several_columns_of_pictures_are_all_read(tmp_path):
    two = pa.table({"before": [encoded(picture(0))], "after": [encoded(picture(1))]})
    pq.write_table(two, tmp_path / "pairs.parquet")
    index = index_of(tmp_path / "pairs.parquet", tmp_path)
    assert index.paths == ["pairs.parquet#0/before", "pairs.parquet#0/after"]
    assert content_of(tmp_path, "pairs.parquet#0/after") == encoded(picture(1))


def test_tables_without_pictures_and_damaged_tables_are_named(tmp_path):
    images = tmp_path / "images"
    images.mkdir()
    (images / "good.png").write_bytes(encoded(picture(0)))
    pq.write_table(pa.table({"URL": ["https://example.org"], "TEXT": ["a"]}), images / "urls.parquet")
    pq.write_table(table(pa.array([encoded(picture(1))] * 5)), images / "cut.parquet")
    (images / "cut.parquet").write_bytes((images / "cut.parquet").read_bytes()[:-40])
    (images / "empty.parquet").touch()
    index = index_of(images, tmp_path)
    assert index.paths == ["good.png"]
    assert index.skipped["urls.parquet"] == "no column of pictures (it has URL, TEXT)"
    assert index.skipped["cut.parquet"].startswith("a damaged table")
    assert index.skipped["empty.parquet"].startswith("a damaged table")


def write_arrow(path, columns, *, stream=True):
    path.parent.mkdir(parents=True, exist_ok=True)
    made = pa.table(columns)
    opened = pa.ipc.new_stream if stream else pa.ipc.new_file
    with path.open("wb") as file, opened(file, made.schema) as writer:
        writer.write_table(made, max_chunksize=2)


def test_a_folder_that_save_to_disk_wrote(tmp_path):
    folder = tmp_path / "saved"
    for shard in range(2):
        files = [{"bytes": encoded(picture(3 * shard + row)), "path": f"{row}.png"} for row in range(3)]
        write_arrow(
            folder / "train" / f"data-{shard:05}-of-00002.arrow",
            {"image": files, "text": CAPTIONS[3 * shard : 3 * shard + 3]},
            stream=shard == 0,
        )
    (folder / "train" / "state.json").write_text("{}")
    (folder / "dataset_dict.json").write_text('{"splits": ["train"]}')
    index = index_of(folder, tmp_path)
    names = [f"train/data-{shard:05}-of-00002.arrow#{row}" for shard in range(2) for row in range(3)]
    assert captions(index) == dict(zip(names, CAPTIONS, strict=True))
    assert by_reason(index.skipped) == {"not a picture": 2}
    check_content(index, names[5], 5)
    assert content_of(folder, names[5]) == encoded(picture(5))


def test_a_cell_may_name_a_file_of_its_source_and_no_other(tmp_path):
    folder = tmp_path / "saved"
    folder.mkdir()
    (folder / "inside.png").write_bytes(encoded(picture(0)))
    (tmp_path / "outside.png").write_bytes(encoded(picture(1)))
    cells = [{"bytes": None, "path": path} for path in ("inside.png", "../outside.png", "gone.png")]
    write_arrow(folder / "data.arrow", {"image": cells})
    index = index_of(folder, tmp_path)
    assert set(index.paths) == {"inside.png", "data.arrow#0"}
    assert "outside of the source" in index.skipped["data.arrow#1"]
    assert "is missing" in index.skipped["data.arrow#2"]


@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet"])
def test_captions_of_an_imagefolder(tmp_path, kind):
    images = tmp_path / "images" / "train"
    images.mkdir(parents=True)
    for number in range(3):
        (images / f"{number}.png").write_bytes(encoded(picture(number)))
    rows = [{"file_name": f"{number}.png", "text": CAPTIONS[number]} for number in range(3)]
    if kind == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), images / "metadata.parquet")
    elif kind == "csv":
        lines = ["file_name,text", *(f'{row["file_name"]},"{row["text"]}"' for row in rows)]
        (images / "metadata.csv").write_text("\n".join(lines))
    else:
        (images / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    index = index_of(tmp_path / "images", tmp_path)
    assert captions(index) == {f"train/{number}.png": CAPTIONS[number] for number in range(3)}
    assert index.skipped == {}
    assert index.captioned == 3
    match = index.match([picture(1)])
    assert match.captions == ["caption 1"]


def test_captions_beside_pictures_and_captions_that_cannot_be_read(tmp_path):
    images = tmp_path / "images"
    images.mkdir()
    for name in ("a", "b", "c", "d"):
        (images / f"{name}.png").write_bytes(encoded(picture(ord(name))))
    (images / "a.txt").write_text("from text\n", encoding="utf-8-sig")
    (images / "b.json").write_text(json.dumps({"Prompt": "from \ud800 JSON"}))
    (images / "c.json").write_text("[" * 100_000)
    (images / "d.caption").write_bytes("Größe".encode("latin-1"))
    (images / "other.txt").write_text("a text of its own")
    (images / "metadata.jsonl").write_text("not JSON")
    index = index_of(images, tmp_path)
    assert captions(index) == {"a.png": "from text", "b.png": "from ? JSON", "c.png": "", "d.png": "Gr\ufffd\ufffde"}
    assert set(index.skipped) == {"c.json", "metadata.jsonl", "other.txt"}
    assert index.skipped["c.json"].startswith("a caption that cannot be read")
    assert index.skipped["metadata.jsonl"].startswith("metadata that cannot be read")


def test_the_content_says_what_a_file_is_and_the_rest_is_counted(tmp_path):
    images = tmp_path / "images"
    images.mkdir()
    good = {
        "a.avif": "AVIF",
        "b.jfif": "JPEG",
        "c.jpe": "JPEG",
        "d": "PNG",
        "e.data": "WEBP",
        "f.jpg": "PNG",
        "g.PNG": "JPEG",
        "h.jp2": "JPEG2000",
        ".i": "PNG",
    }
    for number, (name, kind) in enumerate(good.items()):
        (images / name).write_bytes(encoded(picture(number), kind))
    for name in (".DS_Store", "._a.jpg", "Thumbs.db"):
        (images / name).write_bytes(b"\0\5\26\7" * 9)
    (images / "page.eps").write_bytes(encoded(picture(0), "EPS"))
    (images / "page.png").write_bytes(encoded(picture(0), "EPS"))
    (images / "phone.heic").write_bytes(b"\0\0\0\x18ftypheic" + bytes(40))
    (images / "all.zip").write_bytes(b"PK\3\4" + bytes(40))
    (images / "notes.md").write_text("# notes")
    index = index_of(images, tmp_path)
    assert set(index.paths) == set(good)
    assert by_reason(index.skipped) == {
        "a format that is not read": 3,
        "a file of the operating system": 3,
        "UnidentifiedImageError": 1,
        "not a picture": 1,
    }
    assert index.skipped["phone.heic"] == "a format that is not read: a HEIC picture"
    assert json.loads((tmp_path / "index" / "index.json").read_text())["skipped"] == index.skipped


def test_an_index_inside_of_its_folder_is_no_part_of_it(tmp_path):
    (tmp_path / "a.png").write_bytes(encoded(picture(0)))
    for _ in range(2):
        index = index_of(tmp_path, tmp_path)
        assert (index.paths, index.skipped) == (["a.png"], {})


def test_an_iterable_of_every_kind_of_picture(tmp_path):
    (tmp_path / "file.png").write_bytes(encoded(picture(0)))
    tensor = torch.from_numpy(np.array(picture(2))).permute(2, 0, 1) / 255
    given = [
        tmp_path / "file.png",
        picture(1),
        tensor,
        ("array", np.array(picture(3)), "a caption"),
        ("bytes", encoded(picture(4))),
        {"image": picture(5), "text": "from a mapping"},
        ("nothing", None),
        tensor * 2,
        "nowhere.png",
        (picture(6), "with a caption"),
    ]
    index = index_of(iter(given), tmp_path)
    assert index.paths == [
        (tmp_path / "file.png").as_posix(),
        "00000001",
        "00000002",
        "array",
        "bytes",
        "00000005",
        "00000009",
    ]
    assert captions(index)["00000009"] == "with a caption"
    assert captions(index)["array"] == "a caption"
    assert captions(index)["00000005"] == "from a mapping"
    assert set(index.skipped) == {"nothing", "00000007", "nowhere.png"}
    for seed, name in enumerate(index.paths):
        check_content(index, name, seed)
    again = index_of(given, tmp_path)
    assert again.changes == Changes(unchanged=7)
    with pytest.raises(UsageError, match="got a int as images"):
        index_of(3, tmp_path)
    with pytest.raises(UsageError, match="no pictures in pictures from Python"):
        ImageIndex.build([], tmp_path / "none")


@pytest.mark.parametrize("name", ["nowhere", "a" * 5000, "a\0b", "{0..3}.tar", "{a,b", "{9..1}.tar", "{0..99999999}"])
def test_names_of_nothing_are_refused_in_one_line(tmp_path, cryptomnesia, name):
    for command in (["index", "build", name, "-o", tmp_path / "index"], ["match", name, "--index", tmp_path]):
        if command[0] == "match":
            ImageIndex.build([picture(0)], tmp_path)
        code, out, err = cryptomnesia(*command)
        assert (code, out) == (2, "")
        assert err.startswith("error: ")
        assert err.count("\n") == 1


def test_what_is_left_out_is_named_in_one_line(tmp_path):
    (tmp_path / "red.png").write_bytes(encoded(picture(0)))
    (tmp_path / "junk.tar").write_bytes(b"junk" * 500)
    index = ImageIndex.build(tmp_path, tmp_path / "index")
    assert index.skipped["junk.tar"].startswith("a damaged shard: ReadError: ")
    assert "\n" not in index.skipped["junk.tar"]
