// The spiking neuron over all timesteps as one autograd function.
//
//   m[t] = leak * u[t-1] + x[t]          integrate          (IIR-SNN / DIET-SNN, u[-1] = 0)
//   s[t] = 1 if m[t] > threshold else 0   strict; z[t] = m[t] / threshold - 1 is what the surrogate sees
//   u[t] = m[t] - threshold * s[t]       soft reset;  m[t] * (1 - s[t]) hard;  m[t] none
//
// Backward: ds/dz is the surrogate; the reset sees s as a constant, but keeps its gradient to the threshold.
// A caller that feeds the timesteps in chunks passes the membrane potential that the last chunk left as `initial` [N, C, ...]; it is
// a constant for the gradient (truncated backpropagation through time).
// x is [T, N, C, ...], or [1, N, C, ...] where the same current enters at every timestep; threshold and leak hold 1 or C values.
// On a CPU both passes are one sweep over memory; elsewhere (CUDA, half precision, channels last) the same equations run as ATen
// operators, which keep the order of the current's memory.
#include <ATen/ATen.h>
#include <torch/csrc/autograd/custom_function.h>
#include <omp.h>

#include "shim.h"

namespace {

using at::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

enum Reset : int64_t { kSoft = 0, kHard = 1, kNone = 2 };

// Surrogates: height/slope `a`, width `b`. The order is that of surrogate.rs.
struct Triangular {
  template <typename S> static S grad(S z, S a, S b) { S v = S(1) - std::abs(z) / b; return a * (v > S(0) ? v : S(0)); }
  static Tensor grad(const Tensor& z, double a, double b) { return (1 - z.abs() / b).clamp_min(0) * a; }
};
struct Rectangular {
  template <typename S> static S grad(S z, S a, S b) { return std::abs(z) < b ? a : S(0); }
  static Tensor grad(const Tensor& z, double a, double b) { return (z.abs() < b).to(z.scalar_type()) * a; }
};
struct Sigmoid {
  template <typename S> static S grad(S z, S a, S) { S s = S(1) / (S(1) + std::exp(-a * z)); return a * s * (S(1) - s); }
  static Tensor grad(const Tensor& z, double a, double) { auto s = (z * a).sigmoid(); return s * (1 - s) * a; }
};
struct FastSigmoid {
  template <typename S> static S grad(S z, S a, S) { S d = S(1) + a * std::abs(z); return S(1) / (d * d); }
  static Tensor grad(const Tensor& z, double a, double) { return (z.abs() * a + 1).pow(-2); }
};
struct Arctan {
  template <typename S> static S grad(S z, S a, S) { S p = S(M_PI / 2) * a * z; return a / S(2) / (S(1) + p * p); }
  static Tensor grad(const Tensor& z, double a, double) { return (a / 2) / (1 + (z * (M_PI / 2 * a)).square()); }
};

template <typename F> auto with_surrogate(int64_t kind, F f) {
  switch (kind) {
    case 0: return f(Triangular{});
    case 1: return f(Rectangular{});
    case 2: return f(Sigmoid{});
    case 3: return f(FastSigmoid{});
    default: return f(Arctan{});
  }
}

struct Shape {
  int64_t T, N, C, inner;  // elements of one timestep: N * C * inner
  int64_t step() const { return N * C * inner; }
};

Shape shape_of(const Tensor& x, int64_t T, int64_t channels) {
  TORCH_CHECK(x.dim() >= 3, "expected a current of shape [T, N, C, ...], found ", x.dim(), " dimensions");
  TORCH_CHECK(x.size(0) == T || x.size(0) == 1, "expected a current for ", T, " timesteps, found ", x.size(0));
  const int64_t N = x.size(1), C = x.size(2);
  TORCH_CHECK(channels == 1 || channels == C, "expected 1 or ", C, " thresholds and leaks, found ", channels);
  const int64_t inner = N * C == 0 ? 0 : x.numel() / (x.size(0) * N * C);
  // With one threshold a layer is a flat run of elements; rows would be needlessly short.
  return channels == 1 ? Shape{T, 1, 1, N * C * inner} : Shape{T, N, C, inner};
}

// Work is cut into rows of one channel and those into blocks that stay in cache while t runs. The cut does not depend on the
// number of threads, so sums over blocks, taken in order, give the same bits on any number of them.
constexpr int64_t kBlock = 2048;

template <typename F> void for_blocks(const Shape& s, F f) {
  if (s.inner == 1 && s.C > 1) {  // fully connected, one threshold a neuron: a row is one image
    #pragma omp parallel for schedule(static)
    for (int64_t n = 0; n < s.N; n++) for (int64_t c = 0; c < s.C; c++) f(n * s.C + c, c, n * s.C + c, int64_t(1));
    return;
  }
  const int64_t per_row = (s.inner + kBlock - 1) / kBlock, rows = s.N * s.C;
  #pragma omp parallel for schedule(static)
  for (int64_t b = 0; b < rows * per_row; b++) {
    const int64_t row = b / per_row, at = (b % per_row) * kBlock;
    f(b, row % s.C, row * s.inner + at, std::min(kBlock, s.inner - at));
  }
}

int64_t count_blocks(const Shape& s) {
  if (s.inner == 1 && s.C > 1) return s.N * s.C;
  return s.N * s.C * ((s.inner + kBlock - 1) / kBlock);
}

// The kernels for any x86-64 (or other) processor, and for those with AVX2, chosen at run time.
namespace base {
#include "neuron_kernels.h"
}
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#pragma GCC push_options
#pragma GCC target("avx2")
namespace avx2 {
#include "neuron_kernels.h"
}
#pragma GCC pop_options
const bool has_avx2 = __builtin_cpu_supports("avx2");
#else
namespace avx2 = base;
const bool has_avx2 = false;
#endif

template <typename F> void with_reset(int64_t reset, F f) {
  switch (reset) {
    case kSoft: return f(std::integral_constant<int64_t, kSoft>{});
    case kHard: return f(std::integral_constant<int64_t, kHard>{});
    default: return f(std::integral_constant<int64_t, kNone>{});
  }
}

template <typename S>
void forward_cpu(const Shape& sh, int64_t reset, const S* x, bool still, const S* theta, const S* leak, const S* initial,
                 S* spikes, S* before, S* after) {
  with_reset(reset, [&](auto r) {
    const auto block = has_avx2 ? avx2::forward_block<r.value, S> : base::forward_block<r.value, S>;
    for_blocks(sh, [&](int64_t, int64_t c, int64_t at, int64_t len) {
      block(sh, x, still, theta[c], leak[c], initial, spikes, before, after, at, len);
    });
  });
}

template <typename Sur, typename S>
void backward_cpu(const Shape& sh, int64_t reset, S a, S b, const S* m, const S* gs, const S* theta, const S* leak,
                  const S* initial, S* gx, bool still, double* gtheta, double* gleak) {
  const int64_t blocks = count_blocks(sh);
  std::vector<double> parts(2 * blocks);
  with_reset(reset, [&](auto r) {
    const auto one = has_avx2 ? avx2::backward_block<Sur, r.value, S> : base::backward_block<Sur, r.value, S>;
    for_blocks(sh, [&](int64_t block, int64_t c, int64_t at, int64_t len) {
      one(sh, a, b, m, gs, theta[c], leak[c], initial, gx, still, at, len, &parts[2 * block]);
    });
  });
  const int64_t per_row = std::max<int64_t>(1, blocks / std::max<int64_t>(1, sh.N * sh.C));
  for (int64_t k = 0; k < blocks; k++) {
    gtheta[(k / per_row) % sh.C] += parts[2 * k];
    gleak[(k / per_row) % sh.C] += parts[2 * k + 1];
  }
}

// [1] or [C] spread over [N, C, ...].
Tensor spread(const Tensor& p, const Tensor& x) {
  std::vector<int64_t> view(x.dim() - 1, 1);
  view[1] = p.numel();
  return p.view(view);
}

bool fused(const Tensor& x) {
  return x.device().is_cpu() && (x.scalar_type() == at::kFloat || x.scalar_type() == at::kDouble);
}

// Whether the images of [T, N, C, H, W] lie channels last, one behind the other.
bool channels_last(const Tensor& x) {
  return x.dim() == 5 && !x.is_contiguous() && x.is_non_overlapping_and_dense() && x.flatten(0, 1).is_contiguous(at::MemoryFormat::ChannelsLast);
}

// What was made timestep by timestep, [N, C, ...] each, as [T, N, C, ...]; unlike stack, cat keeps channels last.
Tensor over_time(const std::vector<Tensor>& steps) {
  if (steps.size() == 1) return steps[0].unsqueeze(0);
  auto sizes = steps[0].sizes().vec();
  sizes.insert(sizes.begin(), static_cast<int64_t>(steps.size()));
  return at::cat(steps, 0).view(sizes);
}

struct Neuron : torch::autograd::Function<Neuron> {
  static variable_list forward(AutogradContext* ctx, const Tensor& current, const Tensor& theta, const Tensor& leak, const Tensor& start,
                               int64_t T, int64_t reset, int64_t surrogate, double a, double b, bool want_membrane, bool allow_fused) {
    TORCH_CHECK(T >= 1, "expected at least 1 timestep, found ", T);
    TORCH_CHECK(reset >= kSoft && reset <= kNone, "expected a reset from 0 to 2, found ", reset);
    TORCH_CHECK(surrogate >= 0 && surrogate <= 4, "expected a surrogate from 0 to 4, found ", surrogate);
    TORCH_CHECK(theta.device() == current.device() && leak.device() == current.device() && start.device() == current.device(),
                "expected threshold, leak and membrane potential on ", current.device(), " like the current");
    TORCH_CHECK(theta.numel() == leak.numel(), "expected as many leaks as thresholds (", theta.numel(), "), found ", leak.numel());
    const bool last = channels_last(current);
    const Tensor x = last ? current : current.contiguous();
    const Shape sh = shape_of(x, T, theta.numel());
    const bool still = x.size(0) == 1;
    auto sizes = x.sizes().vec();
    sizes[0] = T;
    // An autograd function takes no undefined tensor: an empty one stands for none.
    const Tensor initial = start.numel() == 0 ? Tensor() : last ? start.detach() : start.detach().contiguous();
    if (initial.defined()) TORCH_CHECK(initial.sizes() == x.sizes().slice(1), "expected a membrane potential of shape ", x.sizes().slice(1), ", found ", initial.sizes());
    Tensor spikes, before, after;
    const bool use_fused = allow_fused && !last && fused(x);
    if (use_fused) {
      spikes = at::empty(sizes, x.options());
      if (T == 1 && !initial.defined()) before = x;  // m[0] is the current itself
      else before = at::empty(sizes, x.options());
      if (want_membrane) after = at::empty(sizes, x.options());
      const Tensor th = theta.to(x.scalar_type()).contiguous(), lk = leak.to(x.scalar_type()).contiguous();
      AT_DISPATCH_FLOATING_TYPES(x.scalar_type(), "neuron_forward", [&] {
        forward_cpu<scalar_t>(sh, reset, x.data_ptr<scalar_t>(), still, th.data_ptr<scalar_t>(), lk.data_ptr<scalar_t>(),
                              initial.defined() ? initial.data_ptr<scalar_t>() : nullptr, spikes.data_ptr<scalar_t>(),
                              before.is_same(x) ? nullptr : before.data_ptr<scalar_t>(),
                              want_membrane ? after.data_ptr<scalar_t>() : nullptr);
      });
    } else {
      const Tensor th = spread(theta, x), lk = spread(leak, x);
      std::vector<Tensor> s, m, us;
      Tensor u;
      for (int64_t t = 0; t < T; t++) {
        Tensor mt = t == 0 ? (initial.defined() ? lk * initial + x[0] : x[0]) : lk * u + x[still ? 0 : t];
        Tensor st = (mt > th).to(x.scalar_type());
        u = reset == kSoft ? mt - th * st : reset == kHard ? mt * (1 - st) : mt;
        s.push_back(st); m.push_back(mt);
        if (want_membrane) us.push_back(u);
      }
      spikes = over_time(s);
      before = over_time(m);
      // Without a reset it may be a view of the current, which an autograd function must not return.
      if (want_membrane) after = T == 1 && reset == kNone ? over_time(us).clone() : over_time(us);
    }
    if (!want_membrane) after = at::empty({0}, x.options());
    ctx->mark_non_differentiable({after});
    ctx->save_for_backward({before, theta, leak, initial});
    ctx->saved_data["still"] = still && T > 1;
    ctx->saved_data["reset"] = reset;
    ctx->saved_data["surrogate"] = surrogate;
    ctx->saved_data["a"] = a;
    ctx->saved_data["b"] = b;
    ctx->saved_data["fused"] = use_fused;
    return {spikes, after};
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const auto saved = ctx->get_saved_variables();
    const Tensor &m = saved[0], &theta = saved[1], &leak = saved[2], &initial = saved[3];
    const bool still = ctx->saved_data["still"].toBool();
    const int64_t reset = ctx->saved_data["reset"].toInt(), kind = ctx->saved_data["surrogate"].toInt(), T = m.size(0);
    const double a = ctx->saved_data["a"].toDouble(), b = ctx->saved_data["b"].toDouble();
    const bool use_fused = ctx->saved_data["fused"].toBool();
    const Tensor gs = use_fused ? grads[0].contiguous() : grads[0];
    Tensor gx, gtheta, gleak;
    if (use_fused) {
      const Shape sh = shape_of(m, T, theta.numel());
      auto sizes = m.sizes().vec();
      if (still) sizes[0] = 1;
      gx = at::empty(sizes, m.options());
      std::vector<double> sum_theta(theta.numel()), sum_leak(leak.numel());
      const Tensor th = theta.to(m.scalar_type()).contiguous(), lk = leak.to(m.scalar_type()).contiguous();
      AT_DISPATCH_FLOATING_TYPES(m.scalar_type(), "neuron_backward", [&] {
        with_surrogate(kind, [&](auto sur) {
          backward_cpu<decltype(sur), scalar_t>(sh, reset, a, b, m.data_ptr<scalar_t>(), gs.data_ptr<scalar_t>(),
                                                th.data_ptr<scalar_t>(), lk.data_ptr<scalar_t>(),
                                                initial.defined() ? initial.data_ptr<scalar_t>() : nullptr, gx.data_ptr<scalar_t>(), still,
                                                sum_theta.data(), sum_leak.data());
        });
      });
      gtheta = at::tensor(sum_theta, at::kDouble).to(theta.scalar_type()).view_as(theta);
      gleak = at::tensor(sum_leak, at::kDouble).to(leak.scalar_type()).view_as(leak);
    } else {
      const Tensor th = spread(theta, m), lk = spread(leak, m);
      std::vector<Tensor> gxs(T);
      Tensor gm, acc_theta = at::zeros_like(m[0]), acc_leak = at::zeros_like(m[0]);
      for (int64_t t = T - 1; t >= 0; t--) {
        const Tensor z = m[t] / th - 1, h = (m[t] > th).to(m.scalar_type());
        const Tensor gz = gs[t] * with_surrogate(kind, [&](auto sur) { return decltype(sur)::grad(z, a, b); }) / th;
        const Tensor gu = gm.defined() ? lk * gm : at::zeros_like(gz);
        acc_theta = acc_theta - gz * m[t] / th;
        if (reset == kSoft) acc_theta = acc_theta - gu * h;
        gm = (reset == kHard ? gu * (1 - h) : gu) + gz;
        if (t > 0) {
          const Tensor p = m[t - 1], hp = (p > th).to(m.scalar_type());
          acc_leak = acc_leak + gm * (reset == kSoft ? p - th * hp : reset == kHard ? p * (1 - hp) : p);
        } else if (initial.defined()) {
          acc_leak = acc_leak + gm * initial;
        }
        gxs[t] = gm;
      }
      gx = over_time(gxs);
      if (still) gx = gx.sum(0, true);
      auto reduce = [&](const Tensor& g, const Tensor& p) {
        if (p.numel() == 1) return g.sum().view_as(p);
        std::vector<int64_t> dims;
        for (int64_t d = 0; d < g.dim(); d++) if (d != 1) dims.push_back(d);
        return g.sum(dims).view_as(p);
      };
      gtheta = reduce(acc_theta, theta);
      gleak = reduce(acc_leak, leak);
    }
    return {gx, gtheta, gleak, {}, {}, {}, {}, {}, {}, {}, {}};
  }
};

}  // namespace

extern "C" char* fewstep_neuron(const Tensor* x, const Tensor* theta, const Tensor* leak, const Tensor* initial, int64_t T, int64_t reset,
                                int64_t surrogate, double a, double b, bool want_membrane, bool allow_fused, Tensor** spikes, Tensor** membrane) {
  FEWSTEP_TRY({
    auto out = Neuron::apply(*x, *theta, *leak, initial ? *initial : at::empty({0}, x->options()), T, reset, surrogate, a, b, want_membrane, allow_fused);
    *spikes = new Tensor(out[0]);
    *membrane = want_membrane ? new Tensor(out[1]) : nullptr;
  })
}
