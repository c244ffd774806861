"""Everything that is measured of a generator for a table of rows, by two judges.

    judges = Judges(train_set, val_set, device, "runs/ablation")
    values = judges.measure(generator)                      # {column: value, column_real: value}

The judges read label maps back from images (mIoU) and compare features (Fréchet distance). One is
metrics.py's segmenter, a U-Net like OASIS's D. The other is torchvision's LR-ASPP on MobileNetV3,
which has nothing of D: an advantage of OASIS that only the first one sees would be an advantage
with its relative. Both are trained here on the same real images, and kept.
"""

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn
from torchvision.models.segmentation import lraspp_mobilenet_v3_large
from tqdm import tqdm

import data
import losses
import metrics
import sample
from extras import scores
from extras.stripes import paint_maps, read_scenes, stripe_shares

# Column: its heading in a table.
COLUMNS = {
    "miou": "mIoU ↑",
    "miou_lraspp": "by LR-ASPP ↑",
    "fd_segmenter": "`fd_segmenter` ↓",
    "fd_lraspp": "by LR-ASPP ↓",
    "colour": "colour ↓",
    "texture": "texture ↓",
    "stripes": "stripe share",
    "detail": "detail",
    "ms_ssim": "MS-SSIM ↓",
    "noises": "noises ↑",
    "d_miou": "D's mIoU ↑",
    "seconds_per_step": "s / step",
    "parameters": "parameters",
}
LEGEND = """\
stripe share, detail: share of stripes in the fine texture, and its standard deviation (0 … 255);
means over classes; a share means nothing where the detail is far below the real one. noises:
standard deviation over noises of the same label map's colours, 0 … 255. MS-SSIM: 1 where noise
changes nothing. s / step: the median; only of meaning where nothing else ran on the machine.
parameters: G and D, in training."""
SIDE = 128              # LR-ASPP's input has at least this height and width
CLEAR = 30              # a class with fewer windows in the real images has no stripe share here


# ---- The second judge ----------------------------------------------------------------------------


class SecondJudge(nn.Module):
    """LR-ASPP with the interface of metrics.py's segmenter: images -> logits, and encode(images).

    Its features are 8 times coarser than its input. So small images are enlarged by a factor.
    """

    def __init__(self, num_classes, factor):
        super().__init__()
        self.factor = factor
        self.network = lraspp_mobilenet_v3_large(num_classes=num_classes, weights=None,
                                                 weights_backbone=None)
        for layer in self.network.modules():
            if isinstance(layer, nn.BatchNorm2d):
                layer.momentum = 0.1        # 0.01 would leave its statistics 100 steps behind

    def enlarge(self, images):
        if self.factor == 1:
            return images
        return F.interpolate(images, scale_factor=self.factor, mode="bilinear")

    def forward(self, images):
        """(B, 3, H, W) in [−1, 1] -> logits (B, N, H, W)."""
        logits = self.network(self.enlarge(images))["out"]
        return F.interpolate(logits, images.shape[2:], mode="bilinear")

    def encode(self, images):
        """[features]: what the classifier reads, (B, 128, h, w)."""
        deepest = self.network.backbone(self.enlarge(images))["high"]
        return [self.network.classifier.cbr(deepest)]


def train_second_judge(network, dataset, device, steps):
    """Train on real images, with the loss and the class weights of metrics.train_segmenter."""
    optimizer = torch.optim.Adam(network.parameters(), 6e-3)
    warm_up = 0.1 if steps != 10 else 0.2           # PyTorch divides by 0.1 · steps − 1
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 6e-3, steps, pct_start=warm_up)
    sampler = data.BatchSampler(len(dataset), min(8, len(dataset)), 0)
    batches = iter(data.make_loader(dataset, sampler, 0))
    network.train()
    for _ in tqdm(range(steps), "training LR-ASPP", leave=False, disable=None):
        images, labels = next(batches)
        images, labels = images.to(device), labels.to(device)
        weights = losses.class_weights(labels, dataset.num_classes, dataset.ignore_label).sqrt()
        loss = F.cross_entropy(network(images), labels, weights, reduction="sum")
        loss = loss / weights[labels].sum().clamp(min=1e-9)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()


def open_second_judge(folder, dataset, device, steps):
    """LR-ASPP as a metrics.Segmenter, from folder/lraspp.pt or trained now and kept there."""
    path = Path(folder, "lraspp.pt")
    factor = max(1, -(-SIDE // min(dataset.size)))
    torch.manual_seed(0)
    network = SecondJudge(dataset.num_classes, factor).to(device)
    key = {"data": metrics.digest_of_data(dataset), "steps": steps}
    content = sample.read_tensors(path) if path.exists() else {}
    if content.get("key") != key:
        train_second_judge(network, dataset, device, steps)
        content = {"key": key, "network": network.state_dict()}
        with data.write_whole(path) as partial:
            torch.save(content, partial)
    network.load_state_dict(content["network"])
    network.requires_grad_(False).eval()
    return metrics.Segmenter(network, dataset, description=f"LR-ASPP trained {steps} steps")


# ---- All columns ---------------------------------------------------------------------------------


def mean_texture(shares, classes):
    """(stripe share, deviation), means over these classes; of {class id: Texture}.

    A class that is painted in one colour has no share, and a deviation of 0.
    """
    found = [shares[k] for k in classes if k in shares]
    stripes = sum(texture.share for texture in found) / max(1, len(found))
    detail = sum(texture.deviation for texture in found) / max(1, len(classes))
    return stripes, detail


class Judges:
    """Measures generators on one validation set, always from the same label maps and seeds.

    folder: keeps segmenter.pt and lraspp.pt. maps: how many label maps for diversity, colour and
    texture. segmenter_steps, lraspp_steps: how long the judges are trained.
    """

    def __init__(self, train_set, val_set, device, folder, maps=40, segmenter_steps=None,
                 lraspp_steps=600):
        self.val_set, self.device, self.maps = val_set, device, maps
        self.lraspp_steps = lraspp_steps
        names = ["miou", "fd_segmenter"]
        self.first = metrics.Scorer(val_set, train_set, device, names, run_dir=folder,
                                    segmenter_steps=segmenter_steps)
        self.first.prepare()
        self.second = None                      # opened when it is needed
        self.open_second = lambda: metrics.Scorer(
            val_set, None, device, names,
            segmenter=open_second_judge(folder, train_set, device, lraspp_steps))
        images, self.label_maps = read_scenes(val_set)
        self.real = stripe_shares(images, self.label_maps)
        self.classes = [k for k, texture in self.real.items() if texture.windows >= CLEAR]

    def measure(self, generator):
        """{column: value}, and {column_real: value} of the real images where there is one."""
        self.second = self.second or self.open_second()
        result = self.first(generator)
        for name, value in self.second(generator).items():
            name = name.replace("miou", "miou_lraspp").replace("fd_segmenter", "fd_lraspp")
            result[name] = value
        names = ("ms_ssim", "noises", "colour", "texture")
        result.update(scores.score(generator, self.val_set, names, self.maps, device=self.device))
        painted = paint_maps(generator, self.label_maps, range(len(self.label_maps)))
        shares = stripe_shares(painted, self.label_maps)
        result["stripes"], result["detail"] = mean_texture(shares, self.classes)
        result["stripes_real"], result["detail_real"] = mean_texture(self.real, self.classes)
        return result
