#include "bindings/device.h"

#include <ATen/Parallel.h>
#include <torch/csrc/stable/c/shim.h>

#include "cpu/step.h"

namespace lrfast::bindings {
namespace {

// Torch's own pool, through its C interface: linking OpenMP here could bring a second pool.
void parallel_for(int64_t tasks, void (*run)(void* context, int64_t task), void* context) {
  struct Call {
    void (*run)(void*, int64_t);
    void* context;
  } call{run, context};
  const auto run_range = [](int64_t begin, int64_t end, void* given) {
    const Call& c = *static_cast<Call*>(given);
    for (int64_t i = begin; i < end; ++i) c.run(c.context, i);
  };
  TORCH_CHECK(torch_parallel_for(0, tasks, 1, run_range, &call) == 0, "torch_parallel_for failed");
}

}  // namespace

void step(int rule, const StepTables& tables, at::Device device, cpu::Scratch& scratch) {
  if (device.is_cuda()) {
    cuda_calls::step(rule, tables, device);
  } else {
    cpu::step(rule, tables, at::get_num_threads(), parallel_for, scratch);
  }
}

}  // namespace lrfast::bindings
