// The loss curve as Python calls it, on tensors of either device.
#pragma once

#include <optional>

#include <ATen/core/Tensor.h>

namespace lrfast::bindings {

// losses: [capacity], rates: [capacity, width], state: [kCurveStateDoubles], all float64 on the
// loss's device; loss, skip: one element there; rate: [width] float64 there, or none to leave the
// row as planned.
void record_loss(const at::Tensor& state, const at::Tensor& losses, const at::Tensor& rates,
                 const at::Tensor& loss, const std::optional<at::Tensor>& rate,
                 const std::optional<at::Tensor>& skip, double beta, double stop, int64_t grace);

// values, x: [count] float64 -> [count] float64 on the same device.
at::Tensor smooth_ema(const at::Tensor& values, double beta);
at::Tensor moving_average(const at::Tensor& values, int64_t window);
at::Tensor running_median(const at::Tensor& values, int64_t window);
at::Tensor savitzky_golay(const at::Tensor& values, int64_t window, int64_t order);
at::Tensor derivative(const at::Tensor& values, const at::Tensor& x, int64_t reach);

}  // namespace lrfast::bindings
