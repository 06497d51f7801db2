// CUDA graphs: work that is recorded once and played again without a launch from the CPU for each kernel. In the library that the
// program opens where it has opened libtorch's CUDA part (see nccl.cpp), because it is linked against the CPU part only.
#include <ATen/cuda/CUDAGraph.h>
#include <c10/cuda/CUDAGuard.h>

#include <memory>
#include <optional>

#include "shim.h"

namespace {
struct Recording {
  explicit Recording(c10::DeviceIndex device)
      : stream(c10::cuda::getStreamFromPool(/*isHighPriority=*/false, device)), outside(c10::cuda::getCurrentCUDAStream(device)) {}

  at::cuda::CUDAGraph graph;
  c10::cuda::CUDAStream stream;
  c10::cuda::CUDAStream outside;
  // Where work of this thread goes while it is recorded.
  std::optional<c10::cuda::CUDAStreamGuard> guard;
};
}  // namespace

// From here on work goes to a stream of its own: first a run that is not recorded, in which libraries set themselves up.
extern "C" char* fewstep_graph_new(int device, Recording** out) {
  FEWSTEP_TRY({
    auto recording = std::make_unique<Recording>(static_cast<c10::DeviceIndex>(device));
    recording->outside.synchronize();
    recording->guard.emplace(recording->stream);
    *out = recording.release();
  })
}

extern "C" char* fewstep_graph_begin(Recording* recording) {
  FEWSTEP_TRY({
    recording->stream.synchronize();
    recording->graph.capture_begin({0, 0}, cudaStreamCaptureModeThreadLocal);
  })
}

extern "C" char* fewstep_graph_end(Recording* recording) {
  FEWSTEP_TRY({
    recording->graph.capture_end();
    recording->guard.reset();
  })
}

extern "C" char* fewstep_graph_replay(Recording* recording) {
  FEWSTEP_TRY({ recording->graph.replay(); })
}

extern "C" void fewstep_graph_free(Recording* recording) {
  try {
    recording->guard.reset();
    delete recording;
  } catch (...) {
    // The device is gone; so is what it held.
  }
}
