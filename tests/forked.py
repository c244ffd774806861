"""Runs of train.py in forked processes, for the tests: torch is imported once, not once per process.

    python tests/forked.py train 2 --run-dir RUN -- 3 --run-dir RUN --resume    # one after the other
    python tests/forked.py shares OUT                  # gradients, weights, scores in 1, 2, 3 processes

Forking is safe here because this program has one thread and computes nothing before it forks.
"""

import os
import socket
import sys
import traceback
from pathlib import Path

os.environ.update(OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1")
ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import hashlib                                  # noqa: E402  (the lines above must come first)

import torch                                    # noqa: E402
import torch.distributed as dist                # noqa: E402

import data                                     # noqa: E402
import metrics                                  # noqa: E402
import processes                                # noqa: E402
import settings                                 # noqa: E402
import train                                    # noqa: E402


def fork(function, *arguments, **environment):
    """Run function(*arguments) in a child of this process; returns its process id."""
    sys.stdout.flush()
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        os.environ.update(environment)
        function(*arguments)
        code = 0
    except SystemExit as e:
        code = e.code
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def run_in(world_size, function, *arguments):
    """The function in so many processes with torchrun's variables; returns their exit codes."""
    if world_size == 1:
        pids = [fork(function, *arguments)]
    else:
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        pids = [fork(function, *arguments, RANK=str(rank), LOCAL_RANK=str(rank),
                     WORLD_SIZE=str(world_size), LOCAL_WORLD_SIZE=str(world_size),
                     MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port)) for rank in range(world_size)]
    return [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]


# ---- What each share of a batch leads to -----------------------------------------------------------


def take_step(s, networks, state, scenes, rank, world_size, number):
    """One training step on this process's share of the batch of that number; the four terms."""
    real, labels = next(train.training_batches(s, scenes, rank, world_size, number - 1))
    noise, mask, weights = train.draw(s, number, labels, scenes, rank, world_size)
    kind = next(state.G.parameters()).dtype
    return train.training_step(*networks, state.D, state.optimizer_G, state.optimizer_D, real.to(kind), labels,
                               noise.to(kind), mask, weights, s.lambda_labelmix)


def digest(network):
    """One number that stands for all weights of a network, to the last bit."""
    return hashlib.sha256(b"".join(p.detach().numpy().tobytes() for p in network.parameters())).hexdigest()


def shares(out):
    """Writes OUT/WORLD.pt: gradients and losses of one step, digests of all ranks' weights, scores."""
    rank, world_size, device = processes.start_processes()
    s = settings.Settings(**{**settings.PRESETS["toy"], "height": 16, "width": 16, "channels": 2, "num_blocks": 2,
                          "spade_hidden": 4, "d_channels": (4, 8), "batch_size": 6})
    scenes, val = (data.open_dataset("toy", split, (16, 16), num_images=13) for split in ("train", "val"))
    # In double precision only a wrong formula makes a difference. Plain gradient descent: Adam's first
    # step is the gradient's sign, which makes much of a rounding error near zero.
    state = train.State(s, scenes.num_classes, device)
    state.G.double(), state.D.double()
    state.optimizer_G, state.optimizer_D = (torch.optim.SGD(n.parameters(), 1e-3) for n in (state.G, state.D))
    networks = train.spread(state, world_size, device)
    for layer in state.G.modules():                     # the one layer that sees a share only
        if isinstance(layer, torch.nn.BatchNorm2d):
            layer.eval()
    terms = torch.stack(list(take_step(s, networks, state, scenes, rank, world_size, 1).values()))
    if world_size > 1:
        dist.all_reduce(terms)
    found = {"terms": terms / world_size, "digests": [],
             "gradients": [p.grad.clone() for n in (state.D, state.G) for p in n.parameters()]}

    state = train.State(s, scenes.num_classes, device)                     # now as a run does it
    networks = train.spread(state, world_size, device)
    if world_size > 1:
        for number in range(1, 4):
            take_step(s, networks, state, scenes, rank, world_size, number)
        for network in (state.G, state.D):
            found["digests"].append([None] * world_size)
            dist.all_gather_object(found["digests"][-1], digest(network))

    state = train.State(s, scenes.num_classes, device)      # every process scores the same generator
    train.refresh_ema(state.ema, state.G, train.first_label_maps(s, scenes, 2), 0)
    scorer = metrics.Scorer(val, scenes, device, ["miou", "fd_segmenter", "d_miou", "colour"], None, None,
                            out, segmenter_steps=2)
    found["scores"] = scorer(state.ema, state.D)
    if rank == 0:
        torch.save(found, out / f"{world_size}.pt")
    if dist.is_initialized():
        dist.destroy_process_group()


def main(command, *arguments):
    """Exit code: the largest that the processes, or those of the last training, ended with."""
    if command == "train":
        while arguments:
            end = arguments.index("--") if "--" in arguments else len(arguments)
            code = max(run_in(int(arguments[0]), train.main, arguments[1:end]))
            arguments = arguments[end + 1:]
        return code
    return max(max(run_in(world_size, shares, Path(arguments[0]))) for world_size in (1, 2, 3))


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
