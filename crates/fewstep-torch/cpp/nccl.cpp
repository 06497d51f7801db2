// NCCL for tensors on GPUs, as a library of its own: the program is linked against libtorch's CPU part only and opens this one where it has
// opened the CUDA part. Built by build.rs where the headers of NCCL and CUDA are.
#include <torch/csrc/distributed/c10d/ProcessGroupNCCL.hpp>

#include "shim.h"

extern "C" char* fewstep_nccl(const c10::intrusive_ptr<c10d::Store>* store, int rank, int world, int64_t timeout_ms,
                              c10::intrusive_ptr<c10d::Backend>* out) {
  FEWSTEP_TRY({
    auto options = c10d::ProcessGroupNCCL::Options::create();
    options->timeout = std::chrono::milliseconds(timeout_ms);
    options->group_name = "0";
    *out = c10::make_intrusive<c10d::ProcessGroupNCCL>(*store, rank, world, options);
  })
}
