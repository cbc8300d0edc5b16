// The two devices behind one set of calls. On the CPU the work is done when the call returns; on a
// GPU it is queued on the current stream, and no call waits for it.
#pragma once

#include <ATen/core/Tensor.h>

#include <vector>

#include "core/codes.h"
#include "core/curve.h"
#include "core/tables.h"
#include "cpu/step.h"

namespace lrfast::bindings {

constexpr int64_t kCpuChunk = 16384;   // elements; small enough to balance a handful of threads
constexpr int64_t kCudaChunk = 32768;  // elements; many, as each chunk is prepared by one thread
// Of models that do not give every block of a GPU a chunk of those (264 blocks on an H100): a step
// takes as long as its longest block.
constexpr int64_t kSmallCudaChunk = 16384;
static_assert(kCpuChunk % kCodeBlock == 0 && kSmallCudaChunk % kCodeBlock == 0 &&
              kCudaChunk % kCodeBlock == 0);           // no chunk begins within a block of codes
constexpr int64_t kSmallCudaModel = 256 * kCudaChunk;  // elements: 8 million

// elements: of all parameters on that device.
inline int64_t chunk_size(at::Device device, int64_t elements) {
  if (device.is_cpu()) return kCpuChunk;
  return elements < kSmallCudaModel ? kSmallCudaChunk : kCudaChunk;
}

// With CUDA (cuda.cpp), or an error that says it is not built in (no_cuda.cpp).
namespace cuda_calls {
void step(int rule, const StepTables& tables, at::Device device);
void schedule(const StepTables& tables, at::Device device);
// Whether what is launched now goes into a graph instead of running.
bool is_capturing(at::Device device);
c10::Stream current_stream(at::Device device);
void record(const CurveRows& curve, const Scalar& loss, const double* rates, const Scalar& skip,
            at::Device device);
void smooth_ema(const double* values, double* out, int64_t count, double beta, at::Device device);
void evaluate(const Points& points, double* out, int64_t count, at::Device device);
bool is_built();
int toolkit();  // version of the CUDA toolkit, as 1000 * major + 10 * minor; or 0
std::vector<int> architectures();  // that the kernels are compiled for: 90 for sm_90
}  // namespace cuda_calls

inline bool is_capturing(at::Device device) {
  return device.is_cuda() && cuda_calls::is_capturing(device);
}

// scratch: for a step on the CPU.
void step(int rule, const StepTables& tables, at::Device device, cpu::Scratch& scratch);

}  // namespace lrfast::bindings
