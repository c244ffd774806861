"""Exercise 12: what must two processes exchange to compute one batch's update?

    python course/solutions/12_two_processes.py

Two processes take half a batch each and exchange more and more. After every step their gradients
are compared with those of one process that has the whole batch. All is in float64.
"""

import tempfile
from types import SimpleNamespace

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from common import data, losses, oasis, train
from torch import nn

import processes as several

BATCH, SIZE = 4, 32
EXCHANGES = ([], ["gradients"], ["gradients", "class counts"],
             ["gradients", "class counts", "batch norm"])


def make_networks(num_classes):
    """Small random networks with vivid weights, the same in every process."""
    torch.manual_seed(0)
    G = oasis.Generator(num_classes, noise_dim=8, channels=2, num_blocks=3, spade_hidden=8)
    D = oasis.Discriminator(num_classes, channels=(8, 8, 8))
    for network in (G, D):
        train.scale_weights(network, 1.0)
    return G.double(), D.double()


def forget_the_others(network):
    """Replace processes.BatchNorm, which asks the other processes, by PyTorch's, which does not."""
    for module in network.modules():
        for name, child in module.named_children():
            if isinstance(child, several.BatchNorm):
                setattr(module, name, nn.BatchNorm2d(child.num_features, affine=False).double())


def gradients(exchange, rank=0, processes=1):
    """Both networks' gradients of one step, (flat G, flat D); this process has [rank::processes]."""
    train_set = data.open_dataset("toy", "train", (SIZE, SIZE))
    images, labels = map(torch.stack, zip(*(train_set[i] for i in range(BATCH))))
    random, N = torch.Generator().manual_seed(0), train_set.num_classes
    noise = torch.randn(BATCH, 8, generator=random)                     # of the whole batch
    mask = losses.labelmix_mask(labels, N, random)
    images, labels, noise, mask = (x[rank::processes] for x in (images, labels, noise, mask))
    G, D = make_networks(N)
    if "batch norm" not in exchange:
        forget_the_others(G)
    counts = losses.count_classes(labels, N)
    if "class counts" in exchange:
        dist.all_reduce(counts)                                         # a sum
    weights = losses.class_weights(labels, N, train_set.ignore_label, counts).double()
    batch = images.double(), labels, noise.double(), mask, weights
    # A learning rate of 0: the step leaves its gradients behind and changes no weight.
    optimizers = [torch.optim.SGD(network.parameters(), lr=0.0) for network in (G, D)]
    train.average_gradients = lambda network: None                      # we do that by hand
    train.training_step(G, D, *optimizers, batch, SimpleNamespace(precision="fp32",
                                                                  lambda_labelmix=10.0))
    flat = [torch.cat([p.grad.flatten() for p in network.parameters()]) for network in (G, D)]
    if "gradients" in exchange:
        for gradient in flat:
            dist.all_reduce(gradient)                                   # the sum of both ...
            gradient /= processes                                       # ... and so the mean
    return flat


def process(rank, rendezvous, wanted):
    """One of the two: compares its gradients with those of the whole batch."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=2)
    for exchange in EXCHANGES:
        found = gradients(exchange, rank, 2)
        errors = [((a - b).norm() / b.norm()).item() for a, b in zip(found, wanted)]
        if rank == 0:
            print(f"{', '.join(exchange) or 'nothing':37s} G {errors[0]:8.1e}    D {errors[1]:8.1e}")
    dist.destroy_process_group()


def main():
    N = data.open_dataset("toy", "val", (SIZE, SIZE)).num_classes
    wanted = gradients([])                              # one process: nobody to exchange with
    print("exchanged                             relative error of the gradients")
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(process, (f"{folder}/rendezvous", wanted), nprocs=2)
    G, D = make_networks(N)
    channels = sum(m.num_features for m in G.modules() if isinstance(m, several.BatchNorm))
    print(f"numbers in a message: {len(wanted[0])} + {len(wanted[1])} gradients, {N} counts, "
          f"4 × {channels} for batch norm")


if __name__ == "__main__":
    main()
