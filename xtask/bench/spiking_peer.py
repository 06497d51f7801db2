"""One training step of a spiking VGG9 by SpikingJelly or snnTorch, for `cargo xtask bench spiking`.

Each peer is used as its own documentation does, without batch norm, dropout or compilation:

* spikingjelly 2.0.0: multi-step mode, layer by layer, torch implementation on the CPU (`functional.set_step_mode(net, "m")`;
  the image is repeated T times as in its `conv_fashion_mnist` example), `LIFNode` with soft, detached reset.
* snntorch 1.0.0: a loop over timesteps around `snn.Leaky(init_hidden=True)` with reset by subtraction, as in its
  convolutional tutorial.

The step: forward over T, logits summed over T, cross entropy, backward, Adam (amsgrad, lr 1e-4). Input 32x32x3, batch 32,
3x3 convolutions 64 A 128 256 A 256 512 A 512 A 512 (A: 2x2 average pool), then 1024, 1024, 10; no biases; nothing of the
neurons is learnt. Standard output gets one line of JSON a case: {"name", "peer", "ms", "threads", "batch"}.

Example: python xtask/bench/spiking_peer.py --peer spikingjelly --threads 2 --samples 5 --warmup 2 --case all
"""

import argparse
import json
import sys
import time

import torch
from torch import nn

BATCH, SIDE, CLASSES, HIDDEN = 32, 32, 10, 1024
CONFIG = [64, "A", 128, 256, "A", 256, 512, "A", 512, "A", 512]
LEAK, THRESHOLD = 0.9, 0.5  # with the initial weights below, 4 to 40 % of the neurons of each convolution fire
CASES = {"t1": 1, "t5": 5}


def vgg9(conv, pool, flatten, linear, lif):
    """The modules in order, from the constructors of one library."""
    modules, channels, side = [], 3, SIDE
    for step in CONFIG:
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


def spikingjelly():
    """The network, and its forward pass: image [B, 3, 32, 32] and T to summed logits [B, 10]."""
    from spikingjelly.activation_based import functional, layer, neuron, surrogate

    def lif():
        return neuron.LIFNode(
            tau=1 / (1 - LEAK), decay_input=False, v_threshold=THRESHOLD, v_reset=None,
            surrogate_function=surrogate.ATan(), detach_reset=True,
        )

    net = vgg9(layer.Conv2d, layer.AvgPool2d, layer.Flatten, layer.Linear, lif)
    functional.set_step_mode(net, "m")

    def forward(image, timesteps):
        functional.reset_net(net)
        return net(image.unsqueeze(0).repeat(timesteps, 1, 1, 1, 1)).sum(0)

    return net, forward


def snntorch():
    """As `spikingjelly`."""
    import snntorch
    from snntorch import surrogate, utils

    def lif():
        return snntorch.Leaky(beta=LEAK, threshold=THRESHOLD, spike_grad=surrogate.atan(), init_hidden=True)

    net = vgg9(nn.Conv2d, nn.AvgPool2d, nn.Flatten, nn.Linear, lif)

    def forward(image, timesteps):
        utils.reset(net)
        return sum(net(image) for _ in range(timesteps))

    return net, forward


PEERS = {"spikingjelly": spikingjelly, "snntorch": snntorch}


def measure(peer, timesteps, samples, warmup):
    """Milliseconds of each step after the warm-up."""
    torch.manual_seed(0)
    net, forward = PEERS[peer]()
    net.train()
    image = torch.randn(BATCH, 3, SIDE, SIDE)
    labels = torch.randint(CLASSES, (BATCH,))
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-4, amsgrad=True)
    times = []
    for step in range(warmup + samples):
        start = time.perf_counter()
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(forward(image, timesteps), labels)
        loss.backward()
        optimizer.step()
        if step >= warmup:
            times.append(round((time.perf_counter() - start) * 1e3, 3))
    if not torch.isfinite(loss):
        sys.exit(f"{peer}: the loss is {loss.item()} after {warmup + samples} steps; the measurement is void")
    return times


def positive(text):
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not 1 or more")
    return value


def main():
    parser = argparse.ArgumentParser(
        description="Times a training step of VGG9 by a peer.",
        epilog="Example: spiking_peer.py --peer snntorch --threads 2 --case t1",
    )
    parser.add_argument("--peer", choices=PEERS, required=True)
    parser.add_argument("--threads", type=positive, default=torch.get_num_threads())
    parser.add_argument("--samples", type=positive, default=5, help="timed steps")
    parser.add_argument("--warmup", type=int, default=2, help="steps before the timed ones")
    parser.add_argument("--case", choices=[*CASES, "all"], default="all")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    for case, timesteps in CASES.items():
        if options.case in (case, "all"):
            line = {
                "name": f"vgg9-{case}-b{BATCH}",
                "peer": options.peer,
                "ms": measure(options.peer, timesteps, options.samples, options.warmup),
                "threads": options.threads,
                "batch": BATCH,
            }
            print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
