"""Exercise 12: what must two processes exchange to compute one batch's update?

    python course/solutions/12_two_processes.py

Two processes take half a batch each. Their gradients are compared with those of one process that
has the whole batch, in float64. After the last exchange both agree.
"""

import sys
from pathlib import Path

import torch
import torch.distributed as dist

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "start"))
from two_processes import compare  # noqa: E402  (found only now)


def exchange_gradients(gradient):
    """This process's gradients as one long vector -> what every process should use instead."""
    dist.all_reduce(gradient)                           # the sum ...
    return gradient / dist.get_world_size()             # ... and so the mean


def exchange_counts(counts):
    """The pixels of each class in this process's share, (N,) -> those from which α follows."""
    dist.all_reduce(counts)     # the sum, before α is computed: α is no mean of the shares' α
    return counts


class MeanOverProcesses(torch.autograd.Function):
    """The mean over processes of a share (C,), as batch norm needs it, for autograd."""

    @staticmethod
    def forward(ctx, share):
        mean = share.clone()
        dist.all_reduce(mean)
        return mean / dist.get_world_size()

    @staticmethod
    def backward(ctx, gradient):
        """gradient: of this process's loss by the mean -> of the sum of all losses by this process's
        share. Each share is 1/n of the mean: so the sum, over all n processes, of what reaches the
        mean, divided by n.
        """
        total = gradient.clone()
        dist.all_reduce(total)
        return total / dist.get_world_size()


def mean(share):
    return MeanOverProcesses.apply(share)


if __name__ == "__main__":
    compare(exchange_gradients, exchange_counts, mean)
