#include "bindings/device.h"

#include <ATen/Parallel.h>
#include <torch/csrc/stable/c/shim.h>

#include "cpu/step.h"

namespace lrfast::bindings {
namespace {

// Torch's own pool, through its C interface: linking OpenMP here could bring a second pool.
void parallel_for(int64_t tasks, cpu::RunTasks run, void* context) {
  TORCH_CHECK(torch_parallel_for(0, tasks, 1, run, context) == 0, "torch_parallel_for failed");
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
