"""mIoU with a segmentation network of your own, say one that papers use, as an exported program.

    python -m extras.own_segmenter upernet101.pt2 --checkpoint F --data-root D --classes table.txt

The network must be one file, saved by torch.export.save, that takes images (B, 3, h, w) in [−1, 1]
and returns logits (B, K, h', w'). B must be free, and h, w too if there is no --size. Its own
normalisation of the input belongs inside it, for example

    class Exportable(nn.Module):            # torchvision's and most published networks
        def __init__(self, network):
            super().__init__()
            self.network = network
        def forward(self, images):
            mean = images.new_tensor([0.485, 0.456, 0.406]).view(3, 1, 1)
            std = images.new_tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
            return self.network(((images + 1) / 2 - mean) / std)["out"]

    batch = torch.export.Dim("batch", max=1024)
    program = torch.export.export(Exportable(network).eval(), (torch.zeros(2, 3, 256, 256),),
                                  dynamic_shapes=({0: batch},))
    torch.export.save(program, "network.pt2")

--classes: a text file. Line k names the data set's class for the network's class k, by name or id,
or says - where the data set has no such class. Without it both have the same classes.
"""

import argparse
import hashlib
import zipfile
from pathlib import Path

import torch
from torch.export.passes import move_to_device_pass

import data
import metrics
import processes
import sample


def load_exported(path, dataset, device="cpu", size=None, classes=None):
    """A network saved by torch.export.save -> metrics.Segmenter. UserError.

    size: what images are resized to for it, (H, W); None: they stay as they are. classes: the file
    that read_table reads.
    """
    path = Path(path)
    if not zipfile.is_zipfile(path):
        raise data.UserError(f"{path}: not a file that torch.export.save wrote")
    try:
        exported = torch.export.load(path)
    except (RuntimeError, AssertionError, LookupError, ValueError) as error:    # another zip file
        raise data.UserError(f"{path}: not a file that torch.export.save wrote") from error
    program = move_to_device_pass(exported, str(device)).module()
    table = list(range(dataset.num_classes))
    if classes is not None:
        table = read_table(classes, dataset)

    def network(images):
        logits = program(images)
        if logits.shape[1] != len(table):
            raise data.UserError(f"{path} knows {logits.shape[1]} classes, not {len(table)}; "
                                 f"--classes FILE, with a line for each, names them")
        return logits
    digits = hashlib.sha256(path.read_bytes()).hexdigest()[:8]
    at = f" at {size[0]}×{size[1]}" if size else ""
    return metrics.Segmenter(network, dataset, table, size, f"{path.name} ({digits}){at}")


def read_table(path, dataset):
    """The data set's id for each class of the network, −1 for "-", as a list. UserError."""
    known = {"-": -1}
    for k, name in enumerate(dataset.class_names):
        known[name], known[str(k)] = k, k
    table = []
    for number, line in enumerate(data.read_lines(path), 1):
        if line not in known:
            raise data.UserError(f"{path}, line {number}: {line!r} is no class of {dataset.name}, "
                                 f"no id below {dataset.num_classes}, and not -")
        table.append(known[line])
    return table


@data.exit_in_words("extras.own_segmenter")
def main(argv=None):
    parser = argparse.ArgumentParser("python -m extras.own_segmenter", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    number = sample.whole_number(1)
    parser.add_argument("network", metavar="FILE.pt2", help="saved by torch.export.save")
    parser.add_argument("--checkpoint", metavar="FILE", help="(default: as for metrics.py)")
    parser.add_argument("--data-root", metavar="DIR", help="(default: as in training)")
    parser.add_argument("--classes", metavar="FILE", help="the dataset's class for each of its own")
    parser.add_argument("--size", type=number, nargs=2, metavar=("H", "W"),
                        help="resize images to this for it (default: as they are)")
    parser.add_argument("--num-images", type=number, metavar="N", help="the first N (default: all)")
    args = parser.parse_args(argv)
    device = processes.start_processes()
    path = sample.find_checkpoint(args.checkpoint)
    checkpoint, _, val_set = metrics.open_run(path, args.data_root)
    segmenter = load_exported(args.network, val_set, device, args.size, args.classes)
    scorer = metrics.Scorer(val_set, None, device, ["miou"], num_images=args.num_images,
                            segmenter=segmenter)
    scores = scorer(sample.build_generator(checkpoint).to(device))
    if processes.rank_and_size()[0] == 0:
        metrics.show(scorer, scores)


if __name__ == "__main__":
    main()
