#include "bindings/curve.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>

#include "bindings/device.h"

namespace lrfast::bindings {
namespace {

FloatType float_type(const at::Tensor& scalar, const char* name) {
  switch (scalar.scalar_type()) {
    case at::kFloat:
      return FloatType::kFloat32;
    case at::kDouble:
      return FloatType::kFloat64;
    case at::kBFloat16:
      return FloatType::kBFloat16;
    case at::kHalf:
      return FloatType::kFloat16;
    default:
      TORCH_CHECK_TYPE(false, name, " must be a floating-point tensor, got ", scalar.scalar_type());
  }
}

Scalar scalar_of(const at::Tensor& scalar, at::Device device, const char* name) {
  TORCH_CHECK_VALUE(scalar.numel() == 1, name, " must be a scalar tensor, got shape ",
                    scalar.sizes());
  TORCH_CHECK_VALUE(scalar.device() == device, name, " must be on the curve's device ", device,
                    ", got ", scalar.device());
  return {scalar.const_data_ptr(), float_type(scalar, name)};
}

void check_array(const at::Tensor& array, const char* name) {
  TORCH_CHECK_TYPE(array.scalar_type() == at::kDouble && array.is_contiguous(), name,
                   " must be contiguous float64, got ", array.scalar_type());
}

const double* numbers_of(const at::Tensor& values) {
  check_array(values, "values");
  return values.const_data_ptr<double>();
}

// One number for each of values, which points were made of.
at::Tensor evaluate(const Points& points, const at::Tensor& values) {
  at::Tensor out = at::empty_like(values);
  double* result = out.mutable_data_ptr<double>();
  if (values.is_cuda()) {
    cuda_calls::evaluate(points, result, values.numel(), values.device());
    return out;
  }
  std::visit(
      [&](const auto& point) {
        double before = NAN;
        for (int64_t i = 0; i < values.numel(); ++i) before = result[i] = point(i, before);
      },
      points);
  return out;
}

}  // namespace

void record_loss(const at::Tensor& state, const at::Tensor& losses, const at::Tensor& rates,
                 const at::Tensor& loss, const std::optional<at::Tensor>& rate,
                 const std::optional<at::Tensor>& skip, double beta, double stop, int64_t grace) {
  const at::Device device = state.device();
  check_array(state, "state");
  check_array(losses, "losses");
  check_array(rates, "rates");
  const Scalar value = scalar_of(loss, device, "loss");
  const Scalar skipped = skip ? scalar_of(*skip, device, "skip") : Scalar{};
  const double* now = nullptr;
  if (rate) {
    check_array(*rate, "lr");
    TORCH_CHECK_VALUE(rate->numel() == rates.size(1) && rate->device() == device, "lr must hold ",
                      rates.size(1), " rates on ", device, ", got ", rate->numel(), " on ",
                      rate->device());
    now = rate->const_data_ptr<double>();
  }
  const CurveRows curve{static_cast<CurveState*>(state.mutable_data_ptr()),
                        losses.mutable_data_ptr<double>(),
                        rates.mutable_data_ptr<double>(),
                        losses.numel(),
                        rates.size(1),
                        beta,
                        stop,
                        grace};
  if (device.is_cuda()) {
    cuda_calls::record(curve, value, now, skipped, device);
  } else {
    record(curve, value, now, skipped);
  }
}

at::Tensor smooth_ema(const at::Tensor& values, double beta) {
  const double* in = numbers_of(values);
  at::Tensor out = at::empty_like(values);
  double* result = out.mutable_data_ptr<double>();
  if (values.is_cuda()) {
    cuda_calls::smooth_ema(in, result, values.numel(), beta, values.device());
  } else {
    lrfast::smooth_ema(in, result, values.numel(), beta);
  }
  return out;
}

at::Tensor moving_average(const at::Tensor& values, int64_t window) {
  return evaluate(MovingAverage{numbers_of(values), values.numel(), window}, values);
}

at::Tensor running_median(const at::Tensor& values, int64_t window) {
  return evaluate(RunningMedian{numbers_of(values), values.numel(), window}, values);
}

at::Tensor savitzky_golay(const at::Tensor& values, int64_t window, int64_t order) {
  TORCH_CHECK_VALUE(order >= 0 && order <= kMaxSavgolOrder, "order must be from 0 to ",
                    kMaxSavgolOrder, ", got ", order);
  TORCH_CHECK_VALUE(window % 2 == 1 && window > order && window <= values.numel(),
                    "window must be odd, above the order ", order,
                    " and at most the number of losses, ", values.numel(), ", got ", window);
  at::Tensor table = at::empty({order + 2, window}, values.options().device(at::kCPU));
  fill_savgol_table(table.mutable_data_ptr<double>(), window, order);
  table = table.to(values.device());
  return evaluate(SavitzkyGolay{numbers_of(values), values.numel(), window, order,
                                table.const_data_ptr<double>()},
                  values);
}

at::Tensor derivative(const at::Tensor& values, const at::Tensor& x, int64_t reach) {
  check_array(x, "x");
  TORCH_CHECK_VALUE(x.sizes() == values.sizes() && x.device() == values.device(),
                    "x must have the shape and device of values, got ", x.sizes(), " and ",
                    values.sizes());
  return evaluate(Derivative{numbers_of(values), values.numel(), x.const_data_ptr<double>(), reach},
                  values);
}

}  // namespace lrfast::bindings
