// Queues the CUDA launches on torch's current stream of the tensors' device.
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGraphsC10Utils.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>

#include "bindings/device.h"
#include "cuda/launch.h"

namespace lrfast::bindings::cuda_calls {
namespace {

template <class Launch>
void on_device(at::Device device, Launch&& launch) {
  const c10::cuda::CUDAGuard guard(device);
  C10_CUDA_CHECK(launch(c10::cuda::getCurrentCUDAStream(device.index()).stream()));
}

}  // namespace

void step(int rule, const StepTables& tables, at::Device device) {
  on_device(device, [&](cudaStream_t s) { return cuda::launch_step(rule, tables, s); });
}

void schedule(const StepTables& tables, at::Device device) {
  on_device(device, [&](cudaStream_t s) { return cuda::launch_schedule(tables, s); });
}

bool is_capturing(at::Device device) {
  const c10::cuda::CUDAGuard guard(device);
  return c10::cuda::currentStreamCaptureStatusMayInitCtx() != c10::cuda::CaptureStatus::None;
}

c10::Stream current_stream(at::Device device) {
  return c10::cuda::getCurrentCUDAStream(device.index()).unwrap();
}

void record(const CurveRows& curve, const Scalar& loss, const double* rates, const Scalar& skip,
            at::Device device) {
  on_device(device,
            [&](cudaStream_t s) { return cuda::launch_record(curve, loss, rates, skip, s); });
}

void smooth_ema(const double* values, double* out, int64_t count, double beta, at::Device device) {
  on_device(device,
            [&](cudaStream_t s) { return cuda::launch_smooth_ema(values, out, count, beta, s); });
}

void evaluate(const Points& points, double* out, int64_t count, at::Device device) {
  on_device(device, [&](cudaStream_t s) { return cuda::launch_points(points, out, count, s); });
}

bool is_built() { return true; }
int toolkit() { return CUDART_VERSION; }
std::vector<int> architectures() { return cuda::architectures(); }

}  // namespace lrfast::bindings::cuda_calls
