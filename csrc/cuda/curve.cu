// The loss curve on a GPU. Recording is one thread's work; it costs a launch and no wait.
#include "cuda/launch.h"

namespace lrfast::cuda {
namespace {

// ---- kernels ---------------------------------------------------------------------------------

__global__ void record_kernel(const CurveRows curve, const void* loss, LossType type,
                              const double* rates) {
  record(curve, load_loss(loss, type), rates);
}

// An EMA is a chain: one thread walks it, once per look at the curve.
__global__ void smooth_ema_kernel(const double* values, double* out, int64_t count, double beta) {
  smooth_ema(values, out, count, beta);
}

__global__ void moving_average_kernel(const double* values, double* out, int64_t count,
                                      int64_t window) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i < count) out[i] = moving_average(values, count, window, i);
}

__global__ void derivative_kernel(const double* values, const double* x, double* out, int64_t count,
                                  int64_t reach) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i < count) out[i] = derivative(values, x, count, reach, i);
}

// ---- kernel launchers ------------------------------------------------------------------------

constexpr int kThreads = 256;

unsigned blocks_for(int64_t count) {
  return static_cast<unsigned>((count + kThreads - 1) / kThreads);
}

}  // namespace

cudaError_t launch_record(const CurveRows& curve, const void* loss, LossType type,
                          const double* rates, cudaStream_t stream) {
  record_kernel<<<1, 1, 0, stream>>>(curve, loss, type, rates);
  return cudaGetLastError();
}

cudaError_t launch_smooth_ema(const double* values, double* out, int64_t count, double beta,
                              cudaStream_t stream) {
  smooth_ema_kernel<<<1, 1, 0, stream>>>(values, out, count, beta);
  return cudaGetLastError();
}

cudaError_t launch_moving_average(const double* values, double* out, int64_t count, int64_t window,
                                  cudaStream_t stream) {
  if (count == 0) return cudaSuccess;
  moving_average_kernel<<<blocks_for(count), kThreads, 0, stream>>>(values, out, count, window);
  return cudaGetLastError();
}

cudaError_t launch_derivative(const double* values, const double* x, double* out, int64_t count,
                              int64_t reach, cudaStream_t stream) {
  if (count == 0) return cudaSuccess;
  derivative_kernel<<<blocks_for(count), kThreads, 0, stream>>>(values, x, out, count, reach);
  return cudaGetLastError();
}

}  // namespace lrfast::cuda
