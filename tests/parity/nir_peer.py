"""NIR files and outputs by snnTorch and NIR's own packages, and a check of files that Fewstep wrote.

Written 2026-11-24 with Python 3.11, torch 2.11.0, snntorch 1.0.0, nir 1.0.8, nirtorch 2.6, safetensors 0.8.0, on a CPU.

    python tests/parity/nir_peer.py
        writes the fixtures beside this script (the same versions give the same numbers):
        nir-sequence.nir     a network of snnTorch as `snntorch.export_nir` exports it and `nir.write` writes it: conv, LIF, average pool,
                             conv with stride 2, LIF, flatten, affine, LIF; it ends in neurons, its outputs are spike counts
        nir-residual.nir     made of nodes of the `nir` package: an identity shortcut, a shortcut through a 1x1 convolution, LIF with one
                             leak and threshold a channel, IF, a bias on the read-out
        nir.safetensors      `images` [6, 2, 8, 8]; `sequence/T1`, `sequence/T4`, `residual/T1`, `residual/T4` [6, 5]: outputs summed
                             over T, computed by snnTorch's neurons (hard reset in the same step), the image entering at every step.
                             Rounding has no say in a spike: images that are 2e-5 louder or quieter give the same ones.

    python tests/parity/nir_peer.py FILE.nir FILE.nir.examples.safetensors
        reads what `fewstep export RUN --to nir --examples N` wrote with `nir.read` (type check on), runs it in two ways and prints
        the largest difference to Fewstep's logits and how many images get another class:
        meaning    every node by torch, neurons by the equations in the documentation of fewstep-interchange's module `nir`, with the
                   reset of the metadata: any network
        snntorch   `snntorch.import_nir.import_from_nir` (nirtorch), one image at a time because its Flatten takes the batch along.
                   It takes one threshold a layer and resets hard, so it is asked where that fits, at T > 1 only for LIF: its
                   import of an IF makes a neuron with a leak of 0.9 that can't be run (at T = 1 a LIF stands in, leaks being
                   without effect there)
"""

import json
import pathlib
import sys

import nir
import numpy as np
import snntorch as snn
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from snntorch.export_nir import export_to_nir

HERE = pathlib.Path(__file__).parent
DT = 1e-4
torch.set_num_threads(1)


def leaky(beta, threshold):
    return snn.Leaky(beta=beta, threshold=threshold, init_hidden=True, reset_mechanism="zero", reset_delay=False)


# ------------------------------------------------------------------------------------------------------------- the fixtures


def sequence(g):
    def full(shape, value):
        return torch.full(shape, value)

    conv1, conv2 = torch.nn.Conv2d(2, 4, 3, padding=1), torch.nn.Conv2d(4, 6, 3, stride=2, padding=1, bias=False)
    fc = torch.nn.Linear(24, 5)
    for layer, scale in [(conv1, 0.3), (conv2, 0.5), (fc, 0.5)]:
        layer.weight.data = torch.randn(layer.weight.shape, generator=g) * scale
        if layer.bias is not None:
            layer.bias.data = torch.randn(layer.bias.shape, generator=g) * 0.1
    return torch.nn.Sequential(
        conv1,
        leaky(full((4, 8, 8), 0.875), full((4, 8, 8), 0.5)),
        torch.nn.AvgPool2d((2, 2), (2, 2)),
        conv2,
        leaky(full((6, 2, 2), 0.9), full((6, 2, 2), 0.4)),
        torch.nn.Flatten(),
        fc,
        leaky(full((5,), 0.6), full((5,), 0.45)),
    )


class Residual(torch.nn.Module):
    """conv1 LIF | conv2 + identity LIF, pool | conv3 (stride 2) + 1x1 (stride 2) IF | affine."""

    def __init__(self, g):
        super().__init__()
        shapes = {"conv1": (4, 2, 3, 3), "middle": (4, 4, 3, 3), "conv2": (4, 4, 3, 3), "conv3": (6, 4, 3, 3), "side": (6, 4, 1, 1), "fc": (5, 24)}
        self.w = {k: torch.randn(s, generator=g) * (0.3 if k == "conv1" else 0.45) for k, s in shapes.items()}
        self.b = {k: torch.randn(s[0], generator=g) * 0.1 for k, s in shapes.items()}
        channel = lambda v: torch.tensor(v).view(-1, 1, 1).expand(-1, 8, 8).contiguous()
        self.first = leaky(channel([0.5, 0.75, 0.875, 0.96875]), channel([0.4, 0.5, 0.6, 0.7]))
        self.inner = leaky(torch.full((4, 8, 8), 0.9), torch.full((4, 8, 8), 0.5))
        self.second = leaky(torch.full((4, 8, 8), 0.8), torch.full((4, 8, 8), 0.6))
        self.third = leaky(torch.ones(6, 2, 2), torch.full((6, 2, 2), 0.7))

    def forward(self, x):
        w, b = self.w, self.b
        conv = lambda k, x, **o: F.conv2d(x, w[k], b[k], **o)
        a = self.first(conv("conv1", x, padding=1))
        c = self.inner(conv("middle", a, padding=1))
        c = F.avg_pool2d(self.second(conv("conv2", c, padding=1) + a), 2)
        d = self.third(conv("conv3", c, stride=2, padding=1) + conv("side", c, stride=2))
        return F.linear(d.flatten(1), w["fc"], b["fc"])

    def graph(self):
        def conv(k, side, stride=1, padding=1):
            return nir.Conv2d((side, side), self.w[k].numpy(), stride, padding, 1, 1, self.b[k].numpy())

        def neuron(module):
            beta, threshold = module.beta.detach().numpy(), module.threshold.detach().numpy()
            if (beta == 1).all():
                return nir.IF(r=np.ones_like(threshold), v_threshold=threshold)
            tau = DT / (1 - beta)
            return nir.LIF(tau=tau, r=tau / DT, v_leak=np.zeros_like(beta), v_threshold=threshold)

        nodes = {
            "in": nir.Input(np.array([2, 8, 8])),
            "conv1": conv("conv1", 8),
            "first": neuron(self.first),
            "middle": conv("middle", 8),
            "inner": neuron(self.inner),
            "conv2": conv("conv2", 8),
            "second": neuron(self.second),
            "pool": nir.AvgPool2d(np.array([2, 2]), np.array([2, 2]), np.array([0, 0])),
            "conv3": conv("conv3", 4, stride=2),
            "side": conv("side", 4, stride=2, padding=0),
            "third": neuron(self.third),
            "flat": nir.Flatten({"input": np.array([6, 2, 2])}, 0, -1),
            "fc": nir.Affine(self.w["fc"].numpy(), self.b["fc"].numpy()),
            "out": nir.Output(np.array([5])),
        }
        chain = ["in", "conv1", "first", "middle", "inner", "conv2", "second", "pool", "conv3", "third", "flat", "fc", "out"]
        edges = list(zip(chain, chain[1:])) + [("first", "second"), ("pool", "side"), ("side", "third")]
        return nir.NIRGraph(nodes, edges)


def run(net, x, steps):
    """Outputs summed over T, and every neuron's spikes."""
    neurons = [m for m in net.modules() if isinstance(m, snn.Leaky)]
    seen = []
    hooks = [m.register_forward_hook(lambda _m, _i, out: seen.append(out.detach().float())) for m in neurons]
    for m in neurons:
        m.mem = torch.zeros(0)
    with torch.no_grad():
        total = sum(net(x) for _ in range(steps))
    for hook in hooks:
        hook.remove()
    return total, seen


def robust(net, x):
    """Whether rounding has no say in any spike."""
    _, spikes = run(net, x, 4)
    others = [run(net, x * s, 4)[1] for s in (1 + 2e-5, 1 + 1e-5, 1 - 1e-5, 1 - 2e-5)]
    return all(torch.equal(a, b) for other in others for a, b in zip(spikes, other))


def write_fixtures():
    tensors = {}
    for make, name in [(sequence, "sequence"), (Residual, "residual")]:
        for seed in range(100):
            g = torch.Generator().manual_seed(seed)
            net = make(g)
            x = torch.randn(6, 2, 8, 8, generator=torch.Generator().manual_seed(11))
            if robust(net, x):
                break
        else:
            raise SystemExit("no seed without a potential at its threshold")
        for steps in (1, 4):
            total, spikes = run(net, x, steps)
            tensors[f"{name}/T{steps}"] = total.float().contiguous()
            print(f"{name} T={steps} seed {seed}: spike rates", [round(s.mean().item(), 2) for s in spikes[-8:]])
        for m in net.modules():
            if isinstance(m, snn.Leaky):
                m.reset_mem()
                m.mem = torch.zeros(0)
        graph = export_to_nir(net, x[:1], ignore_dims=[0]) if name == "sequence" else net.graph()
        graph.edges.sort()  # the export's order is that of a set
        nir.write(HERE / f"nir-{name}.nir", graph)
    save_file(tensors | {"images": x}, HERE / "nir.safetensors")


# ------------------------------------------------------------------------------------------------- a file that Fewstep wrote


def by_meaning(graph, images, steps, reset):
    """Node by node in the order of the edges; what enters a node is added."""
    into = {n: [a for a, b in graph.edges if b == n] for n in graph.nodes}
    order, done = [], set()
    while len(order) < len(graph.nodes):
        ready = [n for n in graph.nodes if n not in done and all(a in done for a in into[n])]
        order += ready
        done |= set(ready)
    tensor = lambda v: torch.as_tensor(np.asarray(v), dtype=torch.float32)
    state, total = {}, 0
    for _ in range(steps):
        out = {}
        for name in order:
            node = graph.nodes[name]
            x = images if isinstance(node, nir.Input) else sum(out[a] for a in into[name])
            if isinstance(node, nir.Conv2d):
                x = F.conv2d(x, tensor(node.weight), tensor(node.bias), tuple(map(int, node.stride)), tuple(map(int, node.padding)))
            elif isinstance(node, (nir.Linear, nir.Affine)):
                x = F.linear(x, tensor(node.weight), tensor(node.bias) if isinstance(node, nir.Affine) else None)
            elif isinstance(node, nir.AvgPool2d):
                x = F.avg_pool2d(x, tuple(map(int, node.kernel_size)), tuple(map(int, node.stride)))
            elif isinstance(node, nir.Flatten):
                x = x.flatten(1)
            elif isinstance(node, (nir.IF, nir.LIF)):
                beta = 1.0 if isinstance(node, nir.IF) else torch.as_tensor(1 - DT / np.asarray(node.tau, np.float64)).float()
                threshold = tensor(node.v_threshold)
                m = beta * state.get(name, torch.zeros_like(x)) + x
                x = (m > threshold).float()
                state[name] = {"soft": m - threshold * x, "hard": m * (1 - x), "none": m}[reset]
            out[name] = x
        total = total + x
    return total


def by_snntorch(graph, images, steps):
    from snntorch.import_nir import import_from_nir

    for name, node in graph.nodes.items():
        if steps == 1 and isinstance(node, nir.IF):
            one = np.ones_like(node.v_threshold)
            graph.nodes[name] = nir.LIF(tau=DT * one, r=one, v_leak=0 * one, v_threshold=node.v_threshold)
    rows = []
    for image in images:
        net = import_from_nir(graph)
        state, total = None, 0
        with torch.no_grad():
            for _ in range(steps):
                answer = net(image[None], state) if state is not None else net(image[None])
                out, state = answer if isinstance(answer, tuple) else (answer, state)
                total = total + out
        rows.append(total.flatten())
    return torch.stack(rows)


def check(path, examples):
    graph = nir.read(path)
    text = {k: v.decode() if isinstance(v, bytes) else v for k, v in graph.metadata.items()}
    steps, reset = int(text["timesteps"]), text["reset"]
    have = load_file(examples)
    images, expected = have["images"], have["logits"]
    neurons = [n for n in graph.nodes.values() if isinstance(n, (nir.IF, nir.LIF))]
    kinds = {type(n).__name__ for n in neurons}
    print(f"{path}: {len(graph.nodes)} nodes, neurons {sorted(kinds)}, T={steps}, reset {reset}, surrogate {json.loads(text['surrogate'])['name']}")

    def report(name, found, expected):
        off = (found - expected).abs().max().item()
        other = int((found.argmax(1) != expected.argmax(1)).sum())
        print(f"  {name}: {len(found)} images, largest difference {off:.2e} (logits up to {expected.abs().max():.2f}), another class {other}")

    with torch.no_grad():
        report("meaning", torch.cat([by_meaning(graph, x, steps, reset) for x in images.split(100)]), expected)
    one_threshold = all(np.unique(n.v_threshold).size == 1 for n in neurons)
    if one_threshold and (steps == 1 or (reset == "hard" and kinds == {"LIF"})):
        few = min(100, len(images))
        report("snntorch", by_snntorch(graph, images[:few], steps), expected[:few])


if __name__ == "__main__":
    if len(sys.argv) == 1:
        write_fixtures()
    else:
        check(sys.argv[1], sys.argv[2])
