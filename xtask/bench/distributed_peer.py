"""Training and sampling by several PyTorch processes, for `cargo xtask bench distributed`.

The networks are those of spiking_peer.py (VGG9 by SpikingJelly) and sampling_peer.py (DiT-S/2). Training is DistributedDataParallel on
gloo with its defaults; of a global batch of 64 images each rank takes its part. Sampling has 8 images, which ranks share out four at a
time, between two barriers. Started once a rank, with RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT set.

Rank 0 prints a line of JSON a case: {"name", "ms": [a step, or all 8 images], "threads", "batch": images of all ranks, "sent", "waited":
milliseconds a step in which buckets were on their way, and those of them that backward was over before}.

Example: RANK=0 WORLD_SIZE=1 python xtask/bench/distributed_peer.py --threads 1
"""

import argparse
import json
import os
import time

import torch
import torch.distributed as dist
from torch import nn

import sampling_peer
import spiking_peer

BATCH, IMAGES, AT_ONCE = 64, 8, 4


def part(images, rank, world):
    return (rank + 1) * images // world - rank * images // world


def train(timesteps, options, rank, world):
    torch.manual_seed(0)
    net, _ = spiking_peer.spikingjelly()
    net.train()
    from spikingjelly.activation_based import functional

    model = nn.parallel.DistributedDataParallel(net) if world > 1 else net
    own = part(BATCH, rank, world)
    images, labels = torch.randn(own, 3, spiking_peer.SIDE, spiking_peer.SIDE), torch.randint(spiking_peer.CLASSES, (own,))
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-4, amsgrad=True)
    times = []
    for step in range(options.warmup + options.samples):
        if world > 1:
            dist.barrier()
        start = time.perf_counter()
        optimizer.zero_grad()
        functional.reset_net(net)
        logits = model(images.unsqueeze(0).repeat(timesteps, 1, 1, 1, 1)).sum(0)
        nn.functional.cross_entropy(logits, labels).backward()
        optimizer.step()
        if step >= options.warmup:
            times.append((time.perf_counter() - start) * 1e3)
    line = {"ms": times, "batch": BATCH}
    if world > 1:
        functional.reset_net(net)
        model(images.unsqueeze(0).repeat(timesteps, 1, 1, 1, 1))  # the figures of a step are taken up at the next one
        found = model._get_ddp_logging_data()
        sent, beside = (found[f"avg_backward_{what}_time"] / 1e6 for what in ("comm", "compute_comm_overlap"))
        line |= {"sent": sent, "waited": max(sent - beside, 0.0)}
    return line


def sample(options, rank, world):
    torch.manual_seed(0)
    model = sampling_peer.DiT().eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.02)
    own = part(IMAGES, rank, world)
    x, labels = torch.randn(own, sampling_peer.CHANNELS, sampling_peer.INPUT, sampling_peer.INPUT), torch.arange(own)
    times = []
    for run in range(1 + options.samples):
        if world > 1:
            dist.barrier()
        start = time.perf_counter()
        steps = sampling_peer.STEPS if run else 2
        for some, names in zip(x.split(AT_ONCE), labels.split(AT_ONCE)):
            sampling_peer.sample(model, some, names, steps)
        if world > 1:
            dist.barrier()
        if run:
            times.append((time.perf_counter() - start) * 1e3)
    return {"ms": times, "batch": IMAGES}


def main():
    parser = argparse.ArgumentParser(description="Times training and sampling by several PyTorch processes.")
    parser.add_argument("--threads", type=spiking_peer.positive, default=1)
    parser.add_argument("--samples", type=spiking_peer.positive, default=3)
    parser.add_argument("--warmup", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    if world > 1:
        dist.init_process_group("gloo")
    cases = {
        "vgg9-t1": lambda: train(1, options, rank, world),
        "vgg9-t5": lambda: train(5, options, rank, world),
        "dit-s2": lambda: sample(options, rank, world),
    }
    for name, run in cases.items():
        line = {"name": name, "threads": options.threads, **run()}
        if rank == 0:
            print(json.dumps(line), flush=True)
    if world > 1:
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
