// Autocast as Python's context manager does it: bfloat16 for matrix products and convolutions, casts of weights kept until it ends.
// And TF32 on CUDA, which is a switch of the whole process, because backward runs on threads of its own.
#include <ATen/Context.h>
#include <ATen/autocast_mode.h>
#include <c10/util/Exception.h>

#include "shim.h"

namespace {
struct Silent : c10::WarningHandler {
  void process(const c10::Warning&) override {}
};
}  // namespace

extern "C" char* fewstep_autocast_begin(bool cuda) {
  FEWSTEP_TRY({
    const auto device = cuda ? at::kCUDA : at::kCPU;
    at::autocast::set_autocast_enabled(device, true);
    at::autocast::set_autocast_dtype(device, at::kBFloat16);
    at::autocast::increment_nesting();
  })
}

extern "C" char* fewstep_autocast_end(bool cuda) {
  FEWSTEP_TRY({
    at::autocast::set_autocast_enabled(cuda ? at::kCUDA : at::kCPU, false);
    if (at::autocast::decrement_nesting() == 0) at::autocast::clear_cache();
  })
}

// libtorch keeps an old and a new switch and refuses to run where they differ. The old one sets both, and says that it is old.
extern "C" char* fewstep_set_tf32(bool on) {
  FEWSTEP_TRY({
    Silent silent;
    c10::WarningUtils::WarningHandlerGuard guard(&silent);
    at::globalContext().setAllowTF32CuBLAS(on);
    at::globalContext().setAllowTF32CuDNN(on);
  })
}

extern "C" char* fewstep_tf32(bool* matmul, bool* convolution) {
  FEWSTEP_TRY({
    const auto on = [](at::Float32Op op) {
      return at::globalContext().float32Precision(at::Float32Backend::CUDA, op) == at::Float32Precision::TF32;
    };
    *matmul = on(at::Float32Op::MATMUL);
    *convolution = on(at::Float32Op::CONV);
  })
}
