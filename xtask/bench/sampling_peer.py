"""Sampling with a DiT-S/2 by PyTorch eager, for `cargo xtask bench sampling`.

The model is that of the DiT paper (arXiv 2212.09748) in the layout of its official code, in our own words: sine-cosine
positions, adaLN-Zero, attention by `scaled_dot_product_attention` as timm does it, tanh GELU, classifier-free guidance on the
first three channels over one batch of both halves, DDIM without noise. Weights are random, modulations and last layer included,
because a fresh model's zeros would be cheaper than a trained one's numbers.

Standard output gets one line of JSON a case: {"name", "peer", "ms": [ms of a step, a figure for each run], "threads", "batch"};
the case `product` is a plain product of two 1024 x 1024 matrices, which says what the machine has to give.

Example: python xtask/bench/sampling_peer.py --peer pytorch --threads 2 --samples 3 --warmup 1
"""

import argparse
import json
import math
import sys
import time

import torch
from torch import nn
from torch.nn import functional as F

INPUT, CHANNELS, PATCH, DEPTH, WIDTH, HEADS, CLASSES = 32, 4, 2, 12, 384, 6, 1000
BATCH, STEPS, SCALE, GUIDED, PRODUCT = 8, 6, 1.5, 3, 1024


def modulate(x, shift, scale):
    return x * (1 + scale.unsqueeze(1)) + shift.unsqueeze(1)


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH)
        self.proj = nn.Linear(WIDTH, WIDTH)

    def forward(self, x):
        n, tokens, width = x.shape
        qkv = self.qkv(x).reshape(n, tokens, 3, HEADS, width // HEADS).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)
        x = F.scaled_dot_product_attention(q, k, v)
        return self.proj(x.transpose(1, 2).reshape(n, tokens, width))


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm1 = nn.LayerNorm(WIDTH, elementwise_affine=False, eps=1e-6)
        self.attn = Attention()
        self.norm2 = nn.LayerNorm(WIDTH, elementwise_affine=False, eps=1e-6)
        self.mlp = nn.Sequential(nn.Linear(WIDTH, 4 * WIDTH), nn.GELU(approximate="tanh"), nn.Linear(4 * WIDTH, WIDTH))
        self.modulation = nn.Sequential(nn.SiLU(), nn.Linear(WIDTH, 6 * WIDTH))

    def forward(self, x, condition):
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = self.modulation(condition).chunk(6, dim=1)
        x = x + gate_a.unsqueeze(1) * self.attn(modulate(self.norm1(x), shift_a, scale_a))
        return x + gate_m.unsqueeze(1) * self.mlp(modulate(self.norm2(x), shift_m, scale_m))


class DiT(nn.Module):
    def __init__(self):
        super().__init__()
        grid = INPUT // PATCH
        self.patch = nn.Conv2d(CHANNELS, WIDTH, PATCH, stride=PATCH)
        self.time = nn.Sequential(nn.Linear(256, WIDTH), nn.SiLU(), nn.Linear(WIDTH, WIDTH))
        self.label = nn.Embedding(CLASSES + 1, WIDTH)
        self.blocks = nn.ModuleList(Block() for _ in range(DEPTH))
        self.norm = nn.LayerNorm(WIDTH, elementwise_affine=False, eps=1e-6)
        self.modulation = nn.Sequential(nn.SiLU(), nn.Linear(WIDTH, 2 * WIDTH))
        self.last = nn.Linear(WIDTH, PATCH * PATCH * 2 * CHANNELS)
        rates = 10000.0 ** (-torch.arange(WIDTH // 4) / (WIDTH // 4))
        rows, columns = torch.meshgrid(torch.arange(grid), torch.arange(grid), indexing="ij")
        angles = [place.reshape(-1, 1) * rates for place in (columns, rows)]
        self.register_buffer("position", torch.cat([f(a) for a in angles for f in (torch.sin, torch.cos)], dim=1)[None])

    def forward(self, x, t, y):
        x = self.patch(x).flatten(2).transpose(1, 2) + self.position
        rates = torch.exp(-math.log(10000) * torch.arange(128, dtype=torch.float32) / 128)
        angles = t[:, None].float() * rates
        condition = self.time(torch.cat([angles.cos(), angles.sin()], dim=1)) + self.label(y)
        for block in self.blocks:
            x = block(x, condition)
        shift, scale = self.modulation(condition).chunk(2, dim=1)
        x = self.last(modulate(self.norm(x), shift, scale))
        grid = INPUT // PATCH
        x = x.reshape(x.shape[0], grid, grid, PATCH, PATCH, 2 * CHANNELS)
        return torch.einsum("nhwpqc->nchpwq", x).reshape(x.shape[0], 2 * CHANNELS, INPUT, INPUT)


@torch.no_grad()
def sample(model, x, labels, steps):
    """DDIM with guidance; returns the last latents."""
    kept = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64), 0)
    times = [round(i * 999 / (steps - 1)) for i in range(steps)][::-1]
    both = torch.cat([labels, torch.full_like(labels, CLASSES)])
    for place, t in enumerate(times):
        out = model(torch.cat([x, x]), torch.full((2 * len(x),), t), both)
        with_label, without = out[:, :GUIDED].chunk(2)
        guided = without + SCALE * (with_label - without)
        epsilon = torch.cat([guided, out[: len(x), GUIDED:CHANNELS]], dim=1)
        now, then = kept[t].item(), kept[times[place + 1]].item() if place + 1 < steps else 1.0
        start = (x - math.sqrt(1 - now) * epsilon) / math.sqrt(now)
        x = math.sqrt(then) * start + math.sqrt(1 - then) * epsilon
    return x


def timed(run, samples):
    """Milliseconds of each run."""
    times = []
    for _ in range(samples):
        start = time.perf_counter()
        result = run()
        times.append((time.perf_counter() - start) * 1e3)
    if not torch.isfinite(result).all():
        sys.exit("pytorch: the result is not finite; the measurement is void")
    return times


def positive(text):
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not 1 or more")
    return value


def main():
    parser = argparse.ArgumentParser(
        description="Times sampling with a DiT-S/2 by PyTorch eager.",
        epilog="Example: sampling_peer.py --peer pytorch --threads 2",
    )
    parser.add_argument("--peer", choices=["pytorch"], required=True)
    parser.add_argument("--threads", type=positive, default=torch.get_num_threads())
    parser.add_argument("--samples", type=positive, default=3, help="timed runs")
    parser.add_argument("--warmup", type=int, default=1, help="runs of two steps before the timed ones")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    model = DiT().eval()
    x = torch.randn(BATCH, CHANNELS, INPUT, INPUT)
    labels = torch.arange(BATCH)
    a, b = torch.randn(2, PRODUCT, PRODUCT)

    def report(name, batch, ms):
        line = {"name": name, "peer": options.peer, "ms": ms, "threads": options.threads, "batch": batch}
        print(json.dumps(line), flush=True)

    a @ b
    report("product", 1, timed(lambda: a @ b, 10 * options.samples))
    for _ in range(options.warmup):
        sample(model, x, labels, 2)
    runs = timed(lambda: sample(model, x, labels, STEPS), options.samples)
    report("dit-s2", BATCH, [ms / STEPS for ms in runs])


if __name__ == "__main__":
    main()
