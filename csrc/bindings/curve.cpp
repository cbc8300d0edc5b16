#include "bindings/curve.h"

#include <ATen/ops/empty_like.h>

#include "bindings/device.h"

namespace lrfast::bindings {
namespace {

LossType loss_type(const at::Tensor& loss) {
  switch (loss.scalar_type()) {
    case at::kFloat:
      return LossType::kFloat32;
    case at::kDouble:
      return LossType::kFloat64;
    case at::kBFloat16:
      return LossType::kBFloat16;
    case at::kHalf:
      return LossType::kFloat16;
    default:
      TORCH_CHECK_TYPE(false, "loss must be a floating-point tensor, got ", loss.scalar_type());
  }
}

void check_array(const at::Tensor& array, const char* name) {
  TORCH_CHECK_TYPE(array.scalar_type() == at::kDouble && array.is_contiguous(), name,
                   " must be contiguous float64, got ", array.scalar_type());
}

}  // namespace

void record_loss(const at::Tensor& state, const at::Tensor& losses, const at::Tensor& rates,
                 const at::Tensor& loss, const at::Tensor& rate, double beta, double stop) {
  TORCH_CHECK_VALUE(loss.numel() == 1, "loss must be a scalar tensor, got shape ", loss.sizes());
  TORCH_CHECK_VALUE(loss.device() == state.device(), "loss must be on the curve's device ",
                    state.device(), ", got ", loss.device());
  check_array(state, "state");
  check_array(losses, "losses");
  check_array(rates, "rates");
  check_array(rate, "lr");
  TORCH_CHECK_VALUE(rate.numel() == rates.size(1) && rate.device() == state.device(),
                    "lr must hold ", rates.size(1), " rates on ", state.device(), ", got ",
                    rate.numel(), " on ", rate.device());
  const CurveRows curve{static_cast<CurveState*>(state.mutable_data_ptr()),
                        losses.mutable_data_ptr<double>(),
                        rates.mutable_data_ptr<double>(),
                        losses.numel(),
                        rates.size(1),
                        beta,
                        stop};
  const void* address = loss.const_data_ptr();
  const double* rate_address = rate.const_data_ptr<double>();
  if (loss.is_cuda()) {
    cuda_calls::record(curve, address, loss_type(loss), rate_address, loss.device());
  } else {
    record(curve, load_loss(address, loss_type(loss)), rate_address);
  }
}

at::Tensor smooth_ema(const at::Tensor& values, double beta) {
  check_array(values, "values");
  at::Tensor out = at::empty_like(values);
  const double* in = values.const_data_ptr<double>();
  double* result = out.mutable_data_ptr<double>();
  if (values.is_cuda()) {
    cuda_calls::smooth_ema(in, result, values.numel(), beta, values.device());
  } else {
    lrfast::smooth_ema(in, result, values.numel(), beta);
  }
  return out;
}

at::Tensor moving_average(const at::Tensor& values, int64_t window) {
  check_array(values, "values");
  at::Tensor out = at::empty_like(values);
  const double* in = values.const_data_ptr<double>();
  double* result = out.mutable_data_ptr<double>();
  if (values.is_cuda()) {
    cuda_calls::moving_average(in, result, values.numel(), window, values.device());
  } else {
    for (int64_t i = 0; i < values.numel(); ++i) {
      result[i] = lrfast::moving_average(in, values.numel(), window, i);
    }
  }
  return out;
}

at::Tensor derivative(const at::Tensor& values, const at::Tensor& x, int64_t reach) {
  check_array(values, "values");
  check_array(x, "x");
  TORCH_CHECK_VALUE(x.sizes() == values.sizes() && x.device() == values.device(),
                    "x must have the shape and device of values, got ", x.sizes(), " and ",
                    values.sizes());
  at::Tensor out = at::empty_like(values);
  const double* in = values.const_data_ptr<double>();
  const double* at_x = x.const_data_ptr<double>();
  double* result = out.mutable_data_ptr<double>();
  if (values.is_cuda()) {
    cuda_calls::derivative(in, at_x, result, values.numel(), reach, values.device());
  } else {
    for (int64_t i = 0; i < values.numel(); ++i) {
      result[i] = lrfast::derivative(in, at_x, values.numel(), reach, i);
    }
  }
  return out;
}

}  // namespace lrfast::bindings
