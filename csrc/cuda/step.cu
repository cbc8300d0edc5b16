// The optimizer step on a GPU: one launch for all parameter groups, one more where gradients are
// clipped, one more where a rule measures a distance or an option a tensor, and a small one for the
// first step of a schedule.
#include <algorithm>
#include <array>
#include <atomic>

#include "core/rules.h"
#include "cuda/launch.h"
#include "cuda/step_body.cuh"

namespace lrfast::cuda {
namespace {

// ---- kernels ---------------------------------------------------------------------------------

constexpr int kThreads = kMaxThreads;
constexpr int kDevices = 64;            // whose launch facts are kept
constexpr int kBlocksPerProcessor = 2;  // 1024 threads of at most 64 registers fill a register file

__global__ void __launch_bounds__(kThreads, kBlocksPerProcessor) norm_kernel(const StepTables t) {
  __shared__ NormMemory shared;
  CudaBlock block;
  norm_body(t, shared, block);
}

__global__ void __launch_bounds__(kThreads, kBlocksPerProcessor) finish_norms_kernel(
    const StepTables t) {
  __shared__ NormMemory shared;
  CudaBlock block;
  finish_norms_body(t, shared, block);
}

__global__ void __launch_bounds__(kThreads, kBlocksPerProcessor) schedule_kernel(
    const StepTables t) {
  CudaBlock block;
  schedule_body(t, block);
}

template <class Rule>
__global__ void __launch_bounds__(kThreads, kBlocksPerProcessor) measure_kernel(
    const StepTables t) {
  __shared__ StepMemory<Rule> shared;
  CudaBlock block;
  measure_body<Rule, false>(t, in_register(shared), block);
}

// The sums over each tensor that options need.
template <class Rule, bool squares>
__global__ void __launch_bounds__(kThreads, kBlocksPerProcessor) foresee_kernel(
    const StepTables t) {
  __shared__ StepMemory<Rule> shared;
  CudaBlock block;
  measure_body<Rule, squares>(t, in_register(shared), block);
}

template <class Rule>
__global__ void __launch_bounds__(kThreads, kBlocksPerProcessor) finish_distance_kernel(
    const StepTables t) {
  CudaBlock block;
  finish_distance_body<Rule>(t, block);
}

template <class Rule, bool passes>
__global__ void __launch_bounds__(kThreads, kBlocksPerProcessor) step_kernel(const StepTables t) {
  __shared__ StepMemory<Rule> shared;
  CudaBlock block;
  step_body<Rule, passes, false>(t, in_register(shared), block);
}

template <class Rule>
__global__ void __launch_bounds__(kThreads, kBlocksPerProcessor) altered_kernel(
    const StepTables t) {
  __shared__ StepMemory<Rule> shared;
  CudaBlock block;
  step_body<Rule, true, true>(t, in_register(shared), block);
}

// ---- kernel launchers ------------------------------------------------------------------------

using Kernel = void (*)(StepTables);

// Blocks of a kernel that are resident on a device at once.
cudaError_t count_resident(Kernel kernel, int device, int& blocks) {
  int processors = 0;
  int per_processor = 0;
  if (cudaError_t e = cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device)) {
    return e;
  }
  if (cudaError_t e =
          cudaOccupancyMaxActiveBlocksPerMultiprocessor(&per_processor, kernel, kThreads, 0)) {
    return e;
  }
  blocks = processors * per_processor;
  return cudaSuccess;
}

// The same, asked for once per device: the driver takes a microsecond for its answer. Threads that
// ask at once find the same, and 0 stands for what has not been asked.
template <Kernel kernel>
cudaError_t find_resident(int& blocks) {
  static std::array<std::atomic<int>, kDevices> known{};
  int device = 0;
  if (cudaError_t e = cudaGetDevice(&device)) return e;
  if (device >= kDevices) return count_resident(kernel, device, blocks);
  blocks = known[device].load(std::memory_order_relaxed);
  if (blocks > 0) return cudaSuccess;
  const cudaError_t error = count_resident(kernel, device, blocks);
  if (error == cudaSuccess) known[device].store(blocks, std::memory_order_relaxed);
  return error;
}

// As many blocks as are resident at once, or as there are chunks; one at least, as a step without
// chunks still advances the clock.
template <Kernel kernel>
cudaError_t launch(const StepTables& tables, cudaStream_t stream) {
  int resident = 0;
  if (cudaError_t e = find_resident<kernel>(resident)) return e;
  const int64_t blocks = std::max<int64_t>(1, std::min<int64_t>(tables.num_chunks, resident));
  kernel<<<static_cast<unsigned>(blocks), kThreads, 0, stream>>>(tables);
  return cudaGetLastError();
}

// What comes before the update.
cudaError_t launch_norms(const StepTables& t, cudaStream_t stream) {
  if (takes_squares(t)) return launch<&norm_kernel>(t, stream);
  if (!finishes_squares(t)) return cudaSuccess;
  finish_norms_kernel<<<1, kThreads, 0, stream>>>(t);
  return cudaGetLastError();
}

template <class Rule>
cudaError_t launch_distance(const StepTables& t, cudaStream_t stream) {
  if (t.phase != Phase::kUpdate) return launch<&measure_kernel<Rule>>(t, stream);
  finish_distance_kernel<Rule><<<1, kThreads, 0, stream>>>(t);
  return cudaGetLastError();
}

template <class Rule>
cudaError_t launch_update(const StepTables& t, cudaStream_t stream) {
  if constexpr (Measures<Rule>) {
    if (cudaError_t error = launch_distance<Rule>(t, stream)) return error;
    if (t.phase == Phase::kMeasure) return cudaSuccess;
  }
  cudaError_t error = cudaSuccess;
  with_terms<Rule>(
      t, [&]<bool squares>() { error = launch<&foresee_kernel<Rule, squares>>(t, stream); });
  if (error != cudaSuccess) return error;
  with_step<Rule>(t, has_passes(t), [&]<bool passes, bool altered>() {
    if constexpr (altered) {
      error = launch<&altered_kernel<Rule>>(t, stream);
    } else {
      error = launch<&step_kernel<Rule, passes>>(t, stream);
    }
  });
  return error;
}

}  // namespace

cudaError_t launch_schedule(const StepTables& tables, cudaStream_t stream) {
  schedule_kernel<<<1, kThreads, 0, stream>>>(tables);
  return cudaGetLastError();
}

cudaError_t launch_step(int rule, const StepTables& tables, cudaStream_t stream) {
  if (cudaError_t error = launch_norms(tables, stream)) return error;
  if (!updates(tables)) return cudaSuccess;
  cudaError_t error = cudaErrorInvalidValue;
  Rules::visit(rule, [&]<class Rule>() { error = launch_update<Rule>(tables, stream); });
  return error;
}

std::vector<int> architectures() {
  std::vector<int> found;
  for (const int arch : {__CUDA_ARCH_LIST__}) found.push_back(arch / 10);
  return found;
}

}  // namespace lrfast::cuda
