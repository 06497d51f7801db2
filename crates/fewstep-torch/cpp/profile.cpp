// libtorch's own profiler (Kineto), as Python's torch.profiler uses it.
#include <torch/csrc/autograd/profiler_kineto.h>

#include "shim.h"

using torch::autograd::profiler::ProfilerResult;
using torch::profiler::impl::ActivityType;
using torch::profiler::impl::ProfilerConfig;
using torch::profiler::impl::ProfilerState;

extern "C" char* fewstep_profile_begin(bool cuda) {
  FEWSTEP_TRY({
    // Kineto would tell the terminal that a machine without a GPU has none.
    setenv("KINETO_LOG_LEVEL", "99", 0);
    std::set<ActivityType> activities{ActivityType::CPU};
    if (cuda) activities.insert(ActivityType::CUDA);
    const ProfilerConfig config(ProfilerState::KINETO);
    torch::autograd::profiler::prepareProfiler(config, activities);
    torch::autograd::profiler::enableProfiler(config, activities);
  })
}

// Hands every event over and writes the trace; `path` may be null.
extern "C" char* fewstep_profile_end(
    const char* path,
    void* events,
    void (*add)(void* events, const char* name, uint64_t start, uint64_t duration, uint64_t thread, bool on_device)) {
  FEWSTEP_TRY({
    const std::unique_ptr<ProfilerResult> result = torch::autograd::profiler::disableProfiler();
    for (const auto& event : result->events()) {
      const bool on_device = event.deviceType() != c10::DeviceType::CPU;
      add(events, event.name().c_str(), event.startNs(), event.durationNs(), event.startThreadId(), on_device);
    }
    if (path) result->save(path);
  })
}
