// What a transformer's forward pass asks of a CPU when no gradient is wanted, faster than the operators that eager PyTorch uses.
// Anything else (a gradient, CUDA, half precision, strange strides) runs as those operators: same numbers up to rounding.
#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/ops/addcmul.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/gelu.h>
#include <ATen/ops/layer_norm.h>
#include <ATen/ops/linear.h>
#include <c10/core/GradMode.h>

#include "shim.h"

namespace {

using at::Tensor;

// Whether `x` has memory that a kernel of ours may sweep over, row by row.
bool plain(const Tensor& x) {
  return !at::GradMode::is_enabled() && x.device().is_cpu() && x.scalar_type() == at::kFloat && x.is_contiguous() && x.dim() >= 2;
}

using Pointwise = Tensor(const Tensor&, const Tensor&, const std::optional<Tensor>&, std::string_view,
                         c10::List<std::optional<at::Scalar>>, std::optional<std::string_view>);

// oneDNN's linear layer, which torch.compile uses: with AVX-512 it is a fifth faster than the MKL product of at::linear on AMD's
// processors, and it applies the GELU while the product is in cache. Absent where libtorch was built without oneDNN.
const std::optional<c10::TypedOperatorHandle<Pointwise>>& pointwise() {
  static const auto op = []() -> std::optional<c10::TypedOperatorHandle<Pointwise>> {
    const auto found = c10::Dispatcher::singleton().findSchema({"mkldnn::_linear_pointwise", ""});
    if (!found) return std::nullopt;
    return found->typed<Pointwise>();
  }();
  return op;
}

// Below this many rows the set-up of a oneDNN primitive costs more than it gains.
constexpr int64_t kFewRows = 64;

Tensor linear(const Tensor& x, const Tensor& weight, const Tensor& bias, bool gelu) {
  if (plain(x) && plain(weight) && x.numel() >= kFewRows * x.size(-1) && pointwise()) {
    return pointwise()->call(x, weight, bias, gelu ? "gelu" : "none", c10::List<std::optional<at::Scalar>>(), gelu ? "tanh" : "");
  }
  const Tensor out = at::linear(x, weight, bias);
  return gelu ? at::gelu(out, "tanh") : out;
}

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define FEWSTEP_ANY_CPU __attribute__((target_clones("default", "avx2", "avx512f")))
#else
#define FEWSTEP_ANY_CPU
#endif

// One token: (x - mean) / sqrt(variance + eps) * factor + shift. Two passes over what is in the first cache after the first.
FEWSTEP_ANY_CPU void modulate_row(const float* x, const float* shift, const float* factor, float* out, int64_t width, float eps) {
  float sum = 0, squares = 0;
  #pragma omp simd reduction(+ : sum)
  for (int64_t i = 0; i < width; i++) sum += x[i];
  const float mean = sum / width;
  #pragma omp simd reduction(+ : squares)
  for (int64_t i = 0; i < width; i++) squares += (x[i] - mean) * (x[i] - mean);
  const float scale = 1 / std::sqrt(squares / width + eps);
  for (int64_t i = 0; i < width; i++) out[i] = (x[i] - mean) * scale * factor[i] + shift[i];
}

// Numbers below which a second thread is not worth its start.
constexpr int64_t kGrain = 1 << 15;

// Norm without weights over the last dimension of x [N, tokens, width], then modulation by shift and factor [N, 1, width].
Tensor modulate(const Tensor& x, const Tensor& shift, const Tensor& factor, double eps) {
  const int64_t width = x.size(-1);
  auto one_a_sample = [&](const Tensor& m) {
    return m.device().is_cpu() && m.scalar_type() == at::kFloat && m.dim() == 3 && m.size(0) == x.size(0) && m.size(1) == 1 &&
           m.size(2) == width && m.stride(2) == 1;
  };
  if (!plain(x) || x.dim() != 3 || !one_a_sample(shift) || !one_a_sample(factor)) {
    return at::addcmul(shift, at::layer_norm(x, {width}, {}, {}, eps), factor);
  }
  Tensor out = at::empty_like(x);
  const int64_t tokens = x.size(1), rows = x.size(0) * tokens;
  const float *from = x.const_data_ptr<float>(), *s = shift.const_data_ptr<float>(), *f = factor.const_data_ptr<float>();
  float* to = out.mutable_data_ptr<float>();
  const int64_t next_s = shift.stride(0), next_f = factor.stride(0);
  at::parallel_for(0, rows, std::max<int64_t>(1, kGrain / std::max<int64_t>(1, width)), [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; row++) {
      const int64_t n = row / tokens;
      modulate_row(from + row * width, s + n * next_s, f + n * next_f, to + row * width, width, float(eps));
    }
  });
  return out;
}

}  // namespace

extern "C" char* fewstep_linear(const Tensor* x, const Tensor* weight, const Tensor* bias, bool gelu, Tensor** out) {
  FEWSTEP_TRY({ *out = new Tensor(linear(*x, *weight, *bias, gelu)); })
}

extern "C" char* fewstep_modulate(const Tensor* x, const Tensor* shift, const Tensor* factor, double eps, Tensor** out) {
  FEWSTEP_TRY({ *out = new Tensor(modulate(*x, *shift, *factor, eps)); })
}

extern "C" bool fewstep_grad_enabled() { return at::GradMode::is_enabled(); }
