#include "bindings/codes.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>

#include "cpu/codes.h"
#include "cpu/masters.h"

namespace lrfast::bindings {
namespace {

StateKind kind_of(bool positive) { return positive ? StateKind::kPositive : StateKind::kSigned; }

void check_dense(const at::Tensor& tensor, const char* name, at::ScalarType type) {
  TORCH_CHECK_TYPE(
      tensor.is_cpu() && tensor.scalar_type() == type && tensor.is_non_overlapping_and_dense(),
      name, " must be dense ", type, " on cpu, got ", tensor.scalar_type(), " on ",
      tensor.device());
}

}  // namespace

std::pair<at::Tensor, at::Tensor> encode_state(const at::Tensor& values, bool positive) {
  check_dense(values, "values", at::kFloat);
  at::Tensor codes = at::empty_like(values, values.options().dtype(at::kByte));
  at::Tensor scales = at::empty({count_scales(values.numel())}, codes.options());
  cpu::encode_state(kind_of(positive), values.const_data_ptr<float>(), values.numel(),
                    codes.mutable_data_ptr<uint8_t>(), scales.mutable_data_ptr<uint8_t>());
  return {codes, scales};
}

at::Tensor decode_state(const at::Tensor& codes, const at::Tensor& scales, bool positive) {
  check_dense(codes, "codes", at::kByte);
  check_dense(scales, "scales", at::kByte);
  TORCH_CHECK_VALUE(scales.numel() == count_scales(codes.numel()), "scales must hold ",
                    count_scales(codes.numel()), " bytes for ", codes.numel(), " codes, got ",
                    scales.numel());
  at::Tensor values = at::empty_like(codes, codes.options().dtype(at::kFloat));
  cpu::decode_state(kind_of(positive), codes.const_data_ptr<uint8_t>(),
                    scales.const_data_ptr<uint8_t>(), codes.numel(),
                    values.mutable_data_ptr<float>());
  return values;
}

at::Tensor join_masters(const at::Tensor& param, const at::Tensor& bits) {
  const bool is_float16 = param.scalar_type() == at::kHalf;
  check_dense(param, "param", is_float16 ? at::kHalf : at::kBFloat16);
  check_dense(bits, "bits", bits.scalar_type() == at::kChar ? at::kChar : at::kShort);
  TORCH_CHECK_VALUE(bits.sizes() == param.sizes() && bits.strides() == param.strides(),
                    "bits must be laid out as param, ", param.sizes(), " with strides ",
                    param.strides(), ", got ", bits.sizes(), " with ", bits.strides());
  at::Tensor weights = at::empty_like(param, param.options().dtype(at::kFloat));
  TensorRow row{};
  row.param = param.data_ptr();
  row.dtypes = is_float16 ? DtypePair::kFloat16 : DtypePair::kBFloat16;
  row.master = static_cast<uint8_t>(bits.element_size());
  row.master_bits = bits.data_ptr();
  cpu::join_masters(row, 0, param.numel(), weights.mutable_data_ptr<float>());
  return weights;
}

}  // namespace lrfast::bindings
