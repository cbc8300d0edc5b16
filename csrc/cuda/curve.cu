// The loss curve on a GPU. Recording costs a launch and no wait.
#include "cuda/curve_body.cuh"
#include "cuda/launch.h"

namespace lrfast::cuda {
namespace {

// ---- kernels ---------------------------------------------------------------------------------

__global__ void record_kernel(const CurveRows curve, const Scalar loss, const double* rates,
                              const Scalar skip) {
  __shared__ int64_t place;
  CudaBlock block;
  record_body(curve, loss, rates, skip, place, block);
}

// An EMA is a chain: one thread walks it, once per look at the curve.
__global__ void smooth_ema_kernel(const double* values, double* out, int64_t count, double beta) {
  smooth_ema(values, out, count, beta);
}

template <class Point>
__global__ void point_kernel(const Point point, double* out, int64_t count) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i < count) out[i] = point(i, NAN);
}

// ---- kernel launchers ------------------------------------------------------------------------

constexpr int kThreads = 256;

unsigned blocks_for(int64_t count) {
  return static_cast<unsigned>((count + kThreads - 1) / kThreads);
}

}  // namespace

cudaError_t launch_record(const CurveRows& curve, const Scalar& loss, const double* rates,
                          const Scalar& skip, cudaStream_t stream) {
  record_kernel<<<1, kThreads, 0, stream>>>(curve, loss, rates, skip);
  return cudaGetLastError();
}

cudaError_t launch_smooth_ema(const double* values, double* out, int64_t count, double beta,
                              cudaStream_t stream) {
  smooth_ema_kernel<<<1, 1, 0, stream>>>(values, out, count, beta);
  return cudaGetLastError();
}

cudaError_t launch_points(const Points& points, double* out, int64_t count, cudaStream_t stream) {
  if (count == 0) return cudaSuccess;
  std::visit(
      [&](const auto& point) {
        point_kernel<<<blocks_for(count), kThreads, 0, stream>>>(point, out, count);
      },
      points);
  return cudaGetLastError();
}

}  // namespace lrfast::cuda
