"""Reference values for Fewstep's HarmoniCa: the published training written again in plain PyTorch on a tiny DiT.

Written 2026-11-23 with Python 3.11, torch 2.11.0, safetensors 0.8.0, on a CPU; 5 seconds. From the repository root:

    python tests/parity/harmonica.py

It writes tests/parity/harmonica.safetensors. Nothing in it comes from Fewstep, and no library's DiT, sampler or cache is
used: only torch's tensor operations, autograd and torch.optim.AdamW. The method is that of HarmoniCa (arXiv 2410.01723)
as its published code trains a DiT, with the paper's leave-one-out proxy beside the code's telescoping one; the rival is
Learning-to-Cache (arXiv 2406.01733) as its published code trains. On the day of writing both published training loops
(ModelTC/HarmoniCa at 5d7f78d, its cache emptied before each trajectory, and horseee/learning-to-cache at d6cc781) were run
on these weights, latents and draws: losses and lambdas of `telescoping-mean` and `l2c` agreed within 2e-5 relative, logits
within 3e-7.

Values are computed in float64 (the timestep embedding in float32, as the official model does) and stored in float32. The
same code in float32 throughout must agree (metadata `deviation`: the largest |f32 - f64| / max|f64| of each kind of tensor,
at most 1e-5) and no gate comes within MARGIN of the threshold, so 1e-4 of the largest element is a tolerance with room.
Lambdas differ by orders of magnitude from row to row and are held to it element by element (`lambdas` in `deviation`: the
largest relative error of an element, at most 3e-5).

Sizes: T = 5 sampling steps, depth 3, N = 6 sub-modules (2i attention of block i, 2i+1 its MLP), n = 2 latents, 4 channels,
8x8, patch 2 (16 tokens), width 16, 4 heads, 10 classes (null = 10), output 8 channels. Row r of anything [T, ...] is
place r of the ascending timestep map; sampling runs rows T-1 ... 0. Steps [.., T, ..] of `x` are in the order of execution.

| tensor | shape | |
| --- | --- | --- |
| `model/<key>` | | weights under the keys of the official DiT checkpoint, `pos_embed` included |
| `timesteps` | [T] int64 | the original timesteps of the rows: 0, 250, 500, 749, 999 |
| `alphas_cumprod` | [T] float64 | at those timesteps |
| `initial/logits` | [T,N] | where every case starts; row T-1 is 5; some entries below the threshold, some near -5 |
| `train/noise`, `train/labels` | [3,n,4,8,8], [3,n] int64 | x_T of each trajectory before duplication, class labels |
| `infer/noise`, `infer/labels` | [n,4,8,8], [n] int64 | for the samples below |
| `infer/x0` | [2n,4,8,8] | uncached sample, both guidance halves |
| `check/output` | [2n,8,8,8] | plain network at `infer/noise` (duplicated) with t = 500, before guidance |
| `check/guided` | [2n,8,8,8] | the same after guidance |

A case is `case/<name>/<what>`, name one of `telescoping-mean`, `leave-one-out-mean`, `leave-one-out-sum`, `none`,
`telescoping-mean-macs` (metadata `cases`: proxy, reduction, beta, penalty, x_trajectories):

| what | shape | |
| --- | --- | --- |
| `lambdas` | [3,T] | in force in each trajectory: recomputed in trajectories 0 and 2 (C = 10); row T-1 is 0; `none`: ones |
| `mse`, `penalty`, `loss` | [3,T-1] | of each update, in the order of execution (rows T-2 ... 0); penalty is before beta |
| `logits` | [3,T-1,T,N] | the whole table after each update |
| `x` | [K,T,2n,4,8,8] | x after each step, both halves, of the trajectories `x_trajectories` (none: no tensor) |
| `infer/x0` | [2n,4,8,8] | sample with the final table: r > tau computes and writes, else the slot is used |
| `infer/computed` | [T,N] uint8 | 1 = computed |

`case/l2c/<what>`: Learning-to-Cache's training, I = 4 iterations (see l2c_case for what it does):

| what | shape | |
| --- | --- | --- |
| `row` | [I] int64 | the even row that is trained in this iteration |
| `x_start`, `noise`, `labels` | [I,n,4,8,8] x2, [I,n] int64 | images (latents), noise, labels before dropping |
| `dropped` | [I,n] uint8 | 1 = the null class instead of the label |
| `x_noisy`, `x_next` | [I,n,4,8,8] | input at row + 1; its DDIM step, which is the input at `row` |
| `mse`, `penalty`, `loss`, `logits` | [I] x3, [I,T,N] | as above |
| `infer/x0`, `infer/computed` | | guided sample with the even-row rule: odd rows empty the cache and compute everything |

`adamw/...`: a row whose gradients are of the size of Adam's eps (the published beta is 7e-8): `initial` [6], `grads` [8,6],
`after` [8,6] (lr 0.01, betas 0.9 and 0.999, eps 1e-8, no decay, clamp to +-5).

The metadata key `fewstep` is JSON: version, date, seed, constants, `cases`, MACs and weights of the sub-modules,
`deviation`, `utilisation` (reused cells / (T*N)) of each inference table.
"""

import json
import math
import pathlib

import torch
import torch.nn.functional as F
from safetensors.torch import save_file

OUT = pathlib.Path(__file__).with_suffix(".safetensors")
DATE, SEED = "2026-11-23", 21  # chosen: float32 resolves the last row's lambda, and the cases end in different tables
DEPTH, WIDTH, HEADS, PATCH, SIZE, CHANNELS, CLASSES = 3, 16, 4, 2, 8, 4, 10
TOKENS, SUBMODULES = (SIZE // PATCH) ** 2, 2 * DEPTH
STEPS, LATENTS, TRAJECTORIES, REFRESH = 5, 2, 3, 10  # REFRESH: C, counted in iterations, T of them a trajectory
GUIDANCE, TAU, LR, CLAMP, PINNED = 1.5, 0.1, 0.01, 5.0, 5.0
MARGIN = 2e-4  # no gate may come this near to tau: rounding must not decide a write
L2C_ROWS = [2, 0, 0, 2]

# ------------------------------------------------------------------------------------------------------------- diffusion


def respaced(steps: int, train: int = 1000) -> list[int]:
    stride, place, out = (train - 1) / (steps - 1), 0.0, []
    for _ in range(steps):
        out.append(round(place))  # half to even
        place += stride
    return out


TIMESTEPS = respaced(STEPS)
ALPHAS = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64), 0)[TIMESTEPS]


def ddim(x, output, row):
    """One deterministic step from `row`; the variance channels of `output` are dropped, nothing is clipped."""
    a = ALPHAS[row].item()
    before = ALPHAS[row - 1].item() if row > 0 else 1.0
    eps = output[:, :CHANNELS]
    x0 = math.sqrt(1 / a) * x - math.sqrt(1 / a - 1) * eps
    eps = (math.sqrt(1 / a) * x - x0) / math.sqrt(1 / a - 1)
    return math.sqrt(before) * x0 + math.sqrt(1 - before) * eps


# ------------------------------------------------------------------------------------------------------------- the model


def position_embedding():
    """Fixed sin-cos table: the first half of the width encodes the column, the second the row; sines before cosines."""
    side = SIZE // PATCH
    quarter = WIDTH // 4
    omega = 10000.0 ** (-torch.arange(quarter, dtype=torch.float64) / quarter)
    rows, columns = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    halves = [p.reshape(-1, 1).double() * omega for p in (columns, rows)]
    return torch.cat([f(h) for h in halves for f in (torch.sin, torch.cos)], dim=1).float()[None]


def make_weights(seed: int) -> dict[str, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    out = {"pos_embed": position_embedding()}

    def linear(name, fan_out, fan_in, gain, bias=0.1, shape=None):
        out[f"{name}.weight"] = torch.randn(shape or (fan_out, fan_in), generator=g) * gain / math.sqrt(fan_in)
        out[f"{name}.bias"] = torch.randn(fan_out, generator=g) * bias

    patch = CHANNELS * PATCH**2
    linear("x_embedder.proj", WIDTH, patch, 0.15, shape=(WIDTH, CHANNELS, PATCH, PATCH))
    linear("t_embedder.mlp.0", WIDTH, 256, 1.0)
    linear("t_embedder.mlp.2", WIDTH, WIDTH, 1.5)
    out["y_embedder.embedding_table.weight"] = torch.randn(CLASSES + 1, WIDTH, generator=g) * 0.3
    for i in range(DEPTH):
        linear(f"blocks.{i}.adaLN_modulation.1", 6 * WIDTH, WIDTH, 0.8, bias=0.4)
        linear(f"blocks.{i}.attn.qkv", 3 * WIDTH, WIDTH, 1.2)
        linear(f"blocks.{i}.attn.proj", WIDTH, WIDTH, 1.0)
        linear(f"blocks.{i}.mlp.fc1", 4 * WIDTH, WIDTH, 1.2)
        linear(f"blocks.{i}.mlp.fc2", WIDTH, 4 * WIDTH, 1.2)
    linear("final_layer.adaLN_modulation.1", 2 * WIDTH, WIDTH, 0.3)
    linear("final_layer.linear", 2 * patch, WIDTH, 1.0)
    return out


class Compute:
    """The plain network: what is computed is used, nothing is remembered."""

    def __call__(self, index, compute):
        return compute()


class Fill(Compute):
    """Computes everything and puts it into the slots."""

    def __init__(self, slots):
        self.slots = slots

    def __call__(self, index, compute):
        out = compute()
        self.slots[index] = out.detach()
        return out


class Mix(Compute):
    """Training's student: o = (1 - r) * slot + r * f(x); the slot takes o itself where r > tau, else it stays."""

    def __init__(self, slots, gates, write=True):
        self.slots, self.gates, self.write = slots, gates, write

    def __call__(self, index, compute):
        out, slot, r = compute(), self.slots.get(index), self.gates[index]
        if slot is not None:
            out = slot * (1 - r) + out * r
        if self.write and (slot is None or r.item() > TAU):
            self.slots[index] = out.detach()
        return out


class Skip(Compute):
    """Inference: r > tau (or an empty slot) computes and writes; otherwise the slot is the output."""

    def __init__(self, slots, gates, computed):
        self.slots, self.gates, self.computed = slots, gates, computed

    def __call__(self, index, compute):
        if self.slots.get(index) is None or self.gates[index].item() > TAU:
            self.slots[index] = compute()
            self.computed[index] = 1
        return self.slots[index]


class Dit:
    def __init__(self, weights, dtype):
        self.w, self.dtype = {k: v.to(dtype) for k, v in weights.items()}, dtype

    def linear(self, name, x):
        return F.linear(x, self.w[f"{name}.weight"], self.w[f"{name}.bias"])

    def condition(self, timestep, labels):
        # Always in float32, as in the official model: at t = 999 the angle is rounded to 3e-5.
        angle = timestep * torch.exp(-math.log(10000) * torch.arange(128, dtype=torch.float32) / 128)
        t = torch.cat([angle.cos(), angle.sin()])[None].to(self.dtype)
        t = self.linear("t_embedder.mlp.2", F.silu(self.linear("t_embedder.mlp.0", t)))
        return F.silu(t + self.w["y_embedder.embedding_table.weight"][labels])

    def attention(self, i, x):
        b, n, _ = x.shape
        q, k, v = self.linear(f"blocks.{i}.attn.qkv", x).view(b, n, 3, HEADS, WIDTH // HEADS).permute(2, 0, 3, 1, 4)
        p = (q @ k.transpose(-1, -2) / math.sqrt(WIDTH // HEADS)).softmax(-1)
        return self.linear(f"blocks.{i}.attn.proj", (p @ v).transpose(1, 2).reshape(b, n, WIDTH))

    def mlp(self, i, x):
        return self.linear(f"blocks.{i}.mlp.fc2", F.gelu(self.linear(f"blocks.{i}.mlp.fc1", x), approximate="tanh"))

    def forward(self, x, row, labels, route=Compute()):
        """[B,4,8,8] -> [B,8,8,8]. `route` sees every sub-module's output before the adaLN gate; the gate is this step's."""
        def modulated(x, shift, scale):
            return F.layer_norm(x, (WIDTH,), eps=1e-6) * (1 + scale[:, None]) + shift[:, None]

        b = len(x)
        h = F.conv2d(x, self.w["x_embedder.proj.weight"], self.w["x_embedder.proj.bias"], stride=PATCH)
        h = h.flatten(2).transpose(1, 2) + self.w["pos_embed"]
        c = self.condition(TIMESTEPS[row], labels)
        for i in range(DEPTH):
            m = self.linear(f"blocks.{i}.adaLN_modulation.1", c).chunk(6, dim=1)
            h = h + m[2][:, None] * route(2 * i, lambda: self.attention(i, modulated(h, m[0], m[1])))
            h = h + m[5][:, None] * route(2 * i + 1, lambda: self.mlp(i, modulated(h, m[3], m[4])))
        shift, scale = self.linear("final_layer.adaLN_modulation.1", c).chunk(2, dim=1)
        h = self.linear("final_layer.linear", modulated(h, shift, scale))
        side = SIZE // PATCH
        h = h.view(b, side, side, PATCH, PATCH, 2 * CHANNELS)
        return h.permute(0, 5, 1, 3, 2, 4).reshape(b, 2 * CHANNELS, SIZE, SIZE)

    def guided(self, x, row, labels, route=Compute()):
        """Both halves get the first half's latents; only the first three channels are guided, as published."""
        half = x[: len(x) // 2]
        both = torch.cat([labels, torch.full_like(labels, CLASSES)])
        out = self.forward(torch.cat([half, half]), row, both, route)
        cond, null = out[:, :3].chunk(2)
        eps = null + GUIDANCE * (cond - null)
        return torch.cat([torch.cat([eps, eps]), out[:, 3:]], dim=1)


@torch.no_grad()
def sample(model, noise, labels, route_of):
    x = torch.cat([noise, noise])
    for row in reversed(range(STEPS)):
        x = ddim(x, model.guided(x, row, labels, route_of(row)), row)
    return x


# ---------------------------------------------------------------------------------------------------------- the training


class Table:
    """T rows of logits, each its own parameter with its own AdamW; row T-1 is pinned and has none."""

    def __init__(self, logits):
        self.rows = [row.clone().requires_grad_() for row in logits]
        self.optimisers = [torch.optim.AdamW([row], lr=LR, weight_decay=0.0, foreach=False) for row in self.rows]

    def gates(self):
        return torch.stack([row.detach().sigmoid() for row in self.rows])

    def logits(self):
        return torch.stack([row.detach().clone() for row in self.rows])

    def update(self, row, loss):
        self.optimisers[row].zero_grad()
        loss.backward()
        self.optimisers[row].step()
        with torch.no_grad():
            self.rows[row].clamp_(-CLAMP, CLAMP)


def lambdas(model, noise, labels, gates, proxy, reduction):
    """Error of x0 per row, over both halves and all four channels; row T-1 has none. Every generation has its own cache."""
    ones = torch.ones(SUBMODULES, dtype=gates.dtype)
    reduce = {"mean": torch.mean, "sum": torch.sum}[reduction]
    out = torch.zeros(STEPS, dtype=gates.dtype)

    def generate(table):
        slots = {}
        return sample(model, noise, labels, lambda row: Mix(slots, table[row]))

    if proxy == "none":
        return torch.ones(STEPS, dtype=gates.dtype)
    if proxy == "telescoping":
        table = [ones] * STEPS
        before = generate(table)
        for row in reversed(range(STEPS - 1)):
            table[row] = gates[row]
            after = generate(table)
            out[row] = reduce((after - before) ** 2)
            before = after
    else:
        cached = generate(list(gates))
        for row in range(STEPS - 1):
            table = list(gates)
            table[row] = ones
            out[row] = reduce((generate(table) - cached) ** 2)
    return out


def train(model, data, proxy, reduction, beta, weights):
    """Step-wise denoising training: the student's own trajectory, one update at every step but the first."""
    table = Table(data["initial/logits"])
    weights = weights.to(model.dtype)
    out = {key: [] for key in ("lambdas", "mse", "penalty", "loss", "logits", "x")}
    in_force = None
    for trajectory in range(TRAJECTORIES):
        noise, labels = data["train/noise"][trajectory], data["train/labels"][trajectory]
        if trajectory * STEPS % REFRESH == 0:
            in_force = lambdas(model, noise, labels, table.gates(), proxy, reduction)
        out["lambdas"].append(in_force)
        slots = {}  # nothing survives from the trajectory before
        x = torch.cat([noise, noise])
        for row in reversed(range(STEPS)):
            if row == STEPS - 1:
                with torch.no_grad():
                    x = ddim(x, model.guided(x, row, labels, Fill(slots)), row)
                out["x"].append(x)
                continue
            with torch.no_grad():
                teacher = model.guided(x, row, labels)
            gates = table.rows[row].sigmoid()
            student = model.guided(x, row, labels, Mix(slots, gates))
            mse = ((teacher - student) ** 2).mean()  # 8 channels, both halves
            penalty = (weights * gates).sum()
            loss = in_force[row] * mse + beta * penalty
            table.update(row, loss)
            x = ddim(x, student.detach(), row)
            for key, value in (("mse", mse), ("penalty", penalty), ("loss", loss), ("logits", table.logits()), ("x", x)):
                out[key].append(value.detach())
    out = {key: torch.stack(values) for key, values in out.items()}
    for key in ("mse", "penalty", "loss", "logits"):
        out[key] = out[key].unflatten(0, (TRAJECTORIES, STEPS - 1))
    out["x"] = out["x"].unflatten(0, (TRAJECTORIES, STEPS))
    return out, table


def infer(model, data, gates, even_rows_only=False):
    slots, computed = {}, torch.zeros(STEPS, SUBMODULES, dtype=torch.uint8)

    def route(row):
        if even_rows_only and row % 2 == 1:
            slots.clear()
        return Skip(slots, gates[row], computed[row])

    return {"infer/x0": sample(model, data["infer/noise"], data["infer/labels"], route), "infer/computed": computed}


def l2c_case(model, data, beta):
    """Learning-to-Cache's training, as its published code does it.

    Needs images; every iteration is on its own, there is no trajectory. One k in 0 .. T//2 - 1 is drawn for the whole
    batch: row 2k + 1 is computed and fills the cache, row 2k is the one that may reuse and is trained. Labels are dropped
    to the null class with probability 0.1, one draw shared by the iteration's three forwards. There is no guidance: the
    batch is not doubled and the output is the bare network's.
      1. x_noisy = q(x_start, row 2k + 1), the respaced schedule; the full model at 2k + 1 fills every slot (empty before).
      2. x_next = DDIM step (eta 0, nothing clipped) of that output: the input at row 2k.
      3. teacher: full model at x_next. student: soft mix of all sub-modules with the slots by r = sigmoid(logits[2k]).
         Neither writes. (A threshold given at training would binarise r straight-through; the published commands give none.)
      4. loss = mean over everything of (teacher - student)^2 over all 8 output channels + beta * sum(r), no lambda.
      5. AdamW (no decay) on row 2k only (others have no gradient and no state), clamp to +-5, the cache is emptied.
    At inference odd rows empty the cache and compute; even rows reuse what r <= tau says; odd rows' logits are never read.
    """
    table = Table(data["initial/logits"])
    out = {key: [] for key in ("x_noisy", "x_next", "mse", "penalty", "loss", "logits")}
    for k, row in enumerate(L2C_ROWS):
        labels = torch.where(data["l2c/dropped"][k] == 1, CLASSES, data["l2c/labels"][k])
        a = ALPHAS[row + 1].item()
        x_noisy = math.sqrt(a) * data["l2c/x_start"][k] + math.sqrt(1 - a) * data["l2c/noise"][k]
        slots = {}
        with torch.no_grad():
            x_next = ddim(x_noisy, model.forward(x_noisy, row + 1, labels, Fill(slots)), row + 1)
            teacher = model.forward(x_next, row, labels)
        gates = table.rows[row].sigmoid()
        student = model.forward(x_next, row, labels, Mix(slots, gates, write=False))
        mse, penalty = ((teacher - student) ** 2).mean(), gates.sum()
        loss = mse + beta * penalty
        table.update(row, loss)
        values = (x_noisy, x_next, mse, penalty, loss, table.logits())
        for key, value in zip(out, values):
            out[key].append(value.detach())
    return {key: torch.stack(values) for key, values in out.items()}, table


def adamw_at_eps(dtype):
    g = torch.Generator().manual_seed(5)
    grads = (torch.randn(8, 6, generator=g) * torch.tensor([1e-9, 1e-8, 3e-8, 1e-7, 1.75e-8, 1e-6])).to(dtype)
    initial = torch.tensor([0.3, -0.7, 1.5, -4.99, 4.99, 0.0])
    row = initial.to(dtype, copy=True).requires_grad_()
    optimiser, after = torch.optim.AdamW([row], lr=LR, weight_decay=0.0, foreach=False), []
    for grad in grads:
        row.grad = grad.clone()
        optimiser.step()
        with torch.no_grad():
            row.clamp_(-CLAMP, CLAMP)
        after.append(row.detach().clone())
    return {"initial": initial.to(dtype), "grads": grads, "after": torch.stack(after)}


# ----------------------------------------------------------------------------------------------------------- the fixture


def start_noise(weights, labels, g):
    """x_T near the point where the network's eps is x_T itself.

    The first step multiplies x_T - eps by 157. A random network knows nothing of x_T, and with latents in the hundreds
    float32 would drown what the last rows do to x0.
    """
    model, x = Dit(weights, torch.float64), torch.zeros(len(labels), CHANNELS, SIZE, SIZE, dtype=torch.float64)
    for _ in range(50):
        x = model.guided(torch.cat([x, x]), STEPS - 1, labels)[: len(labels), :CHANNELS]
    return x.float() + 0.1 * torch.randn(x.shape, generator=g)


def make_data(weights, seed):
    g = torch.Generator().manual_seed(seed)
    latent = (CHANNELS, SIZE, SIZE)
    labels = torch.randint(CLASSES, (TRAJECTORIES, LATENTS), generator=g)
    infer_labels = torch.tensor([3, 7])
    logits = torch.randn(STEPS, SUBMODULES, generator=g)
    # r below tau from the start in several rows, one that training lifts over it, one that meets the clamp
    for (row, k), value in {(0, 1): -3.5, (1, 0): -2.9, (2, 3): -3.2, (3, 1): -2.6, (2, 1): -2.2022, (1, 5): -4.985}.items():
        logits[row, k] = value
    logits[STEPS - 1] = PINNED
    iterations = len(L2C_ROWS)
    smooth = F.avg_pool2d(torch.randn(iterations * LATENTS, *latent, generator=g), 3, 1, 1) * 2.0
    dropped = torch.zeros(iterations, LATENTS, dtype=torch.uint8)
    dropped[1, 0] = dropped[3, 1] = 1  # at 0.1 the draw would leave most of these fixtures without a dropped label
    return {
        "initial/logits": logits,
        "train/noise": start_noise(weights, labels.flatten(), g).unflatten(0, labels.shape),
        "train/labels": labels,
        "infer/noise": start_noise(weights, infer_labels, g),
        "infer/labels": infer_labels,
        "l2c/x_start": smooth.view(iterations, LATENTS, *latent),
        "l2c/noise": torch.randn(iterations, LATENTS, *latent, generator=g),
        "l2c/labels": torch.randint(CLASSES, (iterations, LATENTS), generator=g),
        "l2c/dropped": dropped,
        "l2c/row": torch.tensor(L2C_ROWS),
    }


def macs():
    """Multiply-accumulates of each sub-module for one sample."""
    attention = 4 * TOKENS * WIDTH**2 + 2 * TOKENS**2 * WIDTH
    return torch.tensor([attention, 8 * TOKENS * WIDTH**2] * DEPTH, dtype=torch.float64)


ONES = torch.ones(SUBMODULES, dtype=torch.float64)
CASES = {
    "telescoping-mean": dict(proxy="telescoping", reduction="mean", beta=1e-2, penalty="count"),
    "leave-one-out-mean": dict(proxy="leave-one-out", reduction="mean", beta=1e-2, penalty="count"),
    "leave-one-out-sum": dict(proxy="leave-one-out", reduction="sum", beta=10.0, penalty="count"),
    "none": dict(proxy="none", reduction="mean", beta=1e-2, penalty="count"),
    "telescoping-mean-macs": dict(proxy="telescoping", reduction="mean", beta=1e-2, penalty="macs"),
}
L2C_BETA = 1e-2


def compute(weights, raw, dtype):
    data = {k: v.to(dtype) if v.is_floating_point() else v for k, v in raw.items()}
    model = Dit(weights, dtype)
    noise, labels = data["infer/noise"], data["infer/labels"]
    both = torch.cat([labels, torch.full_like(labels, CLASSES)])
    out = {
        "infer/x0": sample(model, noise, labels, lambda row: Compute()),
        "check/output": model.forward(torch.cat([noise, noise]), 2, both),
        "check/guided": model.guided(torch.cat([noise, noise]), 2, labels),
    }
    for name, case in CASES.items():
        weighting = macs() / macs().mean() if case["penalty"] == "macs" else ONES
        values, table = train(model, data, case["proxy"], case["reduction"], case["beta"], weighting)
        case["x_trajectories"] = {"telescoping-mean": [0, 2], "leave-one-out-sum": []}.get(name, [2])  # for the file's size
        values["x"] = values["x"][case["x_trajectories"]]
        values |= infer(model, data, table.gates())
        out |= {f"case/{name}/{key}": value for key, value in values.items() if value.numel()}
    values, table = l2c_case(model, data, L2C_BETA)
    values |= infer(model, data, table.gates(), even_rows_only=True)
    out |= {f"case/l2c/{key}": value for key, value in values.items()}
    out |= {f"adamw/{key}": value for key, value in adamw_at_eps(dtype).items()}
    return out


def check(single, double):
    """Refuses a fixture in which rounding decides anything; returns the largest deviation of each kind of tensor."""
    deviation = {}
    for key, value in double.items():
        if value.dtype == torch.uint8:
            assert torch.equal(single[key], value), key
            continue
        assert torch.isfinite(value).all(), key
        error = (single[key].double() - value).abs()
        kind = key.rsplit("/", 1)[-1]
        scale = value.abs().clamp(min=1e-30) if kind == "lambdas" else value.abs().max()
        deviation[kind] = max(deviation.get(kind, 0.0), (error / scale).max().item())
        if kind == "logits":
            assert (value.sigmoid() - TAU).abs().min() > MARGIN, f"{key}: a gate within {MARGIN} of the threshold"
    return deviation


def main():
    torch.set_num_threads(1)
    weights = make_weights(SEED)
    raw = make_data(weights, SEED + 1)
    single, double = compute(weights, raw, torch.float32), compute(weights, raw, torch.float64)
    deviation = check(single, double)
    assert all(value < (3e-5 if kind == "lambdas" else 1e-5) for kind, value in deviation.items()), deviation
    tensors = {f"model/{key}": value for key, value in weights.items()}
    tensors |= {key.replace("l2c/", "case/l2c/"): value for key, value in raw.items()}
    tensors |= {"timesteps": torch.tensor(TIMESTEPS), "alphas_cumprod": ALPHAS}
    tensors |= {k: v.float() if v.is_floating_point() else v for k, v in double.items()}
    meta = {
        "made_by": "tests/parity/harmonica.py", "date": DATE, "torch": torch.__version__, "seed": SEED,
        "steps": STEPS, "depth": DEPTH, "width": WIDTH, "heads": HEADS, "patch": PATCH, "size": SIZE, "channels": CHANNELS,
        "classes": CLASSES, "guidance": GUIDANCE, "guided_channels": 3, "tau": TAU, "lr": LR, "clamp": CLAMP, "c": REFRESH,
        "refreshed_in": [0, 2], "macs": macs().tolist(), "mac_weights": (macs() / macs().mean()).tolist(),
        "cases": CASES | {"l2c": {"beta": L2C_BETA}}, "deviation": deviation,
        "utilisation": {
            key.split("/")[1]: f"{int((value == 0).sum())}/{value.numel()}"
            for key, value in double.items() if key.endswith("computed")
        },
    }
    save_file({k: v.detach().clone().contiguous() for k, v in tensors.items()}, OUT, {"fewstep": json.dumps(meta)})
    print(json.dumps({k: meta[k] for k in ("deviation", "utilisation")}, indent=1), OUT.stat().st_size)


if __name__ == "__main__":
    main()
