"""One training step of a spiking VGG9 or VGG16 by SpikingJelly or snnTorch, for `cargo xtask bench spiking`.

Each peer is used as its own documentation does, without batch norm, dropout or compilation:

* spikingjelly 2.0.0: multi-step mode, layer by layer, torch implementation on the CPU (`functional.set_step_mode(net, "m")`;
  the image is repeated T times as in its `conv_fashion_mnist` example), `LIFNode` with soft, detached reset. On a GPU it has several
  implementations of the neuron (SJ_LIF_CUDA_IMPLEMENTATION); each that runs is timed in a process of its own, and the fastest counts.
* snntorch 1.0.0: a loop over timesteps around `snn.Leaky(init_hidden=True)` with reset by subtraction, as in its
  convolutional tutorial.

TF32 is off unless --precision says otherwise; bfloat16 is autocast. The step: forward over T, logits summed over T, cross entropy, backward, Adam (amsgrad, lr 1e-4). Input 32x32x3, batch 32,
3x3 convolutions as CONFIGS says (A: 2x2 average pool), then 1024, 1024, 10; no biases; nothing of the
neurons is learnt. Standard output gets one line of JSON a case: {"name", "peer", "ms", "threads", "batch"}, on a GPU "implementation" and
"peak_memory_gib" as well.

Example: python xtask/bench/spiking_peer.py --peer spikingjelly --threads 2 --samples 5 --warmup 2 --case all
On a GPU: python xtask/bench/spiking_peer.py --peer spikingjelly --device cuda:0 --samples 20 --warmup 5
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time

import torch
from torch import nn

import sampling_peer
from sampling_peer import positive, wait

BATCH, SIDE, CLASSES, HIDDEN = 32, 32, 10, 1024
CONFIGS = {
    "vgg9": [64, "A", 128, 256, "A", 256, 512, "A", 512, "A", 512],
    "vgg16": [64, 64, "A", 128, 128, "A", 256, 256, 256, "A", 512, 512, 512, "A", 512, 512, 512],
}
LEAK, THRESHOLD = 0.9, 0.5  # with the initial weights below, 4 to 40 % of the neurons of each convolution fire
CASES = {"t1": 1, "t5": 5}
IMPLEMENTATION = "SJ_LIF_CUDA_IMPLEMENTATION"


def vgg(config, conv, pool, flatten, linear, lif):
    """The modules in order, from the constructors of one library."""
    modules, channels, side = [], 3, SIDE
    for step in config:
        if step == "A":
            modules.append(pool(2, 2))
            side //= 2
        else:
            modules += [conv(channels, step, 3, padding=1, bias=False), lif()]
            channels = step
    modules.append(flatten())
    width = channels * side * side
    for _ in range(2):
        modules += [linear(width, HIDDEN, bias=False), lif()]
        width = HIDDEN
    modules.append(linear(width, CLASSES, bias=False))
    net = nn.Sequential(*modules)
    for module in net.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            nn.init.kaiming_normal_(module.weight)
    return net


def spikingjelly(config):
    """The network, and its forward pass: image [B, 3, 32, 32] and T to summed logits [B, 10]."""
    from spikingjelly.activation_based import functional, layer, neuron, surrogate

    def lif():
        return neuron.LIFNode(
            tau=1 / (1 - LEAK), decay_input=False, v_threshold=THRESHOLD, v_reset=None,
            surrogate_function=surrogate.ATan(), detach_reset=True,
        )

    net = vgg(config, layer.Conv2d, layer.AvgPool2d, layer.Flatten, layer.Linear, lif)
    functional.set_step_mode(net, "m")

    def forward(image, timesteps):
        functional.reset_net(net)
        return net(image.unsqueeze(0).repeat(timesteps, 1, 1, 1, 1)).sum(0)

    return net, forward


def snntorch(config):
    """As `spikingjelly`."""
    import snntorch
    from snntorch import surrogate, utils

    def lif():
        return snntorch.Leaky(beta=LEAK, threshold=THRESHOLD, spike_grad=surrogate.atan(), init_hidden=True)

    net = vgg(config, nn.Conv2d, nn.AvgPool2d, nn.Flatten, nn.Linear, lif)

    def forward(image, timesteps):
        utils.reset(net)
        return sum(net(image) for _ in range(timesteps))

    return net, forward


PEERS = {"spikingjelly": spikingjelly, "snntorch": snntorch}


def measure(options, timesteps):
    """Milliseconds of each step after the warm-up."""
    torch.manual_seed(0)
    device = options.device
    net, forward = PEERS[options.peer](CONFIGS[options.network])
    net.train().to(device)
    image = torch.randn(BATCH, 3, SIDE, SIDE).to(device)
    labels = torch.randint(CLASSES, (BATCH,)).to(device)
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-4, amsgrad=True)
    autocast = torch.autocast(device.type, torch.bfloat16, enabled=options.precision == "bfloat16")
    times = []
    for step in range(options.warmup + options.samples):
        wait(device)
        start = time.perf_counter()
        optimizer.zero_grad()
        with autocast:
            logits = forward(image, timesteps)
        loss = nn.functional.cross_entropy(logits.float(), labels)
        loss.backward()
        optimizer.step()
        wait(device)
        if step >= options.warmup:
            times.append(round((time.perf_counter() - start) * 1e3, 3))
    if not torch.isfinite(loss):
        sys.exit(f"{options.peer}: the loss is {loss.item()} after {options.warmup + options.samples} steps; the measurement is void")
    return times


def fastest(words, cases, known=("cuda", "triton", "torch")):
    """Lines of the implementation that is fastest in each case, each timed by this script in a process of its own."""
    best = {}
    for name in known:
        own = {**os.environ, IMPLEMENTATION: name}
        done = subprocess.run([sys.executable, __file__, *words], env=own, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        if done.returncode:
            said = (done.stderr.strip().splitlines() or ["no word"])[-1]
            print(f"spikingjelly: {name} does not run here: {said}", file=sys.stderr)
            continue
        for line in map(json.loads, filter(lambda line: line.startswith("{"), done.stdout.splitlines())):
            line["implementation"] = name
            print(f"spikingjelly: {name}: {line['name']} {statistics.median(line['ms']):.3f} ms", file=sys.stderr)
            other = best.get(line["name"])
            if other is None or statistics.median(line["ms"]) < statistics.median(other["ms"]):
                best[line["name"]] = line
    if len(best) < len(cases):
        sys.exit("spikingjelly: no implementation runs here")
    return best.values()


def main():
    parser = argparse.ArgumentParser(
        description="Times a training step of VGG9 or VGG16 by a peer.",
        epilog="Example: spiking_peer.py --peer snntorch --threads 2 --case t1",
    )
    parser.add_argument("--peer", choices=PEERS, required=True)
    sampling_peer.arguments(parser, 5)
    parser.add_argument("--network", choices=CONFIGS, default="vgg9")
    parser.add_argument("--case", choices=[*CASES, "all"], default="all")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    sampling_peer.set_precision(options.precision)
    cases = {case: timesteps for case, timesteps in CASES.items() if options.case in (case, "all")}
    if options.peer == "spikingjelly" and options.device.type == "cuda" and IMPLEMENTATION not in os.environ:
        for line in fastest(sys.argv[1:], cases):
            print(json.dumps(line), flush=True)
        return
    for case, timesteps in cases.items():
        line = {
            "name": f"{options.network}-{case}-b{BATCH}",
            "peer": options.peer,
            "ms": measure(options, timesteps),
            "threads": options.threads,
            "batch": BATCH,
        }
        if options.device.type == "cuda":
            line["peak_memory_gib"] = torch.cuda.max_memory_allocated(options.device) / 2**30
        print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
