import shutil
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn.functional import interpolate

from cryptomnesia import UsageError
from cryptomnesia.matching import ImageIndex, Tiles, candidates
from cryptomnesia.matching.building import FORMAT
from cryptomnesia.matching.shards import Row, Shards, write_json, write_shard

PICTURES = 6000
COPIED = torch.arange(0, PICTURES, 100)


def some_pictures(count, seed):
    """Smooth random pictures with some grain, (count, 3, 32, 32)."""
    rng = torch.Generator().manual_seed(seed)
    smooth = interpolate(torch.rand(count, 3, 5, 5, generator=rng), size=32, mode="bilinear")
    return (smooth + 0.05 * torch.randn(count, 3, 32, 32, generator=rng)).clamp(0, 1)


def write(folder, pictures, descriptor, first=0):
    """Write an index of pictures without codes: shards from number `first` on, and what the index says of itself."""
    folder.mkdir(exist_ok=True)
    for number, values in enumerate(descriptor.describe(pictures).split(2500), start=first):
        rows = [Row(f"{number}/{row}.png") for row in range(len(values))]
        write_shard(folder / f"{number:05}", values.half().numpy(), rows)
    about = {"format": FORMAT, "descriptor": descriptor.name, "source": "pictures", "skipped": {}, "complete": True}
    write_json(folder / "index.json", about)


def code(folder, descriptor, progress=None):
    candidates.extend(folder, Shards(folder, descriptor.shape), progress)


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """An index without candidates, and the folder of the same one with them."""
    pytest.importorskip("faiss", reason="faiss is not installed")
    folder = tmp_path_factory.mktemp("large") / "index"
    write(folder, some_pictures(PICTURES, 0), Tiles())
    exact = ImageIndex(folder, Tiles())
    code(folder, Tiles())
    return exact, folder


@pytest.fixture
def few(monkeypatch):
    """Make a search compare one picture in 23."""
    monkeypatch.setattr(candidates, "CANDIDATES", 256)


def near_copies(masks=None):
    """Every hundredth picture, brighter or darker and with other grain. Outside of its mask it is another picture."""
    rng = torch.Generator().manual_seed(1)
    copies = some_pictures(PICTURES, 0)[COPIED]
    copies += 0.05 * torch.randn(len(COPIED), 1, 1, 1, generator=rng) + 0.05 * torch.randn(copies.shape, generator=rng)
    return copies.clamp(0, 1) if masks is None else torch.where(masks[:, None], copies, some_pictures(len(COPIED), 2))


def rectangles():
    """Masks (B, 32, 32) whose borders are not those of tiles."""
    rng = np.random.default_rng(0)
    masks = torch.zeros(len(COPIED), 32, 32, dtype=torch.bool)
    for mask, (top, left, height, width) in zip(
        masks, rng.integers([0, 0, 14, 14], [12, 12, 20, 20], (60, 4)), strict=True
    ):
        mask[top : top + height, left : left + width] = True
    return masks


@pytest.mark.usefixtures("few")
@pytest.mark.parametrize("masks", [None, rectangles()], ids=["whole", "region"])
def test_every_near_copy_is_found_and_usual_distances_stay_the_same(large, masks):
    exact, folder = large
    queries = near_copies(masks)
    brute, found = (index.search(queries, masks=masks, k=51) for index in (exact, ImageIndex(folder, Tiles())))
    assert found.positions[:, 0].equal(COPIED)
    torch.testing.assert_close(found.distances[:, 0], brute.distances[:, 0], atol=1e-3, rtol=0)
    # the next fifty pictures define the usual distance; if some are missed, it becomes larger
    ratio = found.distances[:, 1:].mean(dim=1) / brute.distances[:, 1:].mean(dim=1)
    assert ratio.mean() < 1.02
    assert ratio.max() < 1.05


@pytest.mark.usefixtures("few")
def test_candidates_give_the_same_match_as_the_exact_search(large):
    exact, folder = large
    queries = torch.cat([near_copies()[:5], some_pictures(5, 3)])
    brute, found = (index.match(queries, fpr=0.1) for index in (exact, ImageIndex(folder, Tiles())))
    assert found.paths[:5] == brute.paths[:5]
    assert found.reproduced.tolist() == brute.reproduced.tolist() == [True] * 5 + [False] * 5
    nothing = ImageIndex(folder, Tiles()).match(queries[:1], masks=torch.zeros(1, 8, 8))
    assert nothing.distances.isinf().all()


@pytest.mark.usefixtures("few")
@pytest.mark.parametrize("count", [1, 60], ids=["one query", "many queries"])
def test_codes_that_are_divided_among_threads_give_the_same_candidates(large, monkeypatch, count):
    folder, masks = large[1], rectangles()[:count]
    queries = near_copies(rectangles())[:count]
    together = ImageIndex(folder, Tiles()).search(queries, masks=masks, k=51)
    monkeypatch.setattr(candidates, "FEWEST", 2000)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    index = ImageIndex(folder, Tiles())
    assert [first for first, _ in index._search.candidates._parts] == [0, 2016, 4032]
    divided = index.search(queries, masks=masks, k=51)
    assert divided.positions.equal(together.positions)
    assert divided.distances.equal(together.distances)


@pytest.mark.usefixtures("few")
def test_descriptors_of_a_single_tile_have_candidates_too(tmp_path):
    pytest.importorskip("faiss", reason="faiss is not installed")
    pictures = some_pictures(1500, 0)
    write(tmp_path, pictures, Tiles(across=1))
    code(tmp_path, Tiles(across=1))
    found = ImageIndex(tmp_path, Tiles(across=1)).search(pictures[::100] + 0.02)
    assert found.positions[:, 0].tolist() == list(range(0, 1500, 100))


def test_codes_are_extended_and_continue_after_a_stop(large, tmp_path, monkeypatch):
    shutil.copytree(large[1], tmp_path / "index")
    added = some_pictures(4100, 4)
    write(tmp_path / "index", added, Tiles(), first=10)
    with pytest.raises(UsageError, match="knows 6000 of 10100 pictures; run `cryptomnesia index build` again"):
        ImageIndex(tmp_path / "index", Tiles())

    def stop(done, total):
        raise KeyboardInterrupt

    monkeypatch.setattr(candidates, "SAVED_EVERY", 0)
    with pytest.raises(KeyboardInterrupt):
        code(tmp_path / "index", Tiles(), stop)
    with pytest.raises(UsageError, match="knows 8048 of 10100"):
        ImageIndex(tmp_path / "index", Tiles())
    seen = []
    code(tmp_path / "index", Tiles(), lambda done, total: seen.append((done, total)))
    assert seen == [(10096, 10100), (10100, 10100)]
    monkeypatch.setattr(candidates, "CANDIDATES", 256)
    found = ImageIndex(tmp_path / "index", Tiles()).search(torch.cat([near_copies()[:3], added[-2:]]))
    assert found.positions[:, 0].tolist() == [0, 100, 200, 10098, 10099]


@pytest.fixture
def images(tmp_path):
    """A folder of three hundred pictures."""
    (tmp_path / "images").mkdir()
    for number, picture in enumerate(some_pictures(300, 0)):
        array = (picture * 255).round().byte().permute(1, 2, 0).numpy()
        Image.fromarray(array).save(tmp_path / "images" / f"{number:03}.png")
    return tmp_path / "images"


def test_a_build_keeps_candidates_up_to_date(images, tmp_path, monkeypatch):
    pytest.importorskip("faiss", reason="faiss is not installed")
    folder = tmp_path / "index"
    with pytest.raises(UsageError, match="300 pictures, not over 4096, needs no faiss"):
        ImageIndex.build(images, folder, Tiles(), faiss=True)
    monkeypatch.setattr(candidates, "CANDIDATES", 64)
    ImageIndex.build(images, folder, Tiles(), faiss=True)
    assert (folder / candidates.FILE).exists()
    new = some_pictures(1, 9)
    Image.fromarray((new[0] * 255).round().byte().permute(1, 2, 0).numpy()).save(images / "new.png")
    index = ImageIndex.build(images, folder, Tiles())
    assert index.paths[index.search(new).positions.item()] == "new.png"


def test_codes_of_another_index_and_damaged_codes_are_refused(large, tmp_path):
    _, folder = large
    write(tmp_path, interpolate(some_pictures(10, 0), size=16, mode="area"), Tiles(across=2, side=16))
    shutil.copy(folder / candidates.FILE, tmp_path)
    with pytest.raises(UsageError, match="holds no codes of this index; delete it"):
        ImageIndex(tmp_path, Tiles(across=2, side=16))
    (tmp_path / candidates.FILE).write_bytes((folder / candidates.FILE).read_bytes()[:-1000])
    with pytest.raises(UsageError, match=r"cannot be read .*; delete it"):
        ImageIndex(tmp_path, Tiles(across=2, side=16))


def test_without_faiss_the_error_names_what_to_install(images, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "faiss", None)
    missing = r"pip install 'cryptomnesia\[faiss\]', or search exactly without candidates.faiss"
    with pytest.raises(UsageError, match=missing):
        ImageIndex.build(images, tmp_path / "index", Tiles(), faiss=True)
    ImageIndex.build(images, tmp_path / "index", Tiles())
    (tmp_path / "index" / candidates.FILE).touch()
    with pytest.raises(UsageError, match=missing):
        ImageIndex(tmp_path / "index", Tiles())
