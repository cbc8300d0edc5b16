// States in 8 bits and master weights as Python converts them: when they are loaded, or taken over
// from another optimizer. Steps do it in their own pass.
#pragma once

#include <torch/csrc/autograd/python_variable.h>

#include <utility>

namespace lrfast::bindings {

// Codes, uint8, laid out as the float32 values, and scales, uint8 [numel / 256]; rounded to
// nearest. The values are dense, on the CPU; positive: they are means of squares.
std::pair<at::Tensor, at::Tensor> encode_state(const at::Tensor& values, bool positive);
// float32, laid out as the codes.
at::Tensor decode_state(const at::Tensor& codes, const at::Tensor& scales, bool positive);
// The float32 weights of a half parameter with its master bits, int8 or int16 in its layout.
at::Tensor join_masters(const at::Tensor& param, const at::Tensor& bits);

}  // namespace lrfast::bindings
