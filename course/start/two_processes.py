"""What exercise 12 needs beside its four gaps: two processes, and their gradients compared."""

import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))    # where oasis.py and the others are

import data  # noqa: E402  (found only now)
import losses  # noqa: E402
import oasis  # noqa: E402
import processes  # noqa: E402
import train  # noqa: E402

BATCH, SIZE = 4, 32
STAGES = ("nothing", "gradients", "and class counts", "and batch norm")


class HandmadeBatchNorm(nn.Module):
    """Batch norm whose mean and variance pass through the function mean_over_processes."""

    def __init__(self, mean_over_processes):
        super().__init__()
        self.mean_over_processes = mean_over_processes

    def forward(self, x):
        mean = self.mean_over_processes(x.mean((0, 2, 3)))                         # (C,)
        centred = x - mean[:, None, None]
        variance = self.mean_over_processes(centred.square().mean((0, 2, 3)))      # (C,)
        return centred * (variance + 1e-5).rsqrt()[:, None, None]


def make_networks(num_classes, mean_over_processes):
    """Small random networks in float64, the same in every process."""
    torch.manual_seed(0)
    G = oasis.Generator(num_classes, noise_dim=8, channels=2, num_blocks=3, spade_hidden=8)
    D = oasis.Discriminator(num_classes, channels=(8, 8, 8))
    for network in (G, D):
        train.scale_weights(network, 1.0)
    for module in list(G.modules()):
        for name, child in module.named_children():
            if isinstance(child, processes.BatchNorm):
                setattr(module, name, HandmadeBatchNorm(mean_over_processes))
    return G.double(), D.double()


def gradients(student, stage, rank=0, size=1):
    """Both networks' gradients of one step, [flat G, flat D]; this process has [rank::size].

    student: the three functions of the exercise. stage: how many of them are used.
    """
    train_set = data.open_dataset("toy", "train", (SIZE, SIZE))
    num_classes = train_set.num_classes
    images, labels = map(torch.stack, zip(*(train_set[i] for i in range(BATCH))))
    random = torch.Generator().manual_seed(0)
    noise = torch.randn(BATCH, 8, generator=random)                     # of the whole batch
    mask = losses.labelmix_mask(labels, num_classes, random)
    images, labels, noise, mask = (x[rank::size] for x in (images, labels, noise, mask))
    counts = losses.count_classes(labels, num_classes)
    if stage >= 2:
        counts = student.exchange_counts(counts)
    weights = losses.class_weights(labels, num_classes, train_set.ignore_label, counts)
    G, D = make_networks(num_classes, student.mean if stage >= 3 else lambda share: share)
    # A learning rate of 0: the step leaves its gradients behind and changes no weight. It exchanges
    # nothing by itself.
    optimizers = [torch.optim.SGD(network.parameters(), lr=0.0) for network in (G, D)]
    train.average_gradients = lambda network: None
    train.training_step(G, D, *optimizers,
                        (images.double(), labels, noise.double(), mask, weights.double()),
                        SimpleNamespace(precision="fp32", lambda_labelmix=10.0))
    flat = []
    for network in (G, D):
        flat.append(torch.cat([p.grad.flatten() for p in network.parameters()]))
    if stage >= 1:
        flat = [student.exchange_gradients(gradient) for gradient in flat]
    return flat


def run_process(rank, rendezvous, student, wanted):
    """One of the two: compares its gradients with those of the whole batch."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=2)
    for stage, name in enumerate(STAGES):
        found = gradients(student, stage, rank, 2)
        errors = [((a - b).norm() / b.norm()).item() for a, b in zip(found, wanted)]
        if rank == 0:
            print(f"{name:20s} G {errors[0]:8.1e}    D {errors[1]:8.1e}", flush=True)
    dist.destroy_process_group()


def compare(exchange_gradients, exchange_counts, mean):
    """Prints how far two processes are from one, with nothing exchanged, then more and more."""
    student = SimpleNamespace(exchange_gradients=exchange_gradients,
                              exchange_counts=exchange_counts, mean=mean)
    wanted = gradients(student, stage=0)                # one process: nobody to exchange with
    print("exchanged            relative error of the gradients")
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(run_process, (f"{folder}/rendezvous", student, wanted), nprocs=2)
