"""Reference values for Fewstep's spiking core, made by snnTorch, SpikingJelly and PyTorch.

Written 2026-11-23 with Python 3.11, torch 2.11.0, snntorch 1.0.0, spikingjelly 2.0.0, safetensors 0.8.0, on a CPU.
Command (from the repository root, in an environment with those packages):

    python tests/parity/spiking.py

It writes tests/parity/spiking.safetensors; tests/parity/README.md describes the tensors. The same versions give the same
file, byte for byte. Firing, surrogates, autograd, optimisers, schedules and losses are the libraries' own. What they do
not have built in enters where they document that a user may add it: the paper's surrogate (arXiv 2110.05929: a triangle of
z = m/theta - 1, height 0.3) through `surrogate.custom_surrogate` of snnTorch and `SurrogateFunctionBase` of SpikingJelly,
the learnable leak through `SimpleBaseNode.neuronal_charge` of SpikingJelly, and a soft reset that is both in the same step
and detached through the membrane which snnTorch hands to its caller. The `native` cases use nothing but what is built in.
"""

import json
import pathlib

import snntorch
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from snntorch import surrogate as st_surrogate
from spikingjelly.activation_based import neuron as sj_neuron
from spikingjelly.activation_based import surrogate as sj_surrogate

OUT = pathlib.Path(__file__).with_suffix(".safetensors")
DATE = "2026-11-23"
GAMMA = 0.3  # height of the paper's triangle
LABELS = torch.tensor([3, 1])
MARGIN = 3e-4  # smallest allowed |m / theta - 1|: rounding must not decide whether a neuron fires
FIRST_SEED = 1308  # found by searching from 0, which takes two minutes; the search goes on from here
CONVS, SPATIAL, CLASSES = (2, 4, 6), 4, 5

tensors: dict[str, torch.Tensor] = {}
cases: dict[str, dict] = {}


def put(name: str, value: torch.Tensor) -> None:
    tensors[name] = value.detach().clone().contiguous()


# --------------------------------------------------------------------------------------------------------- the network


def make_weights(seed: int) -> dict[str, torch.Tensor]:
    """conv 3x3 2->4, LIF, average pool 2, conv 3x3 4->6, LIF, linear 24->5 summed over T. No bias."""
    g = torch.Generator().manual_seed(seed)
    flat = CONVS[2] * (SPATIAL // 2) ** 2
    return {
        "conv1": torch.randn(CONVS[1], CONVS[0], 3, 3, generator=g) * 0.30,
        "conv2": torch.randn(CONVS[2], CONVS[1], 3, 3, generator=g) * 0.35,
        "fc": torch.randn(CLASSES, flat, generator=g) * 0.25,
        "image": torch.randn(2, CONVS[0], SPATIAL, SPATIAL, generator=g),
        "sequence": torch.randn(4, 2, CONVS[0], SPATIAL, SPATIAL, generator=g),
    }


class Layer:
    """One spiking layer of one library: `step(current) -> (spikes, membrane after reset)`, leaves for the gradients."""

    threshold: torch.Tensor | None = None
    leak: torch.Tensor | None = None
    raw_leak: torch.Tensor | None = None

    def sequence(self, currents: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        out = [self.step(c) for c in currents]
        return torch.stack([s for s, _ in out]), torch.stack([u for _, u in out])


class SnnTorch(Layer):
    """`snn.Leaky` with learnable threshold and beta.

    hard, none: the library's own reset ("zero" acts at the start of the next step on the same potential; the membrane
    stored here has that reset already applied). soft: "none" in the library, and the subtraction, spike detached, on the
    membrane which the caller owns; Leaky's own "subtract" either detaches but delays the reset past the leak
    (reset_delay=True) or leaves the spike attached (reset_delay=False); see own_reset_case for its forward pass.
    """

    def __init__(self, reset, theta, leak, spike_grad, dtype):
        self.reset = reset
        mechanism = {"soft": "none", "hard": "zero", "none": "none"}[reset]
        t = torch.tensor(theta, dtype=dtype)
        self.node = snntorch.Leaky(
            beta=torch.tensor(leak, dtype=dtype), threshold=t, learn_beta=True, learn_threshold=True,
            reset_mechanism=mechanism, spike_grad=None if isinstance(spike_grad, str) else spike_grad,
        )
        if spike_grad == "paper":
            custom = st_surrogate.custom_surrogate(lambda z, grad, spikes: grad * GAMMA * (1 - z.abs()).clamp(min=0))
            # `mem - threshold` arrives; dividing by the threshold (with its gradient) makes it m/theta - 1.
            self.node.spike_grad = lambda shifted: custom(shifted / self.node.threshold).to(shifted.dtype)
        self.threshold, self.leak = self.node.threshold, self.node.beta
        self.mem = None

    def step(self, current):
        mem = torch.zeros_like(current) if self.mem is None else self.mem
        spikes, mem = self.node(current, mem)
        fired = spikes.detach()
        if self.reset == "soft":
            mem = mem - self.node.threshold * fired
            self.mem, after = mem, mem
        else:
            self.mem, after = mem, mem * (1 - fired) if self.reset == "hard" else mem
        return spikes, after


class PaperTriangle(sj_surrogate.SurrogateFunctionBase):
    """SpikingJelly surrogate: receives v - threshold, differentiates as the paper's triangle of m/theta - 1."""

    class Function(torch.autograd.Function):
        @staticmethod
        def forward(ctx, z):
            ctx.save_for_backward(z)
            return sj_surrogate.heaviside(z)

        @staticmethod
        def backward(ctx, grad):
            return sj_surrogate.piecewise_quadratic_backward(grad * GAMMA, ctx.saved_tensors[0], 1.0)[0]

    def __init__(self, threshold):
        super().__init__(spiking=True)
        self.threshold = threshold

    def forward(self, x):
        return self.Function.apply(x / self.threshold)


class LearnableLif(sj_neuron.SimpleBaseNode):
    """The charge equation of section 1.1; firing and reset are SimpleBaseNode's."""

    def __init__(self, theta, leak, reset, dtype):
        threshold = torch.nn.Parameter(torch.tensor(theta, dtype=dtype))
        super().__init__(
            v_threshold=threshold, v_reset={"soft": None, "hard": 0.0}[reset],
            surrogate_function=PaperTriangle(threshold), detach_reset=True, step_mode="s",
        )
        self.leak = torch.nn.Parameter(torch.tensor(leak, dtype=dtype))

    def neuronal_charge(self, x):
        self.v = self.leak * self.v + x


class SpikingJellyPaper(Layer):
    def __init__(self, reset, theta, leak, _spike_grad, dtype):
        self.node = LearnableLif(theta, leak, reset, dtype)
        self.threshold, self.leak = self.node.v_threshold, self.node.leak

    def step(self, current):
        return self.node(current), self.node.v


class SpikingJellyNative(Layer):
    """`ParametricLIFNode` (leak = 1 - sigmoid(w)) or, at leak 1, `IFNode`, in multi-step mode with a built-in surrogate."""

    def __init__(self, reset, theta, leak, surrogate, _dtype):
        options = dict(
            v_threshold=theta, v_reset={"soft": None, "hard": 0.0}[reset], surrogate_function=surrogate,
            detach_reset=True, step_mode="m", store_v_seq=True,
        )
        if leak == 1.0:
            self.node = sj_neuron.IFNode(**options)
        else:
            self.node = sj_neuron.ParametricLIFNode(init_tau=1 / (1 - leak), decay_input=False, **options)
            self.raw_leak = self.node.w

    def sequence(self, currents):
        spikes = self.node(torch.stack(currents))
        return spikes, self.node.v_seq


def run(layers, weights, x, timesteps, dtype=torch.float32):
    """Forward and backward. `x` is [B, C, H, W] (static) or [T, B, C, H, W]."""
    w = {k: weights[k].to(dtype).clone().requires_grad_() for k in ("conv1", "conv2", "fc")}
    x = x.to(dtype).clone().requires_grad_()
    frames = [x] * timesteps if x.dim() == 4 else list(x)
    s1, u1 = layers[0].sequence([F.conv2d(f, w["conv1"], padding=1) for f in frames])
    s2, u2 = layers[1].sequence([F.conv2d(F.avg_pool2d(s, 2), w["conv2"], padding=1) for s in s1])
    logits = sum(F.linear(s.flatten(1), w["fc"]) for s in s2)
    loss = F.cross_entropy(logits, LABELS)
    loss.backward()
    out = {
        "spikes1": s1, "membrane1": u1, "spikes2": s2, "membrane2": u2, "logits": logits, "loss": loss,
        "grad.conv1": w["conv1"].grad, "grad.conv2": w["conv2"].grad, "grad.fc": w["fc"].grad, "grad.input": x.grad,
    }
    zero = torch.zeros((), dtype=dtype)
    for key in ("threshold", "leak"):
        leaves = [getattr(layer, key) for layer in layers]
        if all(leaf is not None for leaf in leaves):
            out[f"grad.{key}"] = torch.stack([zero if p.grad is None else p.grad for p in leaves])
    raw = [layer.raw_leak for layer in layers]
    if all(leaf is not None for leaf in raw):
        # leak = 1 - sigmoid(w), so dL/dleak = -dL/dw / (sigmoid(w) (1 - sigmoid(w)))
        out["grad.leak"] = torch.stack([-p.grad / (p.sigmoid() * (1 - p.sigmoid())) for p in raw]).detach()
    return {k: v.detach() for k, v in out.items()}


def potentials_before_reset(out, reset, thetas):
    """m of each layer, from what was stored (a hard reset hides m where a neuron fired: those elements are dropped)."""
    for n, theta in zip((1, 2), thetas):
        s, u = out[f"spikes{n}"].double(), out[f"membrane{n}"].double()
        if reset == "soft":
            yield (u + theta * s) / theta - 1
        elif reset == "hard":
            yield u[s == 0] / theta - 1
        else:
            yield u / theta - 1


class Unusable(Exception):
    """The seed puts a potential too near a threshold, or a layer is silent or saturated."""


def check(name, out, reset, thetas, half_width=None):
    for z in potentials_before_reset(out, reset, thetas):
        if z.abs().min() < MARGIN:
            raise Unusable(f"{name}: potential within {MARGIN} of the threshold")
        if half_width and (z.abs() - half_width).abs().min() < MARGIN:
            raise Unusable(f"{name}: potential at the edge of the rectangle")
    for n in (1, 2):
        rate = out[f"spikes{n}"].float().mean()
        # Without reset every neuron that crosses once goes on firing.
        if not 0.08 <= rate <= (0.75 if reset == "none" else 0.55):
            raise Unusable(f"{name}: layer {n} fires at rate {rate:.3f}")


def add_case(name, out, thetas, leaks, dtype=torch.float32, **meta):
    for key, value in out.items():
        put(f"case/{name}/{key}", value.to(torch.uint8) if key.startswith("spikes") else value.to(dtype))
    put(f"case/{name}/threshold", torch.tensor(thetas, dtype=dtype))
    put(f"case/{name}/leak", torch.tensor(leaks, dtype=dtype))
    cases[name] = {"thresholds": thetas, "leaks": leaks, "dtype": str(dtype).removeprefix("torch."),
                   "reset_spike_in_backward": "detached", **meta}


def own_reset_case(weights, thetas, leaks):
    """snn.Leaky's own same-step subtraction, forward only (its backward goes through the spike), T=5.

    A residual above theta would make Leaky subtract again before it integrates: such seeds are refused.
    """
    name = "snntorch/soft-own-reset/T5"
    nodes = [snntorch.Leaky(beta=b, threshold=t, reset_delay=False) for t, b in zip(thetas, leaks)]
    mems = [torch.zeros(()), torch.zeros(())]
    out = {key: [] for key in ("spikes1", "membrane1", "spikes2", "membrane2")}
    with torch.no_grad():
        for _ in range(5):
            current = F.conv2d(weights["image"], weights["conv1"], padding=1)
            for i in range(2):
                s, mems[i] = nodes[i](current, mems[i].expand_as(current))
                if (mems[i] > thetas[i]).any():
                    raise Unusable(f"{name}: residual above the threshold")
                out[f"spikes{i + 1}"].append(s)
                out[f"membrane{i + 1}"].append(mems[i])
                current = F.conv2d(F.avg_pool2d(s, 2), weights["conv2"], padding=1) if i == 0 else None
    out = {key: torch.stack(steps) for key, steps in out.items()}
    check(name, out, "soft", thetas)
    add_case(name, out, thetas, leaks, lib="snntorch", reset="soft", timesteps=5, input="image")


PAPER = {"surrogate": "triangular", "gamma": GAMMA, "surrogate_argument": "m / theta - 1"}
LIBRARIES = {"snntorch": SnnTorch, "spikingjelly": SpikingJellyPaper}


def paper_case(name, lib, reset, weights, x, timesteps, thetas, leaks, dtype=torch.float32):
    layers = [LIBRARIES[lib](reset, t, b, "paper", dtype) for t, b in zip(thetas, leaks)]
    out = run(layers, weights, x, timesteps, dtype)
    check(name, out, reset, thetas)
    add_case(name, out, thetas, leaks, dtype, lib=lib, reset=reset, timesteps=timesteps,
             input="image" if x.dim() == 4 else "sequence", **PAPER)
    return out


def neuron_cases(seed):
    """Every neuron case for one seed; Unusable when a potential comes too near a threshold."""
    cases.clear()
    for key in [k for k in tensors if k.startswith(("case/", "weights/"))]:
        del tensors[key]
    weights = make_weights(seed)
    image, sequence = weights["image"], weights["sequence"]
    thetas, leaks = [0.9, 0.35], [0.85, 0.95]
    deviation = 0.0
    for lib in LIBRARIES:
        for reset in ("soft", "hard"):
            for t in range(1, 6):
                single = paper_case(f"{lib}/{reset}/T{t}", lib, reset, weights, image, t, thetas, leaks)
            if reset == "hard":
                continue
            double = paper_case(f"{lib}/soft-f64/T5", lib, reset, weights, image, 5, thetas, leaks, torch.float64)
            for key, value in double.items():
                error = ((single[key].double() - value).abs().max() / value.abs().max().clamp(min=1e-12)).item()
                deviation = max(deviation, error)
        paper_case(f"{lib}/soft-sequence/T4", lib, "soft", weights, sequence, 4, thetas, leaks)
        paper_case(f"{lib}/soft-if/T5", lib, "soft", weights, image, 5, thetas, [1.0, 1.0])
    own_reset_case(weights, [1.7, 0.5], leaks)
    paper_case("snntorch/none/T3", "snntorch", "none", weights, image, 3, [1.6, 0.6], leaks)

    # SpikingJelly untouched: its surrogates take v - theta. With alpha = a/theta the derivative with respect to v is the
    # paper's form with unit gamma: (1/theta) f(m/theta - 1). The threshold is a plain number there, so it has no gradient.
    built_in = {
        "triangular": (sj_surrogate.PiecewiseQuadratic, 1.0, {"gamma": 1.0}),
        "rectangular": (sj_surrogate.Rect, 0.8, {"width": 1 / 0.8, "gamma": 1.0}),
        "sigmoid": (sj_surrogate.Sigmoid, 4.0, {"alpha": 4.0}),
        "arctan": (sj_surrogate.ATan, 2.0, {"alpha": 2.0}),
    }
    for kind, (cls, a, parameters) in built_in.items():
        for reset, beta in (("soft", leaks), ("hard", leaks), ("soft-if", [1.0, 1.0])):
            if reset != "soft" and kind != "triangular":
                continue
            plain = reset.split("-")[0]
            layers = [SpikingJellyNative(plain, t, b, cls(alpha=a / t), None) for t, b in zip(thetas, beta)]
            out = run(layers, weights, image, 3)
            name = f"spikingjelly/{reset}-native-{kind}/T3"
            check(name, out, plain, thetas, half_width=0.5 / a if kind == "rectangular" else None)
            add_case(name, out, thetas, beta, lib="spikingjelly", reset=plain, timesteps=3, input="image",
                     surrogate=kind, library_surrogate=f"{cls.__name__}(alpha={a}/theta)",
                     surrogate_argument="m / theta - 1 (library: v - theta, alpha divided by theta)", **parameters)

    # snnTorch untouched: threshold 1, where m - theta and m/theta - 1 are the same number; hard reset ("zero") is its own.
    ones = [1.0, 1.0]
    louder = dict(weights, conv1=weights["conv1"] * 1.1, conv2=weights["conv2"] * 2.5)
    put("weights/conv1-louder", louder["conv1"])
    put("weights/conv2-louder", louder["conv2"])
    for kind, function, parameters in (
        ("fast-sigmoid", st_surrogate.fast_sigmoid(slope=5), {"slope": 5.0}),
        ("sigmoid", st_surrogate.sigmoid(slope=4), {"alpha": 4.0}),
        ("arctan", st_surrogate.atan(alpha=2.0), {"alpha": 2.0}),
    ):
        layers = [SnnTorch("hard", 1.0, b, function, torch.float32) for b in leaks]
        out = run(layers, louder, image, 3)
        # d(m - theta)/dtheta is -1, d(m/theta - 1)/dtheta is -m/theta^2: not comparable.
        out.pop("grad.threshold")
        name = f"snntorch/hard-native-{kind}/T3"
        check(name, out, "hard", ones)
        add_case(name, out, ones, leaks, lib="snntorch", reset="hard", timesteps=3, input="image", surrogate=kind,
                 weights="louder", surrogate_argument="m - theta (theta = 1)", **parameters)
    for key in ("conv1", "conv2", "fc", "image", "sequence"):
        put(f"weights/{key}", weights[key])
    put("weights/labels", LABELS)
    return deviation


# ------------------------------------------------------------------------------------------------- surrogate derivatives


def surrogate_tables():
    # No point lies on a kink (0, +-0.5, +-1 ...): libraries differ there.
    z = torch.linspace(-2.43, 2.47, 50)
    put("surrogate/z", z)
    functions = {
        "snntorch/fast_sigmoid/slope=25": st_surrogate.fast_sigmoid(slope=25),
        "snntorch/fast_sigmoid/slope=5": st_surrogate.fast_sigmoid(slope=5),
        "snntorch/atan/alpha=2": st_surrogate.atan(alpha=2.0),
        "snntorch/atan/alpha=1": st_surrogate.atan(alpha=1.0),
        "snntorch/sigmoid/slope=4": st_surrogate.sigmoid(slope=4),
        "snntorch/triangular/threshold=1": st_surrogate.triangular(threshold=1),
        "spikingjelly/Sigmoid/alpha=4": sj_surrogate.Sigmoid(alpha=4.0),
        "spikingjelly/ATan/alpha=2": sj_surrogate.ATan(alpha=2.0),
        "spikingjelly/PiecewiseQuadratic/alpha=1": sj_surrogate.PiecewiseQuadratic(alpha=1.0),
        "spikingjelly/PiecewiseQuadratic/alpha=2": sj_surrogate.PiecewiseQuadratic(alpha=2.0),
        "spikingjelly/Rect/alpha=1": sj_surrogate.Rect(alpha=1.0),
        "spikingjelly/Rect/alpha=0.5": sj_surrogate.Rect(alpha=0.5),
        "spikingjelly/SuperSpike/alpha=1": sj_surrogate.SuperSpike(alpha=1.0),
        "spikingjelly/SoftSign/alpha=2": sj_surrogate.SoftSign(alpha=2.0),
    }
    for name, function in functions.items():
        x = z.clone().requires_grad_()
        function(x).sum().backward()
        put(f"surrogate/{name}", x.grad)


# --------------------------------------------------------------------------------------------- optimisers and schedules


def optimizers():
    g = torch.Generator().manual_seed(7)
    initial = torch.randn(7, generator=g)
    # A burst that fades: amsgrad's running maximum must matter.
    grads = torch.randn(10, 7, generator=g) * torch.tensor([1.0, 3, 0.5, 0.2, 0.1, 0.05, 1, 0.02, 0.01, 0.3])[:, None]
    put("optim/initial", initial)
    put("optim/grads", grads)
    makers = {
        "adam_amsgrad": lambda p: torch.optim.Adam(p, lr=1e-2, amsgrad=True, foreach=False),
        "adam": lambda p: torch.optim.Adam(p, lr=1e-2, foreach=False),
        "adam_amsgrad_wd": lambda p: torch.optim.Adam(p, lr=1e-2, weight_decay=5e-4, amsgrad=True, foreach=False),
        "sgd": lambda p: torch.optim.SGD(p, lr=1e-2, momentum=0.9, weight_decay=5e-4, foreach=False),
    }
    for name, make in makers.items():
        for suffix, dtype in (("", torch.float32), ("-f64", torch.float64)):
            p = torch.nn.Parameter(initial.to(dtype, copy=True))
            optimizer = make([p])
            after = []
            for step in grads.to(dtype):
                p.grad = step.clone()
                optimizer.step()
                after.append(p.detach().clone())
            put(f"optim/{name}{suffix}", torch.stack(after))


def schedules():
    def values(make, epochs):
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1e-2)
        scheduler = make(optimizer)
        out = []
        for _ in range(epochs):
            out.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            scheduler.step()
        return torch.tensor(out, dtype=torch.float64)

    epochs = 37  # 60, 80, 90 % are no whole numbers: the milestones are int(fraction * epochs) = 22, 29, 33
    milestones = [int(f * epochs) for f in (0.6, 0.8, 0.9)]
    put("schedule/multistep", values(lambda o: torch.optim.lr_scheduler.MultiStepLR(o, milestones, gamma=0.2), epochs))
    put("schedule/cosine", values(lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, T_max=20), 20))
    put("schedule/cosine-min", values(lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, 16, eta_min=1e-4), 16))


# -------------------------------------------------------------------------------------- batch-norm fold, percentile, loss


def batch_norm_fold():
    g = torch.Generator().manual_seed(11)
    conv = torch.nn.Conv2d(3, 4, 3, padding=1)
    norm = torch.nn.BatchNorm2d(4)
    with torch.no_grad():
        for p in (conv.weight, conv.bias, norm.bias, norm.running_mean):
            p.copy_(torch.randn(p.shape, generator=g) * 0.5)
        norm.weight.copy_(torch.rand(4, generator=g) + 0.5)
        norm.running_var.copy_(torch.rand(4, generator=g) * 3 + 0.01)
        x = torch.randn(2, 3, 5, 5, generator=g)
        conv.eval(), norm.eval()
        folded = torch.nn.utils.fuse_conv_bn_eval(conv, norm)
        for name, value in {
            "input": x, "weight": conv.weight, "bias": conv.bias, "gamma": norm.weight, "beta": norm.bias,
            "mean": norm.running_mean, "var": norm.running_var, "eps": torch.tensor([norm.eps], dtype=torch.float64),
            "output": norm(conv(x)), "folded_weight": folded.weight, "folded_bias": folded.bias,
            "folded_output": folded(x),
        }.items():
            put(f"fold/{name}", value)


def percentile():
    g = torch.Generator().manual_seed(13)
    x = torch.randn(3, 4, 9, 11, generator=g)  # n = 1188: p/100 (n - 1) is 1068.3 and 1183.4, no rounding ties
    put("percentile/input", x)
    for p in (90.0, 99.7):
        k = 1 + round(p / 100 * (x.numel() - 1))
        put(f"percentile/p={p:g}", torch.kthvalue(x.flatten(), k).values.reshape(1))
        put(f"percentile/k={p:g}", torch.tensor([k]))


def losses():
    g = torch.Generator().manual_seed(17)
    student, teacher = torch.randn(4, 6, generator=g) * 2, torch.randn(4, 6, generator=g) * 2
    labels = torch.tensor([0, 5, 2, 2])
    put("loss/student", student)
    put("loss/teacher", teacher)
    put("loss/labels", labels)
    for smoothing in (0.0, 0.1):
        s = student.clone().requires_grad_()
        value = F.cross_entropy(s, labels, label_smoothing=smoothing)
        value.backward()
        put(f"loss/cross_entropy/smoothing={smoothing:g}", value.reshape(1))
        put(f"loss/cross_entropy/smoothing={smoothing:g}/grad", s.grad)
    for tau in (1.0, 4.0):
        s = student.clone().requires_grad_()
        value = tau**2 * F.kl_div(
            F.log_softmax(s / tau, dim=1), F.softmax(teacher / tau, dim=1), reduction="batchmean"
        )
        value.backward()
        put(f"loss/distill/tau={tau:g}", value.reshape(1))
        put(f"loss/distill/tau={tau:g}/grad", s.grad)


def main() -> None:
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    for seed in range(FIRST_SEED, 20_000):
        try:
            deviation = neuron_cases(seed)
            break
        except Unusable:
            continue
    else:
        raise SystemExit("no seed keeps every potential away from its threshold")
    surrogate_tables()
    optimizers()
    schedules()
    batch_norm_fold()
    percentile()
    losses()
    versions = {"torch": torch.__version__.split("+")[0], "snntorch": "1.0.0", "spikingjelly": "2.0.0"}
    about = {
        "made_by": "python tests/parity/spiking.py", "date": DATE, "versions": versions, "seed": seed, "cases": cases,
    }
    # One key: the order of several is not fixed by the format, and the file must come out the same each time.
    save_file(dict(sorted(tensors.items())), OUT, metadata={"fewstep": json.dumps(about, sort_keys=True)})
    print(f"{OUT.name}: {len(tensors)} tensors, {OUT.stat().st_size} bytes, seed {seed}, {len(cases)} cases")
    print(f"largest deviation of float32 from float64, relative to each tensor's largest element: {deviation:.1e}")
    for name in sorted(cases):
        rates = [tensors[f"case/{name}/spikes{n}"].float().mean().item() for n in (1, 2)]
        print(f"  {name}: spike rates {rates[0]:.2f} {rates[1]:.2f}")


if __name__ == "__main__":
    main()
