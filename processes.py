"""Several processes, one GPU each, compute the update that one process would compute.

torchrun starts one process per GPU. Each takes an equal share of every batch, and

  1. batch norm takes the mean and the variance of the whole batch (BatchNorm);
  2. gradients are averaged after backward() (average_gradients): every loss is a mean over images,
     so the mean of the shares' gradients is the gradient of the whole batch;
  3. noise, LabelMix coins and class weights are those of the whole batch (train.prepare_batch).

With one process all of this does nothing, and BatchNorm is nn.BatchNorm2d.
"""

import os
import signal
import sys
from contextlib import contextmanager
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn


def start_processes():
    """Join the processes that torchrun has started, if it has. Returns this process's device."""
    local_rank = int(os.environ.get("LOCAL_RANK", 0))
    local_processes = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    gpus = torch.cuda.device_count()
    if gpus and local_processes > gpus:
        print(f"{local_processes} processes need a GPU each, this machine has {gpus}",
              file=sys.stderr)
        sys.exit(2)
    if gpus:
        torch.cuda.set_device(local_rank)
    if "RANK" in os.environ:
        of_gpus = "nccl" if dist.is_nccl_available() else "gloo"        # Windows has no NCCL
        dist.init_process_group(f"cpu:gloo,cuda:{of_gpus}" if gpus else "gloo")
    return torch.device("cuda", local_rank) if gpus else torch.device("cpu")


def fast_precision():
    """bf16 on a processor that computes in it, else fp32. A GPU is fast enough with fp32.

    Other processors emulate bfloat16, ten times slower than float32.
    """
    about = Path("/proc/cpuinfo")                   # Linux only; elsewhere fp32
    if torch.cuda.is_available() or not about.exists():
        return "fp32"
    abilities = about.read_text().split()
    return "bf16" if {"avx512_bf16", "amx_bf16"} & set(abilities) else "fp32"


def rank_and_size():
    """(number of this process, number of processes); (0, 1) where there is only one."""
    if dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


def gather(value):
    """This value as every process has it, in a list. A tensor must be on the CPU."""
    values = [value] * rank_and_size()[1]
    if dist.is_initialized():
        dist.all_gather_object(values, value)
    return values


def mean_over_processes(tensor):
    """Replace a tensor by its mean over all processes. Returns the tensor."""
    if dist.is_initialized():
        dist.all_reduce(tensor)
        tensor /= dist.get_world_size()
    return tensor


@torch.no_grad()
def average_gradients(network):
    """Replace every gradient by its mean over all processes. Call it after backward()."""
    if rank_and_size()[1] == 1:
        return
    gradients = [p.grad for p in network.parameters() if p.grad is not None]
    # One long message is faster than many short ones.
    flat = mean_over_processes(torch.cat([gradient.flatten() for gradient in gradients]))
    start = 0
    for gradient in gradients:
        gradient.copy_(flat[start:start + gradient.numel()].view_as(gradient))
        start += gradient.numel()


@contextmanager
def catch_signals():
    """Yields a list that gets an entry at Ctrl-C or SIGTERM: the loop ends after its step."""
    caught = []
    before = {}
    for number in (signal.SIGINT, signal.SIGTERM):
        before[number] = signal.signal(number, lambda number, frame: caught.append(number))
    try:
        yield caught
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def any_stop(signals):
    """Was any process told to stop? All of them get the same answer, and stop together."""
    return any(gather(bool(signals)))


# ---- Batch norm over the batch of all processes --------------------------------------------------


class MeanOverProcesses(torch.autograd.Function):
    """mean_over_processes for autograd. The gradient of a mean over processes is such a mean, too:

    each of the n processes receives the mean and each contributes 1/n of it. So the gradient of a
    contribution is the sum, over all processes, of what reaches the mean there, divided by n.
    """

    @staticmethod
    def forward(ctx, share):
        return mean_over_processes(share.clone())

    @staticmethod
    def backward(ctx, gradient):
        return mean_over_processes(gradient.clone())


class BatchNorm(nn.BatchNorm2d):
    """nn.BatchNorm2d without scale and shift, over the batch of all processes together.

    Every process has an equal share. The buffers are those of nn.BatchNorm2d, until measure_anew.
    """

    def __init__(self, features):
        super().__init__(features, affine=False)

    def measure_anew(self):
        """Forget the statistics. From now on, keep those of all batches seen, taken as one batch.

        nn.BatchNorm2d with momentum None would average the variances of the batches, and so leave
        out how much their means differ.
        """
        self.reset_running_stats()
        self.momentum = None

    def forward(self, x):
        """x (B, C, h, w) -> the same shape; in eval mode by the statistics kept in training."""
        if not self.training or (rank_and_size()[1] == 1 and self.momentum is not None):
            return super().forward(x)
        # Sums over many pixels need more digits than bfloat16 has.
        wide = x.to(self.running_mean.dtype)
        mean = MeanOverProcesses.apply(wide.mean((0, 2, 3)))                               # (C,)
        centred = wide - mean[:, None, None]                                         # (B, C, h, w)
        variance = MeanOverProcesses.apply(centred.square().mean((0, 2, 3)))               # (C,)
        self.update_statistics(mean, variance, x.numel() // x.shape[1] * rank_and_size()[1])
        return (centred * (variance + self.eps).rsqrt()[:, None, None]).to(x.dtype)

    @torch.no_grad()
    def update_statistics(self, mean, variance, count):
        """Move the running statistics towards those of a batch with `count` values per channel."""
        self.num_batches_tracked += 1
        weight = self.momentum or 1 / self.num_batches_tracked
        shift = mean - self.running_mean
        self.running_mean += weight * shift
        unbiased = variance * count / max(count - 1, 1)
        self.running_var += weight * (unbiased - self.running_var)
        if self.momentum is None:           # all batches as one: add the variance of their means
            self.running_var += weight * (1 - weight) * shift ** 2
