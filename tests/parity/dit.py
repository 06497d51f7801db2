"""Reference values for Fewstep's DiT: one set of random weights under the conventions of both public implementations.

Written 2026-11-23 with Python 3.11, torch 2.11.0, timm 1.0, diffusers 0.42, on a CPU; 5 seconds. From the
repository root:

    python tests/parity/dit.py

writes tests/parity/dit.safetensors. Nothing in it comes from Fewstep. `official` is the model of facebookresearch/DiT in our
own words on timm's PatchEmbed, Attention and Mlp; `diffusers` is diffusers' DiTTransformer2DModel itself, with the same
weights renamed (`to_diffusers`). Sizes: depth 2, width 32, 2 heads, patch 2, 4 channels, 8x8, 10 classes (null = 10),
learned sigma (8 output channels). float32; a float64 run differs by at most `deviation` of the largest element (metadata).

| tensor | shape | |
| --- | --- | --- |
| `model/<key>` | | weights under the official keys, `pos_embed` included |
| `input/x`, `input/labels` | [3,4,8,8], [3] int64 | three samples; labels 3, 10 (null), 7 |
| `official/forward/t=<t>` | [3,8,8,8] | t of all three samples: 0, 1, 500, 999 |
| `official/forward/mixed` | [3,8,8,8] | t = 999, 0, 500 of the three samples |
| `official/cfg/t=500` | [4,8,8,8] | guidance 4.0 on the first 3 channels |
| `diffusers/forward/t=<t>` | [3,8,8,8] | t = 0, 1, 500, 999 |
| `diffusers/cfg/t=500` | [4,8,8,8] | guidance 4.0 on all 4 latent channels, as DiTPipeline does it |
| `diffusers-eps-0.01/forward/t=<t>` | [3,8,8,8] | config norm_eps 0.01, to make visible which norms it reaches; t = 500 |

`cfg`: the latents are the first two of `input/x` under labels 3 and 7, then the same latents under the null class; rows 0, 1
of the output belong to the labels, rows 2, 3 to the null class. The guided channels are the same in both halves, the others
(official: 3..7, diffusers: 4..7) are each half's own.

Conventions (also in the metadata, per output):
  official   frequencies exp(-ln(10000) i / 128), i < 128, cosines before sines; every LayerNorm eps 1e-6
  diffusers  frequencies exp(-ln(10000) i / 127); norm1 and the last norm eps 1e-6, norm before the MLP eps norm_eps (1e-5)
Both: biases everywhere, tanh GELU, no affine norms, no q/k norm; positions w first.

The slow test's fixture, never committed:

    python tests/parity/dit.py --xl OUT.safetensors [--seed N]

makes a DiT-XL/2 for 256x256 (675 M parameters, every weight and bias N(0, 0.02) but pos_embed) and writes its plain state
dict as OUT.pt (2.7 GB, torch's zip format) and to OUT.safetensors `input/x` [2,4,32,32], `input/t` [2] int64 (999, 500),
`input/labels` [2] int64 (207, 1000 = null) and `official/forward` [2,8,32,32]. About a minute on two cores, 6 GB of memory.

The metadata key `fewstep` is JSON: versions, seed, sizes, conventions, `deviation`, and `diffusers_keys`, every key of
diffusers' state dict with its shape.
"""

import argparse
import json
import math
import pathlib

import diffusers
import timm
import torch
import torch.nn as nn
from safetensors.torch import save_file
from timm.layers import Mlp, PatchEmbed
from timm.models.vision_transformer import Attention

OUT = pathlib.Path(__file__).with_suffix(".safetensors")
DATE, SEED, SCALE = "2026-11-23", 3, 4.0
TINY = dict(size=8, patch=2, channels=4, width=32, depth=2, heads=2, classes=10)
XL2 = dict(size=32, patch=2, channels=4, width=1152, depth=28, heads=16, classes=1000)

# ------------------------------------------------------------------------------------------------------- the official DiT


def norm(width):
    return nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)


def modulate(x, shift, scale):
    return x * (1 + scale[:, None]) + shift[:, None]


def adaln(width, parts):
    return nn.Sequential(nn.SiLU(), nn.Linear(width, parts * width))


class TimestepEmbedder(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(256, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, t):
        angle = t[:, None].float() * torch.exp(-math.log(10000) * torch.arange(128, dtype=torch.float32) / 128)
        return self.mlp(torch.cat([angle.cos(), angle.sin()], dim=1).to(self.mlp[0].weight.dtype))


class LabelEmbedder(nn.Module):
    def __init__(self, classes, width):
        super().__init__()
        self.embedding_table = nn.Embedding(classes + 1, width)  # the last row is the null class

    def forward(self, labels):
        return self.embedding_table(labels)


class Block(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.norm1, self.norm2 = norm(width), norm(width)
        self.attn = Attention(width, num_heads=heads, qkv_bias=True)
        self.mlp = Mlp(width, 4 * width, act_layer=lambda: nn.GELU(approximate="tanh"))
        self.adaLN_modulation = adaln(width, 6)

    def forward(self, x, c):
        shift1, scale1, gate1, shift2, scale2, gate2 = self.adaLN_modulation(c).chunk(6, dim=1)
        x = x + gate1[:, None] * self.attn(modulate(self.norm1(x), shift1, scale1))
        return x + gate2[:, None] * self.mlp(modulate(self.norm2(x), shift2, scale2))


class FinalLayer(nn.Module):
    def __init__(self, width, outputs):
        super().__init__()
        self.norm_final, self.linear, self.adaLN_modulation = norm(width), nn.Linear(width, outputs), adaln(width, 2)

    def forward(self, x, c):
        return self.linear(modulate(self.norm_final(x), *self.adaLN_modulation(c).chunk(2, dim=1)))


def position_embedding(width, side):
    """Fixed sin-cos table: the first half of the width encodes the column, the second the row; sines before cosines."""
    omega = 10000.0 ** (-torch.arange(width // 4, dtype=torch.float64) / (width // 4))
    rows, columns = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    halves = [p.reshape(-1, 1).double() * omega for p in (columns, rows)]
    return torch.cat([f(h) for h in halves for f in (torch.sin, torch.cos)], dim=1).float()[None]


class Dit(nn.Module):
    def __init__(self, size, patch, channels, width, depth, heads, classes):
        super().__init__()
        self.patch, self.outputs = patch, 2 * channels
        self.x_embedder = PatchEmbed(size, patch, channels, width)
        self.t_embedder, self.y_embedder = TimestepEmbedder(width), LabelEmbedder(classes, width)
        self.pos_embed = nn.Parameter(torch.zeros(1, (size // patch) ** 2, width))
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(depth))
        self.final_layer = FinalLayer(width, patch**2 * self.outputs)

    def forward(self, x, t, labels):
        side, b = x.shape[-1] // self.patch, len(x)
        c = self.t_embedder(t) + self.y_embedder(labels)
        h = self.x_embedder(x) + self.pos_embed
        for block in self.blocks:
            h = block(h, c)
        h = self.final_layer(h, c).view(b, side, side, self.patch, self.patch, self.outputs)
        return h.permute(0, 5, 1, 3, 2, 4).reshape(b, self.outputs, *x.shape[-2:])

    def forward_with_cfg(self, x, t, labels, scale):
        half = x[: len(x) // 2]
        return guide(self(torch.cat([half, half]), t, labels), scale, channels=3)


def guide(out, scale, channels):
    cond, null = out[:, :channels].chunk(2)
    eps = null + scale * (cond - null)
    return torch.cat([torch.cat([eps, eps]), out[:, channels:]], dim=1)


@torch.no_grad()
def fill(model, size, seed, std):
    """N(0, std(name, tensor)) in the order of the state dict, in place; pos_embed is the fixed table."""
    g = torch.Generator().manual_seed(seed)
    for name, tensor in model.state_dict().items():
        if name == "pos_embed":
            tensor.copy_(position_embedding(size["width"], size["size"] // size["patch"]))
        else:
            tensor.normal_(0, std(name, tensor), generator=g)
    return model.eval()


def tiny_std(name, tensor):
    """Large enough that gates, modulation, label and timestep all move the output."""
    if name.endswith("bias"):
        return 0.2
    if "embedding_table" in name:
        return 1.0
    return 0.6 / math.sqrt(tensor[0].numel()) if "adaLN" in name else 1.2 / math.sqrt(tensor[0].numel())


# -------------------------------------------------------------------------------------------------------------- diffusers


def to_diffusers(official, depth):
    """diffusers' names: qkv apart; the timestep and label embedders are repeated in every block; no pos_embed."""
    out = {}

    def move(old, new):
        for end in ("weight", "bias"):
            if f"{old}.{end}" in official:
                out[f"{new}.{end}"] = official[f"{old}.{end}"]

    move("x_embedder.proj", "pos_embed.proj")
    for i in range(depth):
        old, new = f"blocks.{i}", f"transformer_blocks.{i}"
        move("t_embedder.mlp.0", f"{new}.norm1.emb.timestep_embedder.linear_1")
        move("t_embedder.mlp.2", f"{new}.norm1.emb.timestep_embedder.linear_2")
        move("y_embedder.embedding_table", f"{new}.norm1.emb.class_embedder.embedding_table")
        move(f"{old}.adaLN_modulation.1", f"{new}.norm1.linear")
        for end in ("weight", "bias"):
            for name, part in zip("qkv", official[f"{old}.attn.qkv.{end}"].chunk(3)):
                out[f"{new}.attn1.to_{name}.{end}"] = part
        move(f"{old}.attn.proj", f"{new}.attn1.to_out.0")
        move(f"{old}.mlp.fc1", f"{new}.ff.net.0.proj")
        move(f"{old}.mlp.fc2", f"{new}.ff.net.2")
    move("final_layer.adaLN_modulation.1", "proj_out_1")
    move("final_layer.linear", "proj_out_2")
    return out


def diffusers_model(official, size, **config):
    model = diffusers.DiTTransformer2DModel(
        num_attention_heads=size["heads"], attention_head_dim=size["width"] // size["heads"], in_channels=size["channels"],
        out_channels=2 * size["channels"], num_layers=size["depth"], sample_size=size["size"], patch_size=size["patch"],
        num_embeds_ada_norm=size["classes"], activation_fn="gelu-approximate", **config,
    )
    model.load_state_dict(to_diffusers(official, size["depth"]))  # strict: every key, no other
    return model.eval()


# ------------------------------------------------------------------------------------------------------------ the fixture

OFFICIAL = {"frequency_divisor": 128, "block_norm_eps": [1e-6, 1e-6], "final_norm_eps": 1e-6, "guided_channels": 3}
DIFFUSERS = {"frequency_divisor": 127, "block_norm_eps": [1e-6, 1e-5], "final_norm_eps": 1e-6, "guided_channels": 4}
CONVENTIONS = {
    "official": OFFICIAL, "diffusers": DIFFUSERS, "diffusers-eps-0.01": DIFFUSERS | {"block_norm_eps": [1e-6, 1e-2]},
}


@torch.no_grad()
def outputs(weights, x, labels, dtype):
    x = x.to(dtype)
    official = Dit(**TINY)
    official.load_state_dict(weights)
    models = {
        "official": official.eval(),
        "diffusers": diffusers_model(weights, TINY),
        "diffusers-eps-0.01": diffusers_model(weights, TINY, norm_eps=1e-2),
    }
    models = {name: model.to(dtype) for name, model in models.items()}
    pair, null = torch.cat([x[:2], x[:2]]), TINY["classes"]
    guided_labels = torch.tensor([3, 7, null, null])
    out = {}
    for t in (0, 1, 500, 999):
        ts = torch.full((len(x),), t)
        out[f"official/forward/t={t}"] = models["official"](x, ts, labels)
        out[f"diffusers/forward/t={t}"] = models["diffusers"](x, ts, labels).sample
    out["official/forward/mixed"] = models["official"](x, torch.tensor([999, 0, 500]), labels)
    out["diffusers-eps-0.01/forward/t=500"] = models["diffusers-eps-0.01"](x, torch.full((len(x),), 500), labels).sample
    ts = torch.full((4,), 500)
    out["official/cfg/t=500"] = models["official"].forward_with_cfg(pair, ts, guided_labels, SCALE)
    out["diffusers/cfg/t=500"] = guide(models["diffusers"](pair, ts, guided_labels).sample, SCALE, TINY["channels"])
    return out


def difference(a, b):
    return ((a.double() - b.double()).abs().max() / b.double().abs().max()).item()


def tiny():
    weights = fill(Dit(**TINY), TINY, SEED, tiny_std).state_dict()
    g = torch.Generator().manual_seed(SEED + 1)
    x = torch.randn(3, TINY["channels"], TINY["size"], TINY["size"], generator=g)
    labels = torch.tensor([3, TINY["classes"], 7])
    single, double = outputs(weights, x, labels, torch.float32), outputs(weights, x, labels, torch.float64)
    deviation = max(difference(single[key], double[key]) for key in single)
    assert deviation < 1e-5, deviation
    # A tolerance of 1e-4 must tell the conventions apart (where t is 0 all angles are 0 and frequencies do not show).
    assert difference(single["diffusers/forward/t=500"], single["official/forward/t=500"]) > 1e-2
    assert difference(single["diffusers-eps-0.01/forward/t=500"], single["diffusers/forward/t=500"]) > 1e-3
    tensors = {f"model/{key}": value for key, value in weights.items()}
    tensors |= {"input/x": x, "input/labels": labels} | single
    meta = {
        "made_by": "tests/parity/dit.py", "date": DATE, "seed": SEED, "torch": torch.__version__, "timm": timm.__version__,
        "diffusers": diffusers.__version__, **TINY, "guidance": SCALE, "conventions": CONVENTIONS, "deviation": deviation,
        "diffusers_keys": {key: list(value.shape) for key, value in to_diffusers(weights, TINY["depth"]).items()},
    }
    save_file({k: v.detach().clone().contiguous() for k, v in tensors.items()}, OUT, {"fewstep": json.dumps(meta)})
    print(f"{OUT.name}: {OUT.stat().st_size} bytes, deviation {deviation:.1e}")


@torch.no_grad()
def xl(path, seed):
    with torch.device("meta"):
        model = Dit(**XL2)
    model = fill(model.to_empty(device="cpu"), XL2, seed, lambda *_: 0.02)
    g = torch.Generator().manual_seed(seed + 1)
    x, t, labels = torch.randn(2, 4, 32, 32, generator=g), torch.tensor([999, 500]), torch.tensor([207, 1000])
    out = model(x, t, labels)
    torch.save(model.state_dict(), path.with_suffix(".pt"))
    parameters = sum(p.numel() for p in model.parameters())
    meta = {"made_by": "tests/parity/dit.py --xl", "seed": seed, "torch": torch.__version__, **XL2, "parameters": parameters,
            "conventions": {"official": OFFICIAL}}
    tensors = {"input/x": x, "input/t": t, "input/labels": labels, "official/forward": out}
    save_file(tensors, path, {"fewstep": json.dumps(meta)})
    print(f"{path}: {parameters} parameters, output std {out.std():.3f}, largest {out.abs().max():.3f}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Fixtures of Fewstep's DiT; see the top of the file.")
    parser.add_argument("--xl", type=pathlib.Path, metavar="OUT.safetensors")
    parser.add_argument("--seed", type=int, default=0, help="of --xl only")
    arguments = parser.parse_args()
    if arguments.xl:
        xl(arguments.xl, arguments.seed)
    else:
        torch.set_num_threads(1)
        diffusers.logging.set_verbosity_error()
        tiny()
