"""A model on paper of fewstep on 8, 64 and 512 GPUs: the tables of docs/scaling.md.

Nothing here was measured. What is exact: shapes, parameters, bytes, buckets, steps of a message through a ring or tree. Everything in
seconds rests on the constants below, each with its source or the word "assumed".

    python3 docs/scaling.py                           prints the tables
    python3 docs/scaling.py --check docs/scaling.md   fails with a sentence where the page has other tables
    python3 docs/scaling.py --write docs/scaling.md   puts them there
"""

import sys
from math import ceil, log2

US, MS = 1e-6, 1e-3
KB, MB, GB = 1e3, 1e6, 1e9
MIB = 1 << 20

# --- The GPU: H100 SXM, 80 GB --------------------------------------------------------------------------------------------------------
# Peaks: NVIDIA's data sheet, without sparsity.
FLOPS = {"float32": 66.9e12, "tf32": 494.7e12, "bfloat16": 989.4e12}
# Share of the peak that matrix products and convolutions reach. Assumed. At 0.30 of TF32 the model below samples DiT-XL/2 at 123 TFLOP/s;
# ../shared/specs/harmonica.md infers about 115 from a published latency.
REACHED = {"float32": 0.70, "tf32": 0.30, "bfloat16": 0.30}
MEMORY = 80 * GB
HBM = 3.35e12 * 0.75  # data sheet; the share is assumed
LAUNCH = 4 * US  # between two kernels of libtorch without graphs; assumed

# --- The network ---------------------------------------------------------------------------------------------------------------------
GPUS_A_NODE = 8
# A ring over NVLink 4 with NVSwitch: 450 GB/s one way, 370 reached (NVIDIA/nccl-tests #212, by NCCL's author). NVLS is left out.
NVLINK_BUS = 370 * GB
# A NIC of 400 Gb/s Ethernet with RoCE and GPUDirect: 50 GB/s, of which 0.8 is reached: 320 of 400 GB/s on 4 nodes of 8 H100 and 8 such
# NICs (NVIDIA/nccl #1221). Others got 216 (#2409), and TCP instead of RoCE gets far less.
NIC_BUS = 50 * GB * 0.8
# Latencies in NCCL's own cost model, src/graph/tuning.cc at 5067397 (2026-06): LL for small messages, Simple for large ones.
BASE = {"ll": {"tree": 6.8 * US, "ring": 6.6 * US}, "simple": {"tree": 8.4 * US, "ring": 8.4 * US}}
NVLINK_HOP = {"ll": {"tree": 0.6 * US, "ring": 0.6 * US}, "simple": {"tree": 4.0 * US, "ring": 3.4 * US}}
NET_HOP = {"ll": {"tree": 5.0 * US, "ring": 2.7 * US}, "simple": {"tree": 14 * US, "ring": 14 * US}}
TREE_SHARE = 0.92  # ibid.: a tree's bus against a ring's
TREE_MIDDLE = 0.7  # ibid.: trees fall short at 1 to 128 MiB, by 0.5 to 0.8
RING_PLATEAU = 1.4  # ibid.: latency of a ring over several nodes
LL_BUS = {True: 141 * GB, False: 19 * GB}  # ibid.: LL in one node, in several
CALL = 20 * US  # launch and wait, beside that model: 47 us on 2 nodes of 8 (NVIDIA/nccl #1244) against 25 there
# A hop of Gloo over TCP, two threads woken. Assumed; 177 us in pytorch/gloo #158 (2018).
GLOO_HOP = 25 * US
STORE_RATE = 20e3  # requests a second that one TCPStore answers; assumed
NORMALS = 100e6  # normal numbers a second that one core draws (ChaCha8, ziggurat); assumed

# --- fewstep, at db7faf7 and the working tree of 2026-11-25 -------------------------------------------------------------------------------
FIRST_BUCKET, BUCKET = 1 * MIB, 25 * MIB  # fewstep-torch/src/group/reducer.rs
SIGN_EVERY, SEE_OUT_EVERY = 0.4, 0.05  # seconds; fewstep-torch/src/group/life.rs
VALIDATION_BATCH, VALIDATION_ELEMENTS = 250, 100_000_000  # fewstep-iir/src/evaluate.rs
VALIDATION_IMAGES = round(0.02 * 1_281_167)  # configs/iir/imagenet-vgg16.toml
TRAINING_IMAGES = 1_281_167 - VALIDATION_IMAGES
# Optimiser: fused Adam with AMSGrad reads 5 numbers a parameter and writes 4 (fewstep-torch/cpp/optim.cpp).
ADAM_BYTES = 36
ZERO_BYTES, ACCUMULATE_BYTES, COPY_BYTES = 4, 12, 8  # zero_grad; AccumulateGrad; gradient to bucket, and bucket to gradient


def neuron_bytes(steps):
    """Memory traffic of one neuron over all timesteps, forward and backward: the ATen operators that CUDA runs, one by one
    (fewstep-torch/cpp/neuron.cpp, soft reset, triangular surrogate, float32)."""
    forward = 46 + 66 * (steps - 1)
    backward = 178 + 224 * (steps - 1)
    return forward, backward


def neuron_kernels(steps):
    return 6 + 6 * (steps - 1), 23 + 24 * (steps - 1)


FUSED_NEURON_BYTES = (12, 12)  # a timestep, if one kernel did it: reads a current, writes spike and potential; and back

# --- Networks ------------------------------------------------------------------------------------------------------------------------
VGG16 = "64 64 A 128 128 A 256 256 256 A 512 512 512 A 512 512 512"


class Unit:
    def __init__(self, name, kind, weight, bias, outputs, positions, active):
        self.name, self.kind, self.weight, self.bias = name, kind, weight, bias
        self.channels, self.neurons, self.active = outputs, outputs * positions, active
        self.macs = weight * positions
        self.pool, self.dropout = False, active


def vgg16(side, classes, last_pool):
    """As fewstep-spiking/src/zoo/vgg.rs, with batch norm folded: convolutions have biases, fully connected layers none."""
    channels, units = 3, []
    for token in VGG16.split() + ["A"] * last_pool:
        if token == "A":
            units[-1].pool, units[-1].dropout = True, False
            side //= 2
        else:
            outputs = int(token)
            name = f"conv{len(units) + 1}"
            units.append(Unit(name, "conv", 9 * channels * outputs, outputs, outputs, side * side, True))
            channels = outputs
    inputs = channels * side * side
    for i, outputs in enumerate([4096, 4096, classes]):
        units.append(Unit(f"fc{i + 1}", "fc", inputs * outputs, 0, outputs, 1, i < 2))
        inputs = outputs
    return units


def parameters(units):
    """Names and numbers in the order of Network::parameters, one threshold and leak a layer (configs/iir/*-vgg16.toml)."""
    found = []
    for u in units:
        found.append((f"{u.name}.weight", u.weight))
        if u.bias:
            found.append((f"{u.name}.bias", u.bias))
        if u.active:
            found += [(f"{u.name}.threshold", 1), (f"{u.name}.leak", 1)]
    return found


def buckets(sizes):
    """c10d's compute_bucket_assignment_by_size of the parameters from the last to the first (fewstep-torch/cpp/c10d.cpp): indices, first
    sent first."""
    limits, found, bucket, size = [FIRST_BUCKET, BUCKET], [], [], 0
    for i, numbers in reversed(list(enumerate(sizes))):
        bucket.append(i)
        size += 4 * numbers
        if size >= limits[0]:
            found.append(bucket)
            bucket, size = [], 0
            limits = limits[1:] or limits
    if bucket:
        found.append(bucket)
    return found


IMAGENET, CIFAR = vgg16(224, 1000, True), vgg16(32, 10, False)


def total(units, what):
    return sum(getattr(u, what) for u in units)


# What others count: torchvision's VGG16 has 138,357,544 parameters, 9,192 of them biases of fully connected layers; MACs by the spec.
assert total(IMAGENET, "weight") + total(IMAGENET, "bias") == 138_357_544 - 9_192
assert round(total(IMAGENET, "macs") / 1e10, 4) == 1.5470
assert round(total(CIFAR, "macs") / 1e8, 4) == 3.3840
assert total(CIFAR, "weight") + total(CIFAR, "bias") == 39_921_472
# What Python's torch 2.11 answers for the same shapes: _compute_bucket_assignment_by_size(params[::-1], [1 << 20, 25 << 20], [], places).
for units, expected in (
    (IMAGENET, [16384000, 67108872, 411041800, 28317720, 28319784, 2221352]),
    (CIFAR, [67272712, 33554440, 28317720, 28319784, 2221352]),
):
    sizes = [n for _, n in parameters(units)]
    assert [4 * sum(sizes[i] for i in bucket) for bucket in buckets(sizes)] == expected


# --- NCCL ----------------------------------------------------------------------------------------------------------------------------
class Network:
    def __init__(self, name, short, gpus_a_node, nics_a_node):
        self.name, self.short, self.gpus, self.nics = name, short, gpus_a_node, nics_a_node


RAILS = Network("NVLink in the node, a NIC for each GPU", "8 NICs", GPUS_A_NODE, GPUS_A_NODE)
SHARED = Network("NVLink in the node, one NIC for all 8 GPUs", "1 NIC", GPUS_A_NODE, 1)
ETHERNET = Network("Ethernet only: each GPU alone in its node", "no NVLink", 1, 1)
NETWORKS = [RAILS, SHARED, ETHERNET]
WORLDS = [8, 64, 512]


def all_reduce(size, n, network):
    """Seconds of NCCL's all_reduce: the fastest of ring and tree, LL and Simple, by NCCL's cost model."""
    if n == 1:
        return 0.0
    inside = min(network.gpus, n)
    nodes = n // inside
    bus = NVLINK_BUS if nodes == 1 else network.nics * NIC_BUS if inside == 1 else min(NVLINK_BUS, network.nics * NIC_BUS)
    best = float("inf")
    for protocol in ("ll", "simple"):
        nvlink, net, base = NVLINK_HOP[protocol], NET_HOP[protocol], BASE[protocol]
        between = 2 * (nodes - 1)
        latency = (2 * (n - 1) - between) * nvlink["ring"] + between * net["ring"]
        speed = bus if protocol == "simple" else min(bus / 2, LL_BUS[nodes == 1])
        if nodes > 1 and protocol == "simple":
            latency *= RING_PLATEAU
        best = min(best, base["ring"] + latency + 2 * (n - 1) / n * size / speed)
        latency = 2 * ((inside - 1) * nvlink["tree"] + log2(nodes) * net["tree"])
        speed = bus * TREE_SHARE if protocol == "simple" else min(bus * TREE_SHARE / 3.8, LL_BUS[nodes == 1])
        if MIB <= size <= 128 * MIB:
            speed *= TREE_MIDDLE
        best = min(best, base["tree"] + latency + 2 * size / speed)
    return CALL + best


def gloo(n):
    """A number from memory: c10d asks Gloo for its default, a ring, in which it goes around twice."""
    return 2 * (n - 1) * GLOO_HOP


# --- A step of VGG16 -----------------------------------------------------------------------------------------------------------------
class Work:
    """How a rank computes: timesteps, and whether products are bfloat16 and the neuron one kernel."""

    def __init__(self, units, steps, fast=False):
        self.units, self.steps, self.fast = units, steps, fast

    def times(self, i):
        """Timesteps that a layer's product sees: the first layer's current stands still, the read-out gets the sum."""
        return 1 if i == 0 or not self.units[i].active else self.steps

    def product(self, i, images):
        """One product of a layer: arithmetic, or memory where that takes longer."""
        u = self.units[i]
        kind = "bfloat16" if self.fast else "tf32" if u.kind == "conv" else "float32"
        samples = images * self.times(i)
        inputs = u.weight // u.channels if u.kind == "fc" else self.units[i - 1].neurons // (4 if self.units[i - 1].pool else 1) if i else 0
        moved = (2 if self.fast else 4) * (u.weight + samples * (inputs + u.neurons))
        return max(2 * u.macs * samples / (FLOPS[kind] * REACHED[kind]), moved / HBM)

    def after(self, i, images):
        """Neurons, pool or dropout of a layer, forward and backward: seconds and kernels."""
        u = self.units[i]
        if not u.active:
            return (0.0, 0), (0.0, 0)
        if self.fast:
            forward, backward = (b * self.steps + 12 * self.steps for b in FUSED_NEURON_BYTES)  # and the casts
            kernels = (3, 3)
        else:
            forward, backward = neuron_bytes(self.steps)
            kernels = neuron_kernels(self.steps)
        extra = 5 * self.steps if u.pool else 8 * self.steps + 8 if u.dropout else 0
        each = u.neurons * images / HBM
        return ((forward + extra) * each, kernels[0] + 3), ((backward + extra) * each, kernels[1] + 1)

    def masks(self, batch):
        """Every rank fills and draws the dropout masks of the whole batch (Network::after): 12 bytes an element."""
        return 12 * batch * mask_elements(self.units) / HBM

    def forward(self, images):
        seconds = kernels = 0
        for i in range(len(self.units)):
            (s, k), _ = self.after(i, images)
            seconds += s + self.product(i, images)
            kernels += k + 2
        return max(seconds, kernels * LAUNCH)

    def backward(self, images, reduces):
        """When each parameter's gradient is ready, and when backward ends. A layer waits for its kernels or for their launch."""
        ready, now = {}, 0.0
        for i in reversed(range(len(self.units))):
            u = self.units[i]
            _, (s, k) = self.after(i, images)
            now += max(s, k * LAUNCH)
            ready[f"{u.name}.threshold"] = ready[f"{u.name}.leak"] = now
            bytes_ = (ACCUMULATE_BYTES + (COPY_BYTES if reduces else 0)) * u.weight
            products = 1 if i == 0 else 2
            now += max(products * self.product(i, images) + bytes_ / HBM, (products + 4) * LAUNCH)
            ready[f"{u.name}.weight"] = ready[f"{u.name}.bias"] = now
        return ready, now


def mask_elements(units):
    return sum(u.neurons for u in units if u.dropout)


def send(ready, end, names, n, network):
    """The reducer: buckets leave in order, one at a time, when all their gradients are there. (start, end) of each, and the end of
    the map of used parameters that find_unused_parameters sends behind them."""
    sizes = [s for _, s in names]
    free, sent, turn = 0.0, [], 0.0
    for bucket in buckets(sizes):
        turn = max([turn] + [ready[names[i][0]] for i in bucket])
        start = max(turn, free)
        free = start + all_reduce(4 * sum(sizes[i] for i in bucket), n, network)
        sent.append((turn, start, free))
    return sent, max(end, free) + all_reduce(4 * len(names), n, network)


class Step:
    """An optimiser step of `accumulate` batches of `batch` images; `mended` as it could be: each rank draws the masks of its own images
    only, and the loss goes by NCCL."""

    def __init__(self, work, batch, accumulate, n, network, mended=False):
        names = parameters(work.units)
        count = sum(s for _, s in names)
        images = max(1, ceil(batch / n))
        _, plain = work.backward(images, False)
        ready, last = work.backward(images, n > 1)
        optimiser = (ADAM_BYTES + ZERO_BYTES + (COPY_BYTES if n > 1 else 0)) * count / HBM + (len(names) * 3) * LAUNCH
        self.own = accumulate * work.forward(images) + (accumulate - 1) * plain + last + optimiser
        self.masks = accumulate * work.masks(images if mended else batch)
        self.loss = accumulate * (all_reduce(8, n, network) if mended else gloo(n)) if n > 1 else 0.0
        self.gradients = send(ready, last, names, n, network)[1] - last if n > 1 else 0.0
        self.seconds = self.own + self.masks + self.loss + self.gradients


def neuron_share():
    """What neurons take of a rank's own work on ImageNet at T = 5 with 16 images, pools and dropout included."""
    work = Work(IMAGENET, 5)
    passes = [work.after(i, 16) for i in range(len(work.units))]
    return sum(f[0] + b[0] for f, b in passes) / Step(work, 128, 1, 8, RAILS).own


assert round(neuron_share(), 1) == 0.7  # docs/scaling.md says so


# --- SDT on DiT-XL/2 -----------------------------------------------------------------------------------------------------------------
DEPTH, WIDTH, TOKENS, HIDDEN, CALLS = 28, 1152, 256, 4 * 1152, 10
ATTENTION = 4 * TOKENS * WIDTH**2 + 2 * TOKENS**2 * WIDTH
MLP = 2 * TOKENS * WIDTH * HIDDEN
REST = TOKENS * WIDTH * 4 * 12 + WIDTH * (256 + WIDTH) + 6 * WIDTH**2 * DEPTH + 2 * WIDTH**2
DIT = (
    WIDTH * 17 + WIDTH * 257 + WIDTH * (WIDTH + 1) + 1001 * WIDTH
    + DEPTH * ((WIDTH + 1) * (6 + 3 + 1) * WIDTH + HIDDEN * (WIDTH + 1) + WIDTH * (HIDDEN + 1))
    + 2 * WIDTH * (WIDTH + 1) + 32 * (WIDTH + 1)
)
assert DIT + TOKENS * WIDTH == 675_129_632  # what the authors' code prints, the fixed position embedding included; 675M in the paper
assert round((REST + DEPTH * (ATTENTION + MLP)) / 1e9, 1) == 118.6  # the spec
MESSAGE = 4 * (2 * DEPTH + 2)
# Traffic of what is no product, bytes for a number of a sub-module's output: norm, modulation, attention's copies, GELU, mix, gate.
TEACHER_BYTES, STUDENT_BYTES, BACKWARD_BYTES = 51, 75, 150
SDT_KERNELS = DEPTH * (22 + 28 + 45) + 100  # teacher, student, backward
BACKWARD = DEPTH * (MLP + 4 * TOKENS * WIDTH**2 + 5 * TOKENS**2 * WIDTH) - ATTENTION  # activations only: the model is frozen


class Sdt:
    """A denoising step of `latents`, and of a trajectory's noise its share."""

    def __init__(self, latents, kind, n, network):
        samples = 2 * ceil(latents / n)
        macs = REST + 2 * DEPTH * (ATTENTION + MLP) - ATTENTION + BACKWARD
        moved = 2 * DEPTH * TOKENS * WIDTH * (TEACHER_BYTES + STUDENT_BYTES + BACKWARD_BYTES)
        products = 2 * macs / (FLOPS[kind] * REACHED[kind])
        weights = 3 * 4 * DIT / HBM  # three passes read them
        self.own = max(samples * (products + moved / HBM), weights, SDT_KERNELS * LAUNCH)
        self.message = all_reduce(MESSAGE, n, network)
        self.noise = latents * 4 * 32 * 32 / NORMALS / (CALLS - 1)
        self.proxy = gloo(n) / 500 if n > 1 else 0.0
        self.seconds = self.own + self.message + self.noise + self.proxy


# The sampling rate that REACHED names.
_forward = 2 * (REST + DEPTH * (ATTENTION + MLP))
_sampling = _forward / (FLOPS["tf32"] * REACHED["tf32"]) + 2 * DEPTH * TOKENS * WIDTH * TEACHER_BYTES / HBM
assert round(_forward / _sampling / 1e12) == 123


# --- Tables --------------------------------------------------------------------------------------------------------------------------
def table(head, align, rows):
    rule = ["---:" if a == "r" else "---" for a in align]
    return "\n".join("| " + " | ".join(row) + " |" for row in [head, rule, *rows])


def number(x):
    """Three digits that count."""
    if x == 0:
        return "0"
    return f"{x:,.0f}" if x >= 99.95 else f"{x:.1f}" if x >= 9.95 else f"{x:.2f}"


def ms(seconds):
    return number(seconds / MS)


def size(bytes_):
    for unit, name in ((GB, "GB"), (MB, "MB"), (KB, "kB")):
        if bytes_ >= 0.9995 * unit:
            return f"{number(bytes_ / unit)} {name}"
    return f"{bytes_:.0f} B"


def percent(x):
    return f"{100 * x:.0f} %"


def bytes_table():
    def of(units):
        kind = lambda k: [u for u in units if u.kind == k]
        active = [u for u in units if u.active]
        channels = sum(u.channels for u in kind("conv"))
        names = parameters(units)
        conv, fc = 4 * total(kind("conv"), "weight"), 4 * total(kind("fc"), "weight")
        bias, neurons = 4 * total(units, "bias"), 8 * len(active)
        gradients = conv + fc + bias + neurons
        assert gradients == 4 * sum(n for _, n in names)
        macs = [total(kind(k), "macs") / total(units, "macs") for k in ("conv", "fc")]
        statistics = 2 * channels * 8
        return [
            f"{size(conv)} ({percent(conv / gradients)}; {100 * macs[0]:.1f} % of the MACs)",
            f"{size(fc)} ({percent(fc / gradients)}; {100 * macs[1]:.1f} % of the MACs)",
            size(bias),
            f"{neurons // 2} B + {neurons // 2} B",
            size(gradients),
            f"{size(gradients * 14 / 8)}, {size(gradients * 1022 / 512)}",
            f"{size(4 * len(names))}",
            "8 B",
            f"{size(statistics)} in {len(kind('conv'))}, {size(statistics)} in {len(kind('conv'))}",
        ]

    names = [
        "convolutions", "fully connected layers", "biases (folded batch norm)", "thresholds + leaks, one each a layer", "**gradients**, float32",
        "… through each GPU's links at 8, 512 GPUs: 2(n−1)/n", "map of used parameters (c10d, find_unused_parameters)",
        "loss, a double, each batch",
        "ANN phase only, each batch: statistics of batch norm forward, backward",
    ]
    rows = [[*row] for row in zip(names, of(IMAGENET), of(CIFAR))]
    rows.append(["SDT on DiT-XL/2, each denoising step", f"{MESSAGE} B: 56 logits, loss, error", ""])
    return table(["each optimiser step, each rank", "VGG16, ImageNet", "VGG16, CIFAR-10"], "lrr", rows)


def schedule_table():
    work, n, images = Work(IMAGENET, 5), 64, 2
    names = parameters(IMAGENET)
    ready, end = work.backward(images, True)
    runs = [send(ready, end, names, n, network) for network in NETWORKS]
    rows = []
    for b, bucket in enumerate(buckets([s for _, s in names])):
        first, last = names[bucket[0]][0], names[bucket[-1]][0]
        bytes_ = 4 * sum(names[i][1] for i in bucket)
        times = [f"{ms(run[0][b][1])} – {ms(run[0][b][2])}" for run in runs]
        rows.append([str(b + 1), f"{first} … {last}", size(bytes_), ms(ready[last]), *times])
    rows.append(["", "backward ends; waits for messages after that", "", ms(end), *[f"+ {ms(run[1] - end)}" for run in runs]])
    head = ["sent", "from … to", "size", "ready, ms"] + [f"{network.short}, ms" for network in NETWORKS]
    return table(head, "rlrrrrr", rows)


# Title, work, images in a batch (of a GPU where weak), batches a step, weak or strong.
STUDIES = [
    ("ImageNet T = 5, the config: 16 × 8", Work(IMAGENET, 5), 16, 8, False),
    ("ImageNet T = 5, 128 × 1", Work(IMAGENET, 5), 128, 1, False),
    ("ImageNet T = 5, 512 × 1", Work(IMAGENET, 5), 512, 1, False),
    ("ImageNet T = 5, 16 a GPU", Work(IMAGENET, 5), 16, 1, True),
    ("ImageNet T = 1, 16 a GPU", Work(IMAGENET, 1), 16, 1, True),
    ("ImageNet T = 5, 16 a GPU, bfloat16 and a fused neuron", Work(IMAGENET, 5, True), 16, 1, True),
    ("CIFAR-10 T = 5, the config: 64 × 1", Work(CIFAR, 5), 64, 1, False),
    ("CIFAR-10 T = 5, 64 a GPU", Work(CIFAR, 5), 64, 1, True),
]


def mask_memory(units, batch):
    """Of the largest mask both the filled tensor and the drawn one are there, float32."""
    return 2 * 4 * batch * max(u.neurons for u in units if u.dropout)


def activations(units, images, steps):
    """What backward keeps: potentials and spikes, pooled ones again, and this rank's masks."""
    return 4 * images * sum((2 + u.pool / 4) * steps * u.neurons + u.dropout * u.neurons for u in units if u.active)


def state(units):
    """Weights, gradients, buckets, three tensors of Adam."""
    return 6 * 4 * sum(n for _, n in parameters(units))


def study_tables():
    rows = []
    for title, work, batch, accumulate, weak in STUDIES:
        one = Step(work, batch, accumulate, 1, RAILS).seconds
        for n in WORLDS:
            whole = batch * n if weak else batch
            steps = [Step(work, whole, accumulate, n, network) for network in NETWORKS]
            mended = [Step(work, whole, accumulate, n, network, True) for network in NETWORKS]
            efficiency = lambda all_: " / ".join(f"{100 * one / s.seconds / (1 if weak else n):.0f}" for s in all_)
            idle = max(0, n - whole)
            need = state(work.units) + activations(work.units, ceil(whole / n), work.steps) + mask_memory(work.units, whole)
            rows.append([
                title if n == WORLDS[0] else "", str(n), f"1, {idle} ranks have none" if idle else f"{whole / n:g}",
                ms(steps[0].own), ms(steps[0].masks) + (" †" if need > MEMORY else ""), ms(steps[0].loss),
                " / ".join(ms(s.gradients) for s in steps), efficiency(steps), efficiency(mended),
            ])
    head = ["VGG16, global batch", "GPUs", "images a GPU", "own work, ms", "masks", "loss", "wait for gradients", "efficiency, %", "mended, %"]
    return table(head, "lrlrrrrrr", rows)


def sdt_table():
    rows = []
    for title, kind, latents, weak in (
        ("32 latents, float32 as it is", "float32", 32, False),
        ("32 latents, TF32", "tf32", 32, False),
        ("4 latents a GPU, TF32", "tf32", 4, True),
    ):
        one = Sdt(latents, kind, 1, RAILS)
        for n in WORLDS if weak else [8, 32, 64]:
            whole = latents * n if weak else latents
            if whole < n:
                rows.append(["", f"{n} and more", "refused: a rank without a latent", *[""] * 6])
                continue
            steps = [Sdt(whole, kind, n, network) for network in NETWORKS]
            shown = steps[0]
            efficiency = [one.seconds / s.seconds / (1 if weak else n) for s in steps]
            rows.append([
                title if n == 8 else "", str(n), f"{whole // n}", ms(shown.own), ms(shown.noise),
                *[number(s.message / US) for s in (steps[0], steps[2])], percent(efficiency[0]), percent(efficiency[2]),
            ])
    head = ["batch", "GPUs", "latents a GPU", "own work, ms", "noise, ms", "message, µs: 8 NICs", "no NVLink", "efficiency: 8 NICs", "no NVLink"]
    return table(head, "lrlrrrrrr", rows)


def growth_table():
    rows = []
    work = Work(IMAGENET, 5)

    def row(what, of):
        rows.append([what, *[of(n) for n in WORLDS]])

    def validation(n):
        """Seconds an epoch."""
        batch = validation_batch(IMAGENET, 5)
        return ceil(VALIDATION_IMAGES / batch) * work.forward(ceil(batch / n))

    def training(n):
        return (TRAINING_IMAGES // (16 * n)) * Step(work, 16 * n, 1, n, RAILS).seconds

    def statistics(n):
        return sum(2 * all_reduce(16 * u.channels, n, RAILS) for u in IMAGENET if u.kind == "conv")

    row("loss by Gloo's ring, ms (the same by NCCL, 8 NICs)", lambda n: f"{ms(gloo(n))} ({ms(all_reduce(8, n, RAILS))})")
    row("conv1's mask at 16 images a GPU, as filled and as drawn", lambda n: size(mask_memory(IMAGENET, 16 * n)))
    row("ANN phase: 26 messages of batch norm a batch, ms, 8 NICs", lambda n: ms(statistics(n)))
    row("validation of ImageNet at T = 5: ranks with an image", lambda n: str(min(n, validation_batch(IMAGENET, 5))))
    row("… s an epoch (training with 16 a GPU, s an epoch)", lambda n: f"{number(validation(n))} ({number(training(n))})")
    decoded = lambda steps, n: 16 * GPUS_A_NODE / Step(Work(IMAGENET, steps), 16 * n, 1, n, RAILS, True).seconds
    row("JPEGs that a node decodes a second, mended, T = 5 (T = 1)", lambda n: f"{number(decoded(5, n))} ({number(decoded(1, n))})")
    written = 4 * 4 * sum(n for _, n in parameters(IMAGENET))
    row("rank 0 writes, each epoch (when it is the best)", lambda n: f"{size(written)} ({size(written * 5 / 4)})")
    row("DiT noise on each rank, 4 latents a GPU, ms a trajectory", lambda n: ms(4 * n * 4096 / NORMALS))
    row("signs of life in the store, sets/s", lambda n: f"{n / SIGN_EVERY:,.0f}")
    row("ranks that wait for rank 0 at the end, requests/s", lambda n: f"{3 * (n - 1) / SEE_OUT_EVERY:,.0f}")
    row("reads of the store when all compare a text, n² (s)", lambda n: f"{n * n:,} ({number(n * n / STORE_RATE)})")
    row("reads when every rank looks for a lost one, 5n² (s)", lambda n: f"{5 * n * n:,} ({number(5 * n * n / STORE_RATE)})")
    row("Gloo's connections: of a rank, in all", lambda n: f"{n - 1}, {n * (n - 1) // 2:,}")
    return table(["what grows", *[f"{n} GPUs" for n in WORLDS]], "lrrr", rows)


def validation_batch(units, steps):
    return min(VALIDATION_BATCH, max(1, VALIDATION_ELEMENTS // (units[0].neurons * steps)))


def memory_table():
    def vgg(images, steps, batch):
        return [size(state(IMAGENET)), size(activations(IMAGENET, images, steps)), size(mask_memory(IMAGENET, batch))]

    # Of a sample and block: the tokens before each half, q, k, v, attention's output, GELU's input, two differences.
    sample = 4 * TOKENS * WIDTH * DEPTH * (2 + 3 + 1 + 4 + 2)
    slots = 2 * 4 * TOKENS * WIDTH * 2 * DEPTH
    assert round(slots / MB) == 132  # the spec

    def dit(latents):
        return [size(4 * DIT), size(2 * latents * sample), size(3 * latents * slots)]

    rows = [
        ["VGG16, ImageNet, T = 5, 16 images of 128", *vgg(16, 5, 128)],
        ["VGG16, ImageNet, T = 5, 16 images of 8192", *vgg(16, 5, 8192)],
        ["VGG16, ImageNet, T = 5, 128 images on one GPU", *vgg(128, 5, 128)],
        ["SDT, DiT-XL/2, 4 latents", *dit(4)],
        ["SDT, DiT-XL/2, 32 latents on one GPU", *dit(32)],
    ]
    return table(["each rank", "weights, gradients, optimiser", "kept for backward", "masks, or slots (up to three sets)"], "lrrr", rows)


def assumptions_table():
    rows = [
        ["GPU", "H100 SXM 80 GB: 66.9 (float32), 494.7 (TF32), 989.4 TFLOP/s (bfloat16), 3.35 TB/s", "data sheet, dense"],
        [
            "reached", "0.70, 0.30, 0.30 of these, 0.75 of the memory's; 4 µs a kernel launch",
            "assumed; gives DiT-XL/2 123 TFLOP/s, the spec infers 115",
        ],
        ["number formats", "convolutions TF32, all other products float32", "libtorch's defaults, which fewstep keeps"],
        [
            "8 NICs", f"8 GPUs a node, NVLink {number(NVLINK_BUS / GB)} GB/s; 8 × 400 Gb/s, {number(8 * NIC_BUS / GB)} GB/s a node",
            "nccl-tests #212; nccl #1221 (RoCE)",
        ],
        ["1 NIC", f"the same with one 400 Gb/s NIC a node, {number(NIC_BUS / GB)} GB/s", "the same share"],
        ["no NVLink", f"one GPU and one 400 Gb/s NIC a node, {number(NIC_BUS / GB)} GB/s", "the same share"],
        [
            "NCCL", "fastest of ring, 2(n−1)/n · bytes / bus and 2(n−1) hops, and tree, 2 · bytes / (0.92 bus) and log₂ hops; + 20 µs",
            "NCCL's tuning.cc, 5067397; no NVLS, no SHARP",
        ],
        ["Gloo", "ring, 25 µs a hop over TCP", "its source; the time is assumed"],
        ["store, noise", "20,000 requests/s; 100 million normal numbers/s", "assumed"],
        ["not counted", "stragglers, the loader, checkpoints, NCCL's use of SMs beside backward, congestion", ""],
    ]
    return table(["what", "value", "from"], "lll", rows)


# The page says 2,600 images.
_left = MEMORY - state(IMAGENET) - activations(IMAGENET, 16, 5)
assert round(_left / mask_memory(IMAGENET, 1), -2) == 2600

TABLES = {
    "assumptions": assumptions_table, "bytes": bytes_table, "schedule": schedule_table, "vgg16": study_tables, "sdt": sdt_table,
    "growth": growth_table, "memory": memory_table,
}


def block(name, text):
    return f"<!-- scaling.py: {name} -->\n\n{text}\n\n<!-- end: {name} -->"


def split(page, name, path):
    begin, end = f"<!-- scaling.py: {name} -->", f"<!-- end: {name} -->"
    if page.count(begin) != 1 or page.count(end) != 1:
        sys.exit(f"{path}: expected the markers of table `{name}` once each, found {page.count(begin)} and {page.count(end)}")
    before, rest = page.split(begin)
    found, after = rest.split(end)
    return before, begin + found + end, after


def main(arguments):
    blocks = {name: block(name, make()) for name, make in TABLES.items()}
    if not arguments:
        print("\n\n".join(blocks.values()))
        return
    if len(arguments) != 2 or arguments[0] not in ("--check", "--write"):
        sys.exit("expected nothing, --check PAGE or --write PAGE")
    path = arguments[1]
    with open(path, encoding="utf-8") as file:
        page = file.read()
    for name, text in blocks.items():
        before, found, after = split(page, name, path)
        if arguments[0] == "--check" and found != text:
            sys.exit(f"{path}: table `{name}` is not what docs/scaling.py computes; run `python3 docs/scaling.py --write {path}`")
        page = before + text + after
    if arguments[0] == "--write":
        with open(path, "w", encoding="utf-8") as file:
            file.write(page)


if __name__ == "__main__":
    main(sys.argv[1:])
