#include "bindings/device.h"

#include <ATen/Parallel.h>
#include <torch/csrc/stable/c/shim.h>

#include "cpu/step.h"

namespace lrfast::bindings {
namespace {

// Torch's own pool, through its C interface: linking OpenMP here could bring a second pool.
void parallel_for(int64_t tasks, const std::function<void(int64_t)>& body) {
  const auto run = [](int64_t begin, int64_t end, void* context) {
    const auto& task = *static_cast<const std::function<void(int64_t)>*>(context);
    for (int64_t i = begin; i < end; ++i) task(i);
  };
  void* context = const_cast<std::function<void(int64_t)>*>(&body);
  TORCH_CHECK(torch_parallel_for(0, tasks, 1, run, context) == 0, "torch_parallel_for failed");
}

}  // namespace

void step(int rule, const StepTables& tables, at::Device device) {
  if (device.is_cuda()) {
    cuda_calls::step(rule, tables, device);
  } else {
    cpu::step(rule, tables, at::get_num_threads(), parallel_for);
  }
}

}  // namespace lrfast::bindings
