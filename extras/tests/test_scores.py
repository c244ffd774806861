"""extras/scores.py: closed forms, independent tools, and generators more and less deaf to noise."""

import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import lpips                                # noqa: E402  (the lines above must come first)
import pytorch_msssim                       # noqa: E402

import data                                 # noqa: E402
import metrics                              # noqa: E402
import oasis                                # noqa: E402
from extras import scores                   # noqa: E402
from PIL import Image                       # noqa: E402
from random_networks import inception_file, pytorch_fid_features, random_images  # noqa: E402, F401
from tiny_run import make_checkpoint        # noqa: E402


def smooth_images(count, height, width, seed=0):
    """Random images in [-1, 1] that change slowly from pixel to pixel."""
    coarse = torch.rand(count, 3, 6, 6, generator=torch.Generator().manual_seed(seed)) * 2 - 1
    return nn.functional.interpolate(coarse, (height, width), mode="bicubic").clamp(-1, 1)


@pytest.fixture(scope="module")
def random_lpips():
    """The network of LPIPS with a random VGG16, which needs no download."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return lpips.LPIPS(net="vgg", pnet_rand=True, verbose=False).eval()


@pytest.mark.parametrize("theirs, size", [
    (pytorch_msssim.ms_ssim, (176, 192)),
    (partial(pytorch_msssim.ssim, nonnegative_ssim=True), (16, 20))])
def test_ms_ssim_agrees_with_pytorch_msssim(theirs, size):
    """One scale is plain SSIM."""
    images = smooth_images(3, *size)
    images = (images + images.flip(0)) / 2 + 0.2 * smooth_images(3, *size, 1)
    x, y = ((images[i] + 1) / 2 for i in ([0, 0, 1], [1, 2, 2]))
    expected = theirs(x, y, data_range=1).item()
    assert scores.ms_ssim_of_pairs(images) == pytest.approx(expected, rel=1e-4)
    assert scores.ms_ssim_of_pairs(images[:1].expand(3, -1, -1, -1)) == pytest.approx(1)


def test_scales_of_small_images():
    assert [scores.num_scales((side, 300)) for side in (11, 22, 64, 175, 176)] == [1, 2, 3, 4, 5]
    assert 0 < scores.ms_ssim_of_pairs(smooth_images(3, 64, 64)) < 1
    with pytest.raises(data.UserError, match="11×11"):
        scores.ms_ssim_of_pairs(torch.zeros(2, 3, 8, 16))


def test_colour_distance_by_hand():
    """Grey images of L = 50 and about 60: ten units in one of three channels."""
    grey = {level: np.full((2, 8, 8, 3), level, np.uint8) for level in (119, 145)}    # L 50.0, 60.2
    assert scores.colour_distance(grey[119], grey[119]) == 0
    assert scores.colour_distance(grey[119], grey[145]) == pytest.approx(10 / 3)


def test_texture_distance_by_hand():
    """Light and contrast do not matter, direction does; two flat images are equal."""
    ramp = np.repeat(np.arange(0, 160, 10, dtype=np.uint8)[None, :, None], 16, 0).repeat(3, 2)[None]
    assert scores.texture_distance(ramp, ramp // 2 + 60) == 0
    assert scores.texture_distance(ramp, ramp.transpose(0, 2, 1, 3)) == pytest.approx(1)
    assert scores.texture_distance(0 * ramp, 0 * ramp + 200) == 0


class Painter(nn.Module):
    """A stand-in generator: the palette's colours, with a pattern from the noise."""

    noise_dim, pixel_noise = 3, 0

    def __init__(self, dataset, tint):
        super().__init__()
        self.colours, self.tint = torch.as_tensor(dataset.palette) / 127.5 - 1, tint

    def forward(self, labels, noise):
        pattern = torch.sin(torch.arange(labels.shape[2]) * noise.mean(1, keepdim=True))
        tint = noise[:, :, None, None] + pattern[:, None, None, :]
        return self.colours[labels].permute(0, 3, 1, 2) * 0.7 + self.tint * tint


def test_change_of_noises_by_hand():
    """Two images, 51 levels apart in one half of the picture; texture that cancels in 8×8."""
    images = torch.zeros(2, 3, 16, 16)
    images[1, :, :8] += 0.4
    texture = 0.3 * (-1) ** torch.arange(16)
    expected = 51 / 2 ** 0.5 / 2               # the deviation of two numbers, in half the pixels
    assert scores.change_of_noises(images) == pytest.approx(expected, rel=1e-5)
    images[1] += texture
    assert scores.change_of_noises(images) == pytest.approx(expected, rel=1e-5)


def test_noise_at_every_pixel_is_drawn_anew_for_each_sample():
    """A generator that shows the field: its texture differs, its means of 8×8 hardly."""
    class Field(nn.Module):
        noise_dim, pixel_noise = 4, 3

        def forward(self, labels, noise):
            assert noise.shape[1:] == (4, 32, 32)
            return noise[:, 1:].clamp(-2, 2) / 4
    dataset = data.open_dataset("toy", "val", (32, 32), num_images=2)
    found = scores.score(Field(), dataset, ["ms_ssim", "noises"])
    assert found["ms_ssim"] < 0.1 and 1 < found["noises"] < 127.5 / 4 / 4


def test_diversity(random_lpips, monkeypatch):
    """A generator deaf to noise: MS-SSIM 1, LPIPS 0. The more noise does, the further from that."""
    monkeypatch.setattr(scores, "load_lpips", lambda: random_lpips)
    monkeypatch.setattr(scores, "SAMPLES", 5)
    dataset = data.open_dataset("toy", "val", (32, 32), num_images=4)
    names = ["ms_ssim", "lpips", "noises", "colour", "texture"]
    found = [scores.score(Painter(dataset, tint), dataset, names, 2) for tint in (0, 0.05, 0.2)]
    assert found[0]["ms_ssim"] == pytest.approx(1) and found[0]["lpips"] == pytest.approx(0)
    assert found[0]["ms_ssim"] > found[1]["ms_ssim"] > found[2]["ms_ssim"] > 0
    assert found[0]["lpips"] < found[1]["lpips"] < found[2]["lpips"]
    assert found[0]["noises"] == pytest.approx(0, abs=1e-4)
    assert found[0]["noises"] < found[1]["noises"] < found[2]["noises"]
    assert set(found[0]) == {*names, "colour_real", "texture_real"}


def test_script(tmp_path, capsys, monkeypatch):
    checkpoint = make_checkpoint(tmp_path / "run" / "latest.pt")
    ask = ["--checkpoint", str(checkpoint), "--num-images", "2", "--metrics"]
    scores.main([*ask, "ms_ssim,texture"])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[1:]] == ["ms_ssim", "texture", "texture_real"]
    assert "20 samples per label map, 2 of 5 scales, 2 images of toy val at 32×32" in lines[1]
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", lambda *a, **k: open("/nowhere/file"))
    for name, words in (("lpips", "put it at"), ("beauty", "no score 'beauty'; there are ms_ssim")):
        with pytest.raises(SystemExit) as stop:
            scores.main([*ask, name])
        assert stop.value.code == 2 and words in capsys.readouterr().err


# ---- FID of two folders --------------------------------------------------------------------------


@pytest.fixture
def few_features(monkeypatch):
    """Every 32nd feature only, as eigenvalues of 2048×2048 matrices take many seconds."""
    forward = metrics.InceptionFeatures.forward
    monkeypatch.setattr(metrics.InceptionFeatures, "forward",
                        lambda network, images: forward(network, images)[:, ::32])


def save_images(images, folder):
    folder.mkdir(parents=True)
    for i, pixels in enumerate(data.to_uint8(images)):
        Image.fromarray(pixels).save(folder / f"{i:03d}.png")
    return folder


def nuclear_norm_distance(x, y):
    """The distance of two sets of features by singular values, which bears few images."""
    a = (x - x.mean(0)) / np.sqrt(len(x) - 1)
    b = (y - y.mean(0)) / np.sqrt(len(y) - 1)
    return (((x.mean(0) - y.mean(0)) ** 2).sum() + (a ** 2).sum() + (b ** 2).sum()
            - 2 * np.linalg.norm(a @ b.T, "nuc"))


def error_of(arguments, capsys):
    """The script's one sentence about a bad request."""
    with pytest.raises(SystemExit) as stop:
        scores.main([str(argument) for argument in arguments])
    out, err = capsys.readouterr()
    assert stop.value.code == 2 and out == "" and "Traceback" not in err
    return err.splitlines()[-1]


def test_fid_of_two_folders(inception_file, pytorch_fid_features, few_features, tmp_path, capsys):
    real, fake = random_images(6, 40, 48, seed=1), random_images(6, 40, 48, seed=2) * 0.8
    folders = [save_images(real, tmp_path / "real"), save_images(fake, tmp_path / "fake")]
    scores.main(["--real", str(folders[0]), "--fake", str(folders[1]),
                 "--inception", str(inception_file)])
    out = capsys.readouterr().out
    x = pytorch_fid_features(real).double().numpy()[:, ::32]
    y = pytorch_fid_features(metrics.quantise(fake)).double().numpy()[:, ::32]
    values = {line.split()[0]: float(line.split()[1]) for line in out.splitlines()}
    assert values["fid"] == pytest.approx(nuclear_norm_distance(x, y), rel=1e-4)
    assert values["fid_real"] == pytest.approx(nuclear_norm_distance(x[::2], x[1::2]), rel=1e-4)
    assert "biased upwards below 2048 images, 6 real and 6 fake images" in out


def test_bad_folders(inception_file, few_features, tmp_path, capsys):
    good = save_images(random_images(4, 16, 16), tmp_path / "good")
    broken = save_images(random_images(4, 16, 16), tmp_path / "broken")
    (broken / "000.png").write_bytes(b"half a picture")
    ask = ["--inception", inception_file, "--fake", good, "--real"]
    assert "000.png: cannot be read" in error_of([*ask, broken], capsys)
    assert "nowhere" in error_of([*ask, tmp_path / "nowhere"], capsys)
    assert "belong together" in error_of(ask[:4], capsys)
    assert "compared by FID" in error_of([*ask, good, "--metrics", "ms_ssim"], capsys)
    for count in (1, 2):
        few = save_images(random_images(count, 16, 16), tmp_path / f"few{count}")
        assert f"few{count}: FID of {count} images" in error_of([*ask, few], capsys)
        assert f"FID of {count} images" in error_of([*ask, good, "--num-images", count], capsys)


@pytest.mark.parametrize("option", ["checkpoint", "data-root", "metrics", "num-images", "real",
                                    "fake", "inception"])
@pytest.mark.parametrize("value", ["0", "-1", "nan", "word", "no/such/path"])
def test_no_value_of_an_option_ends_in_a_traceback(tmp_path, capsys, option, value):
    """Each is refused in a sentence that names it; --real and --fake stand beside a good folder."""
    checkpoint = make_checkpoint(tmp_path / "latest.pt")
    folder = save_images(random_images(4, 16, 16), tmp_path / "good")
    ask = ["--checkpoint", checkpoint, "--num-images", 1]
    if option in ("real", "fake", "inception"):
        ask = ["--real", folder, "--fake", folder]
    assert value in error_of([*ask, f"--{option}={value}"], capsys)


def test_one_image_has_no_other_half(tmp_path, capsys):
    checkpoint = make_checkpoint(tmp_path / "latest.pt")
    ask = ["--checkpoint", str(checkpoint), "--num-images", "1"]
    scores.main([*ask, "--metrics", "colour,noises"])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[1:]] == ["noises", "colour"]
