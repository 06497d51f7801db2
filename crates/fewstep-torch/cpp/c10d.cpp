// libtorch's distributed engine, c10d: stores, process groups, and the reducer of DistributedDataParallel. Python's torch.distributed is a
// shell around the same classes, so ranks of both can be in one group (`src/group.rs` keeps to its order of prefixes).
#include <torch/csrc/autograd/custom_function.h>
#include <torch/csrc/distributed/c10d/FileStore.hpp>
#include <torch/csrc/distributed/c10d/PrefixStore.hpp>
#include <torch/csrc/distributed/c10d/ProcessGroup.hpp>
#include <torch/csrc/distributed/c10d/ProcessGroupGloo.hpp>
#include <torch/csrc/distributed/c10d/TCPStore.hpp>
#include <torch/csrc/distributed/c10d/logger.hpp>
#include <torch/csrc/distributed/c10d/reducer.hpp>

#include <cstdlib>
#include <sstream>

#include "shim.h"

using std::chrono::milliseconds;
using Tensors = std::vector<at::Tensor>;
using ProcessGroup = c10::intrusive_ptr<c10d::ProcessGroup>;

struct FewstepStore {
  c10::intrusive_ptr<c10d::Store> store;
};

struct FewstepGroup {
  ProcessGroup group;
};

struct FewstepReducer {
  std::shared_ptr<c10d::Reducer> reducer;
  std::shared_ptr<c10d::Logger> logger;
};

C10_DECLARE_int(caffe2_log_level);

// Makes the NCCL backend; lives in a library of its own (nccl.cpp), which only a CUDA set-up has.
using MakeNccl = char* (*)(const c10::intrusive_ptr<c10d::Store>*, int, int, int64_t, c10::intrusive_ptr<c10d::Backend>*);

namespace {

// What c10d reads in the environment, set as the program is loaded, when there are no other threads. The user's own words stay.
const bool environment = [] {
  // An operation of NCCL that is late is an exception in the thread that waits for it, not the end of the process.
  setenv("TORCH_NCCL_BLOCKING_WAIT", "1", 0);
  // The flight recorder, which nobody here reads, puts a new group into a map without a lock (FlightRecorderDetail.hpp, record): two
  // groups that begin at the same time in one process crash.
  if (!std::getenv("TORCH_NCCL_TRACE_BUFFER_SIZE")) setenv("TORCH_FR_BUFFER_SIZE", "0", 0);
  return true;
}();

void finish(const c10::intrusive_ptr<c10d::Work>& work) {
  if (work) work->wait();
}

void sum(const ProcessGroup& group, at::Tensor& tensor) {
  Tensors tensors{tensor};
  finish(group->allreduce(tensors));
}

// Its gradient is the sum of all ranks' gradients, as each rank's input is part of each rank's output.
struct Sum : torch::autograd::Function<Sum> {
  static at::Tensor forward(torch::autograd::AutogradContext* ctx, const at::Tensor& x, const ProcessGroup& group) {
    ctx->saved_data["group"] = c10::IValue::make_capsule(group);
    auto y = x.detach().clone(at::MemoryFormat::Contiguous);
    sum(group, y);
    return y;
  }
  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* ctx, torch::autograd::variable_list grads) {
    auto holder = ctx->saved_data["group"].toCapsule();
    auto group = c10::static_intrusive_pointer_cast<c10d::ProcessGroup>(holder);
    auto grad = grads[0].clone(at::MemoryFormat::Contiguous);
    sum(group, grad);
    return {grad, at::Tensor()};
  }
};

// As Python does: the interfaces of GLOO_SOCKET_IFNAME, else the host's address.
std::vector<std::shared_ptr<gloo::transport::Device>> devices() {
  std::vector<std::shared_ptr<gloo::transport::Device>> devices;
  if (const char* names = std::getenv("GLOO_SOCKET_IFNAME"); names && *names) {
    std::stringstream all(names);
    for (std::string name; std::getline(all, name, ',');) {
      devices.push_back(c10d::ProcessGroupGloo::createDeviceForInterface(name));
    }
  } else {
    devices.push_back(c10d::ProcessGroupGloo::createDefaultDevice());
  }
  return devices;
}

}  // namespace

extern "C" {

char* fewstep_store_tcp(const char* host, uint16_t port, bool server, int64_t timeout_ms, FewstepStore** out) {
  FEWSTEP_TRY({
    // What c10d logs with a stack comes back as an exception as well.
    if (!std::getenv("TORCH_CPP_LOG_LEVEL")) FLAGS_caffe2_log_level = 3;
    c10d::TCPStoreOptions options;
    options.port = port;
    options.isServer = server;
    options.waitWorkers = false;
    options.timeout = milliseconds(timeout_ms);
    *out = new FewstepStore{c10::make_intrusive<c10d::TCPStore>(host, options)};
  })
}

char* fewstep_store_file(const char* path, int64_t world, int64_t timeout_ms, FewstepStore** out) {
  FEWSTEP_TRY({
    auto store = c10::make_intrusive<c10d::FileStore>(path, static_cast<int>(world));
    store->setTimeout(milliseconds(timeout_ms));
    *out = new FewstepStore{store};
  })
}

char* fewstep_store_prefix(const FewstepStore* store, const char* prefix, FewstepStore** out) {
  FEWSTEP_TRY({ *out = new FewstepStore{c10::make_intrusive<c10d::PrefixStore>(prefix, store->store)}; })
}

char* fewstep_store_set(const FewstepStore* store, const char* key, const uint8_t* bytes, int64_t n) {
  FEWSTEP_TRY({ store->store->set(key, std::vector<uint8_t>(bytes, bytes + n)); })
}

// Waits for the key until the store's time-out.
char* fewstep_store_get(const FewstepStore* store, const char* key, uint8_t** bytes, int64_t* n) {
  FEWSTEP_TRY({
    auto value = store->store->get(key);
    *bytes = static_cast<uint8_t*>(std::malloc(value.size() + 1));
    if (!*bytes) throw std::bad_alloc();
    std::copy(value.begin(), value.end(), *bytes);
    *n = static_cast<int64_t>(value.size());
  })
}

char* fewstep_store_check(const FewstepStore* store, const char* key, bool* there) {
  FEWSTEP_TRY({ *there = store->store->check({key}); })
}

char* fewstep_store_add(const FewstepStore* store, const char* key, int64_t value, int64_t* now) {
  FEWSTEP_TRY({ *now = store->store->add(key, value); })
}

void fewstep_store_free(FewstepStore* store) { delete store; }

// Gloo for CPU tensors. `store` is that of the group, without the devices' prefixes. Ranks meet within `left_ms`.
char* fewstep_group_new(const FewstepStore* store, int64_t rank, int64_t world, int64_t left_ms, int64_t timeout_ms, MakeNccl nccl,
                        FewstepGroup** out) {
  FEWSTEP_TRY({
    const int r = static_cast<int>(rank), n = static_cast<int>(world);
    auto group = c10::make_intrusive<c10d::ProcessGroup>(store->store, r, n);
    const auto gloo = c10d::ProcessGroup::BackendType::GLOO;
    group->setDefaultBackend(gloo);
    auto options = c10d::ProcessGroupGloo::Options::create(milliseconds(left_ms));
    options->devices = devices();
    options->group_name = "0";
    auto cpu = c10::make_intrusive<c10d::PrefixStore>("cpu/", store->store);
    auto backend = c10::make_intrusive<c10d::ProcessGroupGloo>(cpu, r, n, options);
    backend->setTimeout(milliseconds(timeout_ms));
    group->setBackend(at::kCPU, gloo, backend);
    if (nccl) {
      c10::intrusive_ptr<c10d::Store> cuda = c10::make_intrusive<c10d::PrefixStore>("cuda/", store->store);
      c10::intrusive_ptr<c10d::Backend> on_gpus;
      if (char* message = nccl(&cuda, r, n, timeout_ms, &on_gpus)) return message;
      group->setBackend(at::kCUDA, c10d::ProcessGroup::BackendType::NCCL, on_gpus);
    }
    group->setGroupName("0");
    *out = new FewstepGroup{group};
  })
}

void fewstep_group_free(FewstepGroup* group) { delete group; }

char* fewstep_group_all_reduce(const FewstepGroup* g, const at::Tensor* tensor, int64_t operation) {
  FEWSTEP_TRY({
    c10d::AllreduceOptions options;
    options.reduceOp = operation == 0 ? c10d::ReduceOp::SUM : operation == 1 ? c10d::ReduceOp::MIN : c10d::ReduceOp::MAX;
    Tensors tensors{*tensor};
    finish(g->group->allreduce(tensors, options));
  })
}

char* fewstep_group_broadcast(const FewstepGroup* g, const at::Tensor* tensor, int64_t from) {
  FEWSTEP_TRY({
    c10d::BroadcastOptions options;
    options.rootRank = from;
    Tensors tensors{*tensor};
    finish(g->group->broadcast(tensors, options));
  })
}

// `out` is [world, …] of `in`.
char* fewstep_group_all_gather(const FewstepGroup* g, const at::Tensor* in, const at::Tensor* out) {
  FEWSTEP_TRY({
    std::vector<Tensors> outputs{out->unbind(0)};
    Tensors inputs{*in};
    finish(g->group->allgather(outputs, inputs));
  })
}

// `in` is [world, …] of `out`.
char* fewstep_group_reduce_scatter(const FewstepGroup* g, const at::Tensor* in, const at::Tensor* out) {
  FEWSTEP_TRY({
    Tensors outputs{*out};
    std::vector<Tensors> inputs{in->unbind(0)};
    finish(g->group->reduce_scatter(outputs, inputs));
  })
}

char* fewstep_group_barrier(const FewstepGroup* g) {
  // Not the group's own, which keeps a tensor in a static variable.
  FEWSTEP_TRY({ finish(g->group->getBackend(at::kCPU)->barrier()); })
}

char* fewstep_group_sum(const FewstepGroup* g, const at::Tensor* x, at::Tensor** out) {
  FEWSTEP_TRY({ *out = new at::Tensor(Sum::apply(*x, g->group)); })
}

char* fewstep_reducer_new(const FewstepGroup* g, const at::Tensor* const* parameters, int64_t n, int64_t first_bytes, int64_t bytes,
                          FewstepReducer** out) {
  FEWSTEP_TRY({
    Tensors params;
    std::unordered_map<size_t, std::string> names;
    Tensors backwards;
    std::vector<int64_t> places;
    for (int64_t i = 0; i < n; ++i) {
      params.push_back(*parameters[i]);
      backwards.push_back(*parameters[n - 1 - i]);
      places.push_back(n - 1 - i);
    }
    c10d::verify_params_across_processes(g->group, params, std::nullopt);
    const auto sizes = std::vector<size_t>{static_cast<size_t>(first_bytes), static_cast<size_t>(bytes)};
    // Gradients come from the last layer to the first, and the first of them fill the small bucket. (Python's DistributedDataParallel gets
    // there by making its buckets anew after the first step, which the reducer does not do where parameters may be unused.)
    auto buckets = std::get<0>(c10d::compute_bucket_assignment_by_size(backwards, sizes, {}, places));
    auto reducer = std::make_shared<c10d::Reducer>(params, buckets, g->group, std::vector<bool>(params.size(), false), bytes,
                                                   /*find_unused_parameters=*/true, /*gradient_as_bucket_view=*/false, names, first_bytes,
                                                   /*skip_all_reduce_unused_params=*/false, /*use_python_reducer=*/false,
                                                   std::vector<int64_t>{});
    auto logger = std::make_shared<c10d::Logger>(reducer);
    reducer->set_logger(logger);
    logger->set_construction_data_and_log("fewstep", {}, -1, false, false, false);
    *out = new FewstepReducer{reducer, logger};
  })
}

char* fewstep_reducer_prepare(const FewstepReducer* r, const at::Tensor* loss) {
  FEWSTEP_TRY({
    r->logger->set_runtime_stats_and_log();
    r->reducer->prepare_for_forward();
    r->reducer->prepare_for_backward({*loss});
  })
}

// Bytes of each bucket, at most `room`; how many there are is returned in `n`.
char* fewstep_reducer_buckets(const FewstepReducer* r, int64_t* bytes, int64_t room, int64_t* n) {
  FEWSTEP_TRY({
    auto sizes = r->logger->get_bucket_sizes();
    *n = static_cast<int64_t>(sizes.size());
    for (int64_t i = 0; i < std::min(*n, room); ++i) bytes[i] = sizes[i];
  })
}

// Mean nanoseconds: buckets on their way, and those of them during backward.
char* fewstep_reducer_times(const FewstepReducer* r, int64_t* ns) {
  FEWSTEP_TRY({
    auto data = r->logger->get_ddp_logging_data();
    ns[0] = data.ints_map["avg_backward_comm_time"];
    ns[1] = data.ints_map["avg_backward_compute_comm_overlap_time"];
  })
}

void fewstep_reducer_free(FewstepReducer* r) { delete r; }

}  // extern "C"
