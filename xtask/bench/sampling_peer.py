"""Sampling with a DiT by PyTorch, eager or compiled, for `cargo xtask bench sampling` and `dit-xl`.

The model is that of the DiT paper (arXiv 2212.09748) in the layout of its official code, in our own words: sine-cosine
positions, adaLN-Zero, attention by `scaled_dot_product_attention` as timm does it, tanh GELU, classifier-free guidance on the
first three channels over one batch of both halves, DDIM without noise. Weights are random, modulations and last layer included,
because a fresh model's zeros would be cheaper than a trained one's numbers.

Without --steps a DiT-S/2 samples 8 latents of 4 x 32 x 32 in 6 steps; with it a DiT of any published size as many as --batch says, for
every --resolution and every number of --steps. The peers: `pytorch` is eager, `pytorch-compile` is torch.compile as it is,
`pytorch-compile-graphs` torch.compile with CUDA graphs (mode reduce-overhead). TF32 is off unless --precision says otherwise.

Standard output gets one line of JSON a case: {"name", "peer", "ms": [ms of a step, a figure for each run], "threads", "batch"}, on a GPU
"peak_memory_gib" as well; the case `product` is a plain product of two 1024 x 1024 matrices, which says what the machine has to give.

Example: python xtask/bench/sampling_peer.py --peer pytorch --threads 2 --samples 3 --warmup 1
On a GPU: python xtask/bench/sampling_peer.py --peer pytorch-compile --device cuda:0 --steps 20 --steps 50 --resolution 256 --resolution 512
"""

import argparse
import json
import math
import sys
import time

import torch
from torch import nn
from torch.nn import functional as F

INPUT, CHANNELS, PATCH, CLASSES = 32, 4, 2, 1000
SIZES = {"S": (12, 384, 6), "B": (12, 768, 12), "L": (24, 1024, 16), "XL": (28, 1152, 16)}  # depth, width, heads
MODES = {"pytorch": None, "pytorch-compile": "default", "pytorch-compile-graphs": "reduce-overhead"}
DTYPES = {"float32": torch.float32, "tf32": torch.float32, "bfloat16": torch.bfloat16}
BATCH, STEPS, SCALE, GUIDED, PRODUCT = 8, 6, 1.5, 3, 1024


def modulate(x, shift, scale):
    return x * (1 + scale.unsqueeze(1)) + shift.unsqueeze(1)


class Attention(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x):
        n, tokens, width = x.shape
        qkv = self.qkv(x).reshape(n, tokens, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)
        x = F.scaled_dot_product_attention(q, k, v)
        return self.proj(x.transpose(1, 2).reshape(n, tokens, width))


class Block(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.norm1 = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.attn = Attention(width, heads)
        self.norm2 = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(approximate="tanh"), nn.Linear(4 * width, width))
        self.modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))

    def forward(self, x, condition):
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = self.modulation(condition).chunk(6, dim=1)
        x = x + gate_a.unsqueeze(1) * self.attn(modulate(self.norm1(x), shift_a, scale_a))
        return x + gate_m.unsqueeze(1) * self.mlp(modulate(self.norm2(x), shift_m, scale_m))


class DiT(nn.Module):
    """Latents [N, 4, size, size], timesteps [N] and labels [N] to [N, 8, size, size]."""

    def __init__(self, name="S/2", size=INPUT):
        super().__init__()
        letters, patch = name.split("/")
        depth, width, heads = SIZES[letters]
        self.size, self.side, grid = size, int(patch), size // int(patch)
        self.patch = nn.Conv2d(CHANNELS, width, self.side, stride=self.side)
        self.time = nn.Sequential(nn.Linear(256, width), nn.SiLU(), nn.Linear(width, width))
        self.label = nn.Embedding(CLASSES + 1, width)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 2 * width))
        self.last = nn.Linear(width, self.side * self.side * 2 * CHANNELS)
        rates = 10000.0 ** (-torch.arange(width // 4) / (width // 4))
        rows, columns = torch.meshgrid(torch.arange(grid), torch.arange(grid), indexing="ij")
        angles = [place.reshape(-1, 1) * rates for place in (columns, rows)]
        self.register_buffer("position", torch.cat([f(a) for a in angles for f in (torch.sin, torch.cos)], dim=1)[None])
        self.register_buffer("rates", torch.exp(-math.log(10000) * torch.arange(128, dtype=torch.float32) / 128))

    def forward(self, x, t, y):
        dtype = self.last.weight.dtype
        x = self.patch(x.to(dtype)).flatten(2).transpose(1, 2) + self.position
        angles = t[:, None].float() * self.rates.float()
        condition = self.time(torch.cat([angles.cos(), angles.sin()], dim=1).to(dtype)) + self.label(y)
        for block in self.blocks:
            x = block(x, condition)
        shift, scale = self.modulation(condition).chunk(2, dim=1)
        x = self.last(modulate(self.norm(x), shift, scale))
        grid = self.size // self.side
        x = x.reshape(x.shape[0], grid, grid, self.side, self.side, 2 * CHANNELS)
        return torch.einsum("nhwpqc->nchpwq", x).reshape(x.shape[0], 2 * CHANNELS, self.size, self.size).float()


@torch.no_grad()
def sample(model, x, labels, steps):
    """DDIM with guidance; returns the last latents."""
    kept = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64), 0)
    times = [round(i * 999 / (steps - 1)) for i in range(steps)][::-1]
    both = torch.cat([labels, torch.full_like(labels, CLASSES)])
    for place, t in enumerate(times):
        torch.compiler.cudagraph_mark_step_begin()  # what a graph gave in the last step is not needed any more
        out = model(torch.cat([x, x]), torch.full((2 * len(x),), t, device=x.device), both)
        with_label, without = out[:, :GUIDED].chunk(2)
        guided = without + SCALE * (with_label - without)
        epsilon = torch.cat([guided, out[: len(x), GUIDED:CHANNELS]], dim=1)
        now, then = kept[t].item(), kept[times[place + 1]].item() if place + 1 < steps else 1.0
        start = (x - math.sqrt(1 - now) * epsilon) / math.sqrt(now)
        x = math.sqrt(then) * start + math.sqrt(1 - then) * epsilon
    return x


def wait(device):
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def timed(run, samples, device=torch.device("cpu")):
    """Milliseconds of each run."""
    times = []
    for _ in range(samples):
        wait(device)
        start = time.perf_counter()
        result = run()
        wait(device)
        times.append((time.perf_counter() - start) * 1e3)
    if not torch.isfinite(result).all():
        sys.exit("pytorch: the result is not finite; the measurement is void")
    return times


def positive(text):
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not 1 or more")
    return value


def set_precision(name):
    """TF32 for products and convolutions or not; bfloat16 is the caller's."""
    torch.backends.cuda.matmul.allow_tf32 = name == "tf32"
    torch.backends.cudnn.allow_tf32 = name == "tf32"


def arguments(parser, default_samples):
    """What all peers' scripts are told."""
    parser.add_argument("--threads", type=positive, default=torch.get_num_threads())
    parser.add_argument("--samples", type=positive, default=default_samples, help="timed steps or runs")
    parser.add_argument("--warmup", type=int, default=1, help="steps before the timed ones, or runs")
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"), help="cpu, cuda or cuda:N")
    parser.add_argument("--precision", choices=DTYPES, default="float32", help="on both sides of a comparison the same")


def main():
    parser = argparse.ArgumentParser(
        description="Times sampling with a DiT by PyTorch, eager or compiled.",
        epilog="Example: sampling_peer.py --peer pytorch --threads 2",
    )
    parser.add_argument("--peer", choices=MODES, required=True)
    arguments(parser, 3)
    parser.add_argument("--model", default="XL/2", help="with --steps: S, B, L or XL, with /2, /4 or /8")
    parser.add_argument("--steps", type=positive, action="append", help="steps of a run; may be repeated")
    parser.add_argument("--resolution", type=positive, action="append", help="with --steps: pixels a side [256]; may be repeated")
    parser.add_argument("--batch", type=positive, default=BATCH, help="with --steps: images at once")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    set_precision(options.precision)
    device = options.device

    def report(name, batch, ms, **more):
        line = {"name": name, "peer": options.peer, "ms": ms, "threads": options.threads, "batch": batch, **more}
        print(json.dumps(line), flush=True)

    def case(name, model, batch, steps, size):
        """Runs with the same latents and labels in every case of a size."""
        x, labels = torch.randn(batch, CHANNELS, size, size).to(device), (torch.arange(batch) % CLASSES).to(device)
        for _ in range(options.warmup):
            sample(model, x, labels, 2)
        if MODES[options.peer] == "reduce-overhead":
            for _ in range(3):  # it records its graphs in the first runs
                sample(model, x, labels, 2)
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        runs = timed(lambda: sample(model, x, labels, steps), options.samples, device)
        more = {}
        if device.type == "cuda":
            more["peak_memory_gib"] = torch.cuda.max_memory_allocated(device) / 2**30
        report(name, batch, [ms / steps for ms in runs], **more)

    def build(name, size):
        model = DiT(name, size).eval().to(device, DTYPES[options.precision])
        return model if MODES[options.peer] is None else torch.compile(model, mode=MODES[options.peer], dynamic=False)

    if not options.steps:
        a, b = torch.randn(2, PRODUCT, PRODUCT).to(device)
        a @ b
        report("product", 1, timed(lambda: a @ b, 10 * options.samples, device))
        case("dit-s2", build("S/2", INPUT), BATCH, STEPS, INPUT)
        return
    for resolution in options.resolution or [256]:
        size = resolution // 8
        model = build(options.model, size)
        for steps in options.steps:
            shape = options.model.lower().replace("/", "")
            case(f"dit-{shape}-{resolution}-s{steps}-b{options.batch}", model, options.batch, steps, size)


if __name__ == "__main__":
    main()
