// The loss curve as Python calls it, on tensors of either device.
#pragma once

#include <ATen/core/Tensor.h>

namespace lrfast::bindings {

// losses: [capacity], rates: [capacity, width], state: [kCurveStateDoubles], all float64 on the
// loss's device; loss: one element; rate: [width] float64 on that device.
void record_loss(const at::Tensor& state, const at::Tensor& losses, const at::Tensor& rates,
                 const at::Tensor& loss, const at::Tensor& rate, double beta, double stop);

// values, x: [count] float64 -> [count] float64 on the same device.
at::Tensor smooth_ema(const at::Tensor& values, double beta);
at::Tensor moving_average(const at::Tensor& values, int64_t window);
at::Tensor derivative(const at::Tensor& values, const at::Tensor& x, int64_t reach);

}  // namespace lrfast::bindings
