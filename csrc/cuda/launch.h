// What the bindings may launch. Plain CUDA types, so that a .cu file compiles without torch.
#pragma once

#include <cuda_runtime_api.h>

#include "core/curve.h"
#include "core/tables.h"

namespace lrfast::cuda {

// One launch for all groups, tensors and element types. rule: place in core/rules.h's list.
cudaError_t launch_step(int rule, const StepTables& tables, cudaStream_t stream);

// loss: one element of the given type on the device; rates: [curve.width] on the device.
cudaError_t launch_record(const CurveRows& curve, const void* loss, LossType type,
                          const double* rates, cudaStream_t stream);

// All arrays: [count] on the device.
cudaError_t launch_smooth_ema(const double* values, double* out, int64_t count, double beta,
                              cudaStream_t stream);
cudaError_t launch_moving_average(const double* values, double* out, int64_t count, int64_t window,
                                  cudaStream_t stream);
cudaError_t launch_derivative(const double* values, const double* x, double* out, int64_t count,
                              int64_t reach, cudaStream_t stream);

}  // namespace lrfast::cuda
