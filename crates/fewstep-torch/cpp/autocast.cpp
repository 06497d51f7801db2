// Autocast as Python's context manager does it: bfloat16 for matrix products and convolutions, casts of weights kept until it ends.
#include <ATen/autocast_mode.h>

#include "shim.h"

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
