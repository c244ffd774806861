"""Exercise 7: the last G, the moving average, other averages, and whose statistics they use.

    cp -r runs/baseline runs/averages
    for n in 410 420 430 440 450; do
        python train.py --run-dir runs/averages --resume --steps $n --lr-decay 0 --frozen-norm 0 --metrics none
        cp runs/averages/latest.pt runs/averages/step$n.pt
    done
    python course/solutions/07_averages.py runs/averages/latest.pt      # and the step*.pt beside it
"""

import copy

import torch
from common import datasets, make_scorer, open_model, settings_of

import sample
import train


class MeanImage(torch.nn.Module):
    """Several generators that paint the same scene; the answer is the mean of their images."""

    def __init__(self, generators):
        super().__init__()
        self.generators = torch.nn.ModuleList(generators)
        self.noise_dim, self.pixel_noise = generators[0].noise_dim, generators[0].pixel_noise

    def forward(self, labels, noise):
        return torch.stack([G(labels, noise) for G in self.generators]).mean(0)


def last_generator(checkpoint):
    """G as the last step left it, not its average."""
    return sample.build_generator({**checkpoint, "ema": checkpoint["generator"]})


def mean_weights(generators):
    """One generator whose weights are the plain mean of theirs; statistics are not set yet."""
    average = copy.deepcopy(generators[-1])
    for parameter, *those in zip(average.parameters(), *(G.parameters() for G in generators)):
        parameter.copy_(torch.stack(those).mean(0))
    return average


def with_statistics_of(network, other):
    """A copy of the network with the other's buffers: batch norm's means and variances."""
    result = copy.deepcopy(network)
    for buffer, others in zip(result.buffers(), other.buffers()):
        buffer.copy_(others)
    return result


def with_own_statistics(network, label_maps, settings):
    """A copy whose batch-norm statistics come from what it paints itself."""
    result = copy.deepcopy(network)
    train.measure_statistics(result, label_maps, settings)
    return result.eval()


def candidates(checkpoints):
    """All generators to compare, {title: network}. checkpoints: of one run, oldest first."""
    settings = settings_of(checkpoints[-1])
    label_maps = train.first_label_maps(settings, datasets(checkpoints[-1])[0])
    generators = [last_generator(checkpoint) for checkpoint in checkpoints]
    own = [with_own_statistics(G, label_maps, settings) for G in generators]
    average = sample.build_generator(checkpoints[-1])
    mean = with_own_statistics(mean_weights(generators), label_maps, settings)
    return {"G, statistics from training": generators[-1],
            "G, its own statistics": own[-1],
            "EMA, its own statistics": average,
            "EMA, G's from training": with_statistics_of(average, generators[-1]),
            "mean of weights, its own": mean,
            "mean of images": MeanImage(own)}


def main():
    args, latest = open_model(__doc__)
    files = sorted(args.checkpoint.parent.glob("step*.pt"))
    checkpoints = [sample.load_checkpoint(file) for file in files] or [latest]
    scorer = make_scorer(args, checkpoints[-1])
    print(f"G after the steps {', '.join(str(c['step']) for c in checkpoints)}:")
    for title, network in candidates(checkpoints).items():
        scores = scorer(network.eval())
        print(f"{title:28s} miou {scores['miou']:.3f}   fd_segmenter {scores['fd_segmenter']:.2f}")


if __name__ == "__main__":
    main()
