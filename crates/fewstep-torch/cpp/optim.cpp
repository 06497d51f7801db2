// libtorch's own fused optimiser steps, with the state in tensors that the caller keeps (so that it can be saved and resumed).
#include <ATen/ATen.h>
#include <c10/core/GradMode.h>
#include <ATen/ops/_fused_adam.h>
#include <ATen/ops/_fused_adamw.h>
#include <ATen/ops/_fused_sgd.h>

#include "shim.h"

using at::Tensor;

namespace {
std::vector<Tensor> list(Tensor* const* p, int64_t n) {
  std::vector<Tensor> v;
  v.reserve(n);
  for (int64_t i = 0; i < n; i++) v.push_back(*p[i]);
  return v;
}
}  // namespace

extern "C" char* fewstep_adam(Tensor* const* params, Tensor* const* grads, Tensor* const* first, Tensor* const* second,
                              Tensor* const* second_max, Tensor* const* steps, int64_t n, double lr, double beta1, double beta2,
                              double weight_decay, double eps, bool amsgrad, bool decoupled) {
  FEWSTEP_TRY({
    c10::NoGradGuard guard;
    auto p = list(params, n), g = list(grads, n), m = list(first, n), v = list(second, n), s = list(steps, n);
    auto vm = amsgrad ? list(second_max, n) : std::vector<Tensor>{};
    for (auto& step : s) step.add_(1);
    if (decoupled) at::_fused_adamw_(p, g, m, v, vm, s, lr, beta1, beta2, weight_decay, eps, amsgrad, false);
    else at::_fused_adam_(p, g, m, v, vm, s, lr, beta1, beta2, weight_decay, eps, amsgrad, false);
  })
}

extern "C" char* fewstep_sgd(Tensor* const* params, Tensor* const* grads, Tensor* const* momentum_buffers, int64_t n, double lr,
                             double momentum, double weight_decay, bool nesterov, bool first_step) {
  FEWSTEP_TRY({
    c10::NoGradGuard guard;
    auto p = list(params, n), g = list(grads, n);
    auto b = momentum != 0 ? list(momentum_buffers, n) : std::vector<Tensor>{};
    at::_fused_sgd_(p, g, b, weight_decay, momentum, lr, /*dampening=*/0.0, nesterov, /*maximize=*/false, first_step);
  })
}
