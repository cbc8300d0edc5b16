// What the bindings may launch. Plain CUDA types, so that a .cu file compiles without torch.
#pragma once

#include <cuda_runtime_api.h>

#include <vector>

#include "core/curve.h"
#include "core/tables.h"

namespace lrfast::cuda {

// One launch for all groups, tensors and element types. rule: place in core/rules.h's list.
cudaError_t launch_step(int rule, const StepTables& tables, cudaStream_t stream);

// tables.values at the clock's step, where no step has left them.
cudaError_t launch_schedule(const StepTables& tables, cudaStream_t stream);

// On the device all: rates: [curve.width], or null to leave the row as planned; skip's address may
// be null.
cudaError_t launch_record(const CurveRows& curve, const Scalar& loss, const double* rates,
                          const Scalar& skip, cudaStream_t stream);

// All arrays: [count] on the device.
cudaError_t launch_smooth_ema(const double* values, double* out, int64_t count, double beta,
                              cudaStream_t stream);
cudaError_t launch_points(const Points& points, double* out, int64_t count, cudaStream_t stream);

// That the kernels are compiled for: 90 for sm_90. Later ones run what is compiled of the last
// one's PTX, if that was asked for.
std::vector<int> architectures();

}  // namespace lrfast::cuda
