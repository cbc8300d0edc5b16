// The optimizer step on a GPU: one launch for all parameter groups.
#include <algorithm>

#include "core/rules.h"
#include "cuda/launch.h"
#include "cuda/step_body.cuh"

namespace lrfast::cuda {
namespace {

// ---- kernels ---------------------------------------------------------------------------------

constexpr int kThreads = 512;
constexpr int kBlocksPerProcessor = 2;  // 1024 threads of at most 64 registers fill a register file

template <class Rule>
__global__ void __launch_bounds__(kThreads, kBlocksPerProcessor) step_kernel(const StepTables t) {
  __shared__ StepMemory<Rule> shared;
  CudaBlock block;
  step_body<Rule>(t, shared, block);
}

// ---- kernel launchers ------------------------------------------------------------------------

cudaError_t resident_blocks(const void* kernel, int* blocks) {
  int device = 0;
  int processors = 0;
  int per_processor = 0;
  if (cudaError_t e = cudaGetDevice(&device)) return e;
  if (cudaError_t e = cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device)) {
    return e;
  }
  if (cudaError_t e =
          cudaOccupancyMaxActiveBlocksPerMultiprocessor(&per_processor, kernel, kThreads, 0)) {
    return e;
  }
  *blocks = processors * per_processor;
  return cudaSuccess;
}

}  // namespace

cudaError_t launch_step(int rule, const StepTables& tables, cudaStream_t stream) {
  cudaError_t error = cudaErrorInvalidValue;
  Rules::visit(rule, [&]<class Rule>() {
    int resident = 0;
    error = resident_blocks(reinterpret_cast<const void*>(&step_kernel<Rule>), &resident);
    if (error != cudaSuccess) return;
    // One block at least: a step without chunks still advances the clock.
    const int64_t blocks = std::max<int64_t>(1, std::min<int64_t>(tables.num_chunks, resident));
    step_kernel<Rule><<<static_cast<unsigned>(blocks), kThreads, 0, stream>>>(tables);
    error = cudaGetLastError();
  });
  return error;
}

}  // namespace lrfast::cuda
