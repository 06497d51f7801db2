// What a device's allocator has given out, by the interface that every device's allocator has, so that no header of CUDA is needed.
#include <c10/core/CachingDeviceAllocator.h>

#include "shim.h"

namespace {
c10::DeviceAllocator* allocator() { return c10::getDeviceAllocator(c10::DeviceType::CUDA); }
}  // namespace

extern "C" char* fewstep_cuda_peak(int device, int64_t* tensors, int64_t* reserved) {
  FEWSTEP_TRY({
    const auto stats = allocator()->getDeviceStats(static_cast<c10::DeviceIndex>(device));
    const auto all = static_cast<size_t>(c10::CachingAllocator::StatType::AGGREGATE);
    *tensors = stats.allocated_bytes[all].peak;
    *reserved = stats.reserved_bytes[all].peak;
  })
}

extern "C" char* fewstep_cuda_reset_peak(int device) {
  FEWSTEP_TRY(allocator()->resetPeakStats(static_cast<c10::DeviceIndex>(device));)
}
