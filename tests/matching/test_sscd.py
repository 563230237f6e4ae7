import io
import pickle
import sys
import warnings

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from cryptomnesia import UsageError
from cryptomnesia.images import square
from cryptomnesia.matching import SSCD, ImageIndex


@pytest.fixture
def network(tmp_path):
    """A TorchScript network that embeds a picture as the means of its colours in four bands."""
    bands = nn.Sequential(nn.AdaptiveAvgPool2d((4, 1)), nn.Flatten())
    (tmp_path / "copies.pt").write_bytes(scripted(bands))
    return tmp_path / "copies.pt"


def test_sscd_distances_are_those_of_cosines(network):
    sscd = SSCD(network, side=32, batch_size=2)
    pictures = torch.rand(3, 3, 32, 32)
    described = sscd.describe(pictures)
    assert described.shape == (3, 1, 12)
    mean, deviation = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    embedded = torch.stack(
        [((one.permute(1, 2, 0) - mean) / deviation).reshape(4, 8, 32, 3).mean((1, 2)).T.flatten() for one in pictures]
    )
    cosine = torch.nn.functional.cosine_similarity(embedded[0], embedded[1], dim=0)
    distance = (described[0] - described[1]).square().mean().sqrt()
    torch.testing.assert_close(distance, (2 - 2 * cosine).sqrt(), atol=1e-5, rtol=1e-4)
    with pytest.raises(UsageError, match="SSCD compares whole pictures"):
        sscd.weights(torch.ones(1, 32, 32))
    assert sscd.name == SSCD(network, side=32).name != SSCD(network, side=64).name


def test_pictures_are_matched_by_sscd(network, tmp_path):
    (tmp_path / "pictures").mkdir()
    for number in range(30):
        bands = np.random.default_rng(number).integers(0, 256, (4, 1, 3), dtype=np.uint8)
        Image.fromarray(bands).resize((32, 32), Image.Resampling.NEAREST).save(tmp_path / "pictures" / f"{number}.png")
    sscd = SSCD(network, side=32)
    index = ImageIndex.build(tmp_path / "pictures", tmp_path / "index", sscd)
    copy, other = Image.open(tmp_path / "pictures" / "7.png"), torch.rand(3, 32, 32)
    found = index.match(torch.stack([square(copy, 32), other]), fpr=0.05)
    assert found.paths[0] == "7.png"
    assert found.reproduced.tolist() == [True, False]
    assert found.p_values[0] == 0.05


def test_a_copy_in_another_process_loads_the_same_network(network, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    sscd = SSCD(network.name, side=32)
    held = pickle.dumps(sscd)
    pictures = torch.rand(2, 3, 32, 32)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    made = pickle.loads(held)
    assert (made.name, made.shape, made.device) == (sscd.name, sscd.shape, "cpu")
    torch.testing.assert_close(made.describe(pictures), sscd.describe(pictures))
    # this machine need not have the device, and the file has to be the same
    other = sscd.on("cuda:77")
    assert other.name == sscd.name
    with pytest.raises(UsageError, match="got device 'cuda:77', which cannot be used"):
        other.describe(pictures)
    network.write_bytes(scripted(nn.Sequential(nn.AdaptiveAvgPool2d((2, 2)), nn.Flatten())))
    with pytest.raises(
        UsageError, match=r"copies\.pt has changed, or is another file on another machine; share one file"
    ):
        pickle.loads(held).describe(pictures)


def test_a_file_that_is_no_network_is_refused(tmp_path):
    with pytest.raises(UsageError, match="no file"):
        SSCD(tmp_path / "none.pt")
    (tmp_path / "text.pt").write_text("not TorchScript")
    with pytest.raises(UsageError, match="is no TorchScript file"):
        SSCD(tmp_path / "text.pt")
    (tmp_path / "map.pt").write_bytes(scripted(nn.AvgPool2d(2)))
    with pytest.raises(UsageError, match="embeds no pictures"):
        SSCD(tmp_path / "map.pt", side=32)


def scripted(module):
    held = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # as in `SSCD`
        torch.jit.save(torch.jit.trace(module, torch.zeros(1, 3, 32, 32)), held)
    return held.getvalue()


@pytest.fixture
def twins(tmp_path):
    """One random network of the means of sixteen squares, as TorchScript and as an ONNX model for any batch size."""
    onnx = pytest.importorskip("onnx", reason="onnx is not installed")
    linear = nn.Linear(48, 10)
    (tmp_path / "twin.pt").write_bytes(scripted(nn.Sequential(nn.AvgPool2d(8), nn.Flatten(), linear)))

    def model(batch):
        nodes = [
            onnx.helper.make_node("AveragePool", ["pictures"], ["means"], kernel_shape=[8, 8], strides=[8, 8]),
            onnx.helper.make_node("Flatten", ["means"], ["flat"]),
            onnx.helper.make_node("Gemm", ["flat", "weight", "bias"], ["embedding"], transB=1),
        ]
        graph = onnx.helper.make_graph(
            nodes,
            "twin",
            [onnx.helper.make_tensor_value_info("pictures", onnx.TensorProto.FLOAT, [batch, 3, 32, 32])],
            [onnx.helper.make_tensor_value_info("embedding", onnx.TensorProto.FLOAT, [batch, 10])],
            [onnx.numpy_helper.from_array(value.detach().numpy(), name) for name, value in linear.named_parameters()],
        )
        made = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
        onnx.checker.check_model(made)
        return made

    onnx.save(model("B"), tmp_path / "twin.onnx")
    onnx.save(model(1), tmp_path / "single.onnx")
    onnx.save(
        model("B"), tmp_path / "split.onnx", save_as_external_data=True, location="weights.data", size_threshold=0
    )
    return tmp_path


def test_an_onnx_network_embeds_as_its_torchscript_twin(twins):
    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    script, exported = (SSCD(twins / f"twin.{form}", side=32, batch_size=3) for form in ("pt", "onnx"))
    pictures = torch.rand(7, 3, 32, 32)
    torch.testing.assert_close(exported.describe(pictures), script.describe(pictures))
    assert exported.shape == script.shape == (1, 10)
    assert exported.name != script.name
    assert exported.name == SSCD(twins / "twin.onnx", side=32).name


def test_a_file_that_is_no_onnx_network_is_refused(twins, monkeypatch):
    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    (twins / "text.onnx").write_text("not ONNX")
    with pytest.raises(UsageError, match="is no ONNX file"):
        SSCD(twins / "text.onnx")
    with pytest.raises(UsageError, match=r"embeds no pictures .*Got: 64 Expected: 32"):
        SSCD(twins / "twin.onnx", side=64)
    with pytest.raises(UsageError, match=r"embeds no pictures .*Got: 2 Expected: 1"):
        SSCD(twins / "single.onnx", side=32)
    # weights beside the file are not part of its hash, wherever the process runs
    monkeypatch.chdir(twins)
    with pytest.raises(UsageError, match="External data path does not exist"):
        SSCD(twins / "split.onnx", side=32)


def test_without_onnxruntime_the_error_names_what_to_install(tmp_path, monkeypatch):
    (tmp_path / "copies.onnx").touch()
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(UsageError, match=r"pip install 'cryptomnesia\[onnx\]'"):
        SSCD(tmp_path / "copies.onnx")


def test_a_device_is_checked(network, tmp_path, cryptomnesia):
    assert SSCD(network, side=32, device=torch.device("cpu")).name == SSCD(network, side=32).name
    for device in ("cuda:77", "tpu", "meta"):
        with pytest.raises(UsageError, match=f"got device '{device}', which cannot be used .*; have cpu"):
            SSCD(network, device=device)
    (tmp_path / "pictures").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "pictures" / "a.png")
    given = ["index", "build", tmp_path / "pictures", "-o", tmp_path / "index", "--device", "cuda:77"]
    code, out, err = cryptomnesia(*given, "--sscd", network)
    assert (code, out) == (2, "")
    assert "got device 'cuda:77', which cannot be used" in err
