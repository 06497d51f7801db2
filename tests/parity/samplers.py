"""Reference trajectories for Fewstep's samplers: diffusers' schedulers, and guided-diffusion's respaced sampling in our own words.

Written with Python 3.11, torch 2.11.0, diffusers 0.42.0, numpy, safetensors, on a CPU. Command, from the repository root:

    python tests/parity/samplers.py

It writes tests/parity/samplers.safetensors; the same versions give the same bytes. Tensors:

    x [2,2,3,3]          the latents that every case starts from
    noise [50,2,2,3,3]   what the step after call k adds
    push [50,2,4,3,3]    part of the model's output at call k
    <case>/model [calls,2] float64    the model says model[k,0] * x (twice, for both halves of the channels) + model[k,1] * push[k]
    <case>/timesteps [calls] float64  what the model is told
    <case>/x [calls,2,2,3,3]          the latents after each call

The metadata key `cases` is JSON: for each case the sampler's options as in a Fewstep config, and the beta schedule.

diffusers keeps its tables in float32, in which 1 - alphas_cumprod has few digits at the first timesteps (and alphas_cumprod at the
last ones of the cosine). Here the tables are computed in float64 from the formulas and put in their place; what is done with them
is the library's. The two agree as far as float32 goes, which is checked below. Its flow matching has noise at 1 and the image at
0, with velocity noise - image: time here is 1 - sigma, and the model's output changes its sign.
"""

import json
import math
import pathlib

import diffusers.schedulers.scheduling_ddpm as scheduling_ddpm
import numpy as np
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
)
from safetensors.torch import save_file

torch.set_num_threads(1)
OUT = pathlib.Path(__file__).with_suffix(".safetensors")
SHAPE, CALLS = (2, 2, 3, 3), 50
DIFFUSERS = {"linear": "linear", "scaled-linear": "scaled_linear", "cosine": "squaredcos_cap_v2"}
RANGES = {"linear": (1e-4, 0.02), "scaled-linear": (0.00085, 0.012), "cosine": (1e-4, 0.02)}

g = torch.Generator().manual_seed(20)
start = torch.randn(SHAPE, generator=g)
noise = torch.randn(CALLS, *SHAPE, generator=g)
push = torch.rand(CALLS, 2, 4, 3, 3, generator=g) * 2 - 1
tensors = {"x": start, "noise": noise, "push": push}
cases = {}


def betas(schedule):
    n = 1000
    if schedule == "linear":
        return np.linspace(1e-4, 0.02, n)
    if schedule == "scaled-linear":
        return np.linspace(0.00085**0.5, 0.012**0.5, n) ** 2
    bar = [math.cos((i / n + 0.008) / 1.008 * math.pi / 2) ** 2 for i in range(n + 1)]
    return np.array([min(1 - bar[i + 1] / bar[i], 0.999) for i in range(n)])


def tables(schedule):
    return np.cumprod(1 - betas(schedule))


def library(kind, schedule, **config):
    first, last = RANGES[schedule]
    s = kind(beta_schedule=DIFFUSERS[schedule], beta_start=first, beta_end=last, **config)
    exact = torch.from_numpy(tables(schedule))
    assert torch.allclose(s.alphas_cumprod.double(), exact, rtol=2e-4, atol=1e-7)
    s.betas = torch.from_numpy(betas(schedule))
    s.alphas, s.alphas_cumprod, s.one = 1 - s.betas, exact, torch.ones((), dtype=torch.float64)
    if hasattr(s, "final_alpha_cumprod"):
        s.final_alpha_cumprod = s.one
    return s


def plausible(schedule, timesteps, prediction):
    """Weights of a model that is right for images N(0, 0.25), so that latents stay of order 1, and errs by the pushes."""
    bar = tables(schedule)[np.round(np.asarray(timesteps)).astype(int)]
    signal, sigma = np.sqrt(bar), np.sqrt(1 - bar)
    variance = 0.25 * bar + 1 - bar
    gain = {
        "epsilon": sigma / variance,
        "v": signal * sigma * 0.75 / variance,
        "sample": 0.25 * signal / variance,
    }[prediction]
    return torch.from_numpy(np.stack([gain, 0.3 * signal], 1))


def record(name, options, schedule, timesteps, model, step):
    """Runs `step(k, output, x) -> x`, where `output` has the channels of the latents twice."""
    calls = len(timesteps)
    x, seen = start.double(), []
    for k in range(calls):
        output = model[k, 0] * torch.cat([x, x], 1) + model[k, 1] * push[k]
        x = step(k, output, x).double()
        seen.append(x)
    assert all(s.isfinite().all() and s.abs().max() < 100 for s in seen), name
    tensors[f"{name}/model"] = model
    tensors[f"{name}/timesteps"] = torch.as_tensor(np.asarray(timesteps, dtype=np.float64))
    tensors[f"{name}/x"] = torch.stack(seen).float()
    cases[name] = {"options": options, "schedule": {"name": schedule}}


def ddim(schedule, steps, spacing, eta=0.0, prediction="epsilon", clip=False):
    s = library(
        DDIMScheduler,
        schedule,
        timestep_spacing=spacing,
        prediction_type="v_prediction" if prediction == "v" else prediction,
        clip_sample=clip,
    )
    s.set_timesteps(steps)
    ts = s.timesteps.tolist()
    options = {"name": "ddim", "steps": steps, "eta": eta, "respacing": spacing}
    options |= {"prediction": prediction, "clip_denoised": clip}

    def step(k, output, x):
        more = {"eta": eta, "variance_noise": noise[k] if eta else None, "use_clipped_model_output": clip}
        return s.step(output[:, :2], ts[k], x, **more).prev_sample

    name = f"ddim/{schedule}/{spacing}/{steps}/eta={eta:g}/{prediction}" + ("/clip" if clip else "")
    record(name, options, schedule, ts, plausible(schedule, ts, prediction), step)


def ddpm(schedule, steps, spacing, variance, prediction="epsilon", clip=False):
    s = library(
        DDPMScheduler,
        schedule,
        timestep_spacing="leading" if spacing == "published" else spacing,
        prediction_type="v_prediction" if prediction == "v" else prediction,
        variance_type=variance,
        clip_sample=clip,
    )
    if spacing == "published":
        s.set_timesteps(timesteps=published(steps)[::-1])
    else:
        s.set_timesteps(steps)
    ts = s.timesteps.tolist()
    learned = variance == "learned_range"
    options = {"name": "iddpm" if learned else "ddpm", "steps": steps, "respacing": spacing}
    options |= {"prediction": prediction, "clip_denoised": clip}
    if not learned:
        options["variance"] = variance.replace("_", "-")

    def step(k, output, x):
        scheduling_ddpm.randn_tensor = lambda *_, **__: noise[k].double()
        return s.step(output if learned else output[:, :2], ts[k], x).prev_sample

    name = f"ddpm/{schedule}/{spacing}/{steps}/{variance}/{prediction}" + ("/clip" if clip else "")
    record(name, options, schedule, ts, plausible(schedule, ts, prediction), step)


def dpm_solver(schedule, steps, spacing, karras=False, prediction="epsilon"):
    s = library(
        DPMSolverMultistepScheduler,
        schedule,
        timestep_spacing=spacing,
        prediction_type="v_prediction" if prediction == "v" else prediction,
        algorithm_type="dpmsolver++",
        solver_order=2,
        use_karras_sigmas=karras,
    )
    s.set_timesteps(steps)
    ts = s.timesteps.tolist()
    options = {"name": "dpm-solver++", "steps": steps, "prediction": prediction, "karras": karras}
    if not karras:
        options["respacing"] = spacing
    name = f"dpm/{schedule}/{'karras' if karras else spacing}/{steps}/{prediction}"
    # Karras' timesteps may repeat, which `step` resolves by counting calls.
    s.set_begin_index(0)
    step = lambda k, output, x: s.step(output[:, :2], ts[k], x).prev_sample
    record(name, options, schedule, ts, plausible(schedule, ts, prediction), step)


def flow(name, scheduler, steps, calls):
    """In time 1 - sigma, with the sign of the velocity changed."""
    ts = [1 - t / 1000 for t in scheduler.timesteps.tolist()[:calls]]
    model = torch.tensor([[-0.5 + t, 0.4] for t in ts], dtype=torch.float64)
    step = lambda k, output, x: scheduler.step(-output[:, :2], scheduler.timesteps[k], x).prev_sample
    scheduler.set_begin_index(0)
    record(f"flow/{name}/{steps}", {"name": name, "steps": steps}, "linear", ts, model, step)


# ------------------------------------------------------------------------------- guided-diffusion's respacing, in our own words


def published(steps):
    """Timesteps of the section count "T": a running sum of strides, rounded half to even."""
    stride, at, chosen = 999 / (steps - 1), 0.0, []
    for _ in range(steps):
        chosen.append(round(at))
        at += stride
    return chosen


def stride_of(steps):
    """Timesteps of "ddimT": the first whole stride that gives T of them."""
    for stride in range(1, 1000):
        if len(range(0, 1000, stride)) == steps:
            return list(range(0, 1000, stride))
    raise ValueError(steps)


def respaced(steps, rule, sampler, eta=0.0):
    """Betas anew from the products at the chosen timesteps, then Gaussian diffusion with its own formulas, model told the original t."""
    chosen = {"published": published, "ddim": stride_of}[rule](steps)
    kept, new = 1.0, []
    for bar in tables("linear")[chosen]:
        new.append(1 - bar / kept)
        kept = bar
    beta = np.array(new)
    bar = np.cumprod(1 - beta)
    before = np.append(1.0, bar[:-1])
    posterior = beta * (1 - before) / (1 - bar)
    posterior_log = np.log(np.append(posterior[1], posterior[1:]))
    of_x0 = beta * np.sqrt(before) / (1 - bar)
    of_x = (1 - before) * np.sqrt(1 - beta) / (1 - bar)

    def step(k, output, x):
        i = steps - 1 - k
        eps, v = output[:, :2], output[:, 2:]
        x0 = x / math.sqrt(bar[i]) - math.sqrt(1 / bar[i] - 1) * eps
        add = noise[k].double() * (i != 0)
        if sampler == "ddim":
            again = (x / math.sqrt(bar[i]) - x0) / math.sqrt(1 / bar[i] - 1)
            sigma = eta * math.sqrt((1 - before[i]) / (1 - bar[i])) * math.sqrt(1 - bar[i] / before[i])
            return math.sqrt(before[i]) * x0 + math.sqrt(1 - before[i] - sigma**2) * again + sigma * add
        mean = of_x0[i] * x0 + of_x[i] * x
        share = (v + 1) / 2
        log = share * math.log(beta[i]) + (1 - share) * posterior_log[i]
        return mean + torch.exp(0.5 * log) * add

    ts = chosen[::-1]
    options = {"name": sampler, "steps": steps, "respacing": rule, "eta": eta}
    record(f"published/{sampler}/{rule}/{steps}/eta={eta:g}", options, "linear", ts, plausible("linear", ts, "epsilon"), step)


for schedule in DIFFUSERS:
    ddim(schedule, 10, "leading")
    ddim(schedule, 20, "leading", eta=1.0)
    ddpm(schedule, 10, "published", "fixed_small")
    ddpm(schedule, 20, "leading", "learned_range")
    dpm_solver(schedule, 10, "linspace")
    dpm_solver(schedule, 20, "linspace", karras=True)
ddim("linear", 20, "trailing", prediction="v")
ddim("scaled-linear", 10, "trailing", eta=0.5, prediction="sample")
ddim("linear", 10, "leading", eta=1.0, clip=True)
ddpm("linear", 7, "linspace", "fixed_large", prediction="v")
ddpm("linear", 20, "trailing", "fixed_small", prediction="sample")
ddpm("linear", 11, "published", "learned_range", clip=True)
dpm_solver("linear", 14, "trailing", prediction="v")
dpm_solver("scaled-linear", 16, "leading", prediction="sample")
dpm_solver("linear", 5, "linspace", karras=True, prediction="v")
for steps in (10, 20, 50):
    respaced(steps, "published", "ddim")
    respaced(steps, "published", "iddpm")
respaced(11, "published", "ddim", eta=1.0)
respaced(25, "ddim", "ddim")
respaced(20, "ddim", "iddpm")

euler = FlowMatchEulerDiscreteScheduler()
euler.set_timesteps(sigmas=np.linspace(1, 1 / 10, 10))
flow("euler", euler, 10, 10)
# diffusers' grid for Heun ends at sigma 0.001 before its last step, which it takes by Euler: on a grid of our own, without that step.
heun = FlowMatchHeunDiscreteScheduler()
heun.set_timesteps(8)
grid = torch.linspace(1, 0, 9, dtype=torch.float64)
heun.sigmas = torch.cat([grid[:1], grid[1:-1].repeat_interleave(2), grid[-1:]])
heun.timesteps = 1000 * heun.sigmas[:-1]
flow("heun", heun, 8, 14)

save_file(tensors, OUT, {"cases": json.dumps(cases, sort_keys=True)})
print(f"{OUT}: {len(cases)} cases, {OUT.stat().st_size} bytes")
