// Tensors of the simulated device.
#pragma once

#include <ATen/core/Tensor.h>

namespace sim {

at::Tensor empty_on(int device, at::IntArrayRef sizes, at::IntArrayRef strides,
                    at::ScalarType type);

// The same memory as a CPU tensor, without a hold on it: as a kernel has it.
at::Tensor host_view(const at::Tensor& tensor);

// A tensor over the same storage.
at::Tensor alias_of(const at::Tensor& tensor, at::IntArrayRef sizes, at::IntArrayRef strides,
                    int64_t offset);
// Gives a tensor another storage, as out= arguments and set_() need it.
void rebind(const at::Tensor& tensor, const at::Storage& storage, at::IntArrayRef sizes,
            at::IntArrayRef strides, int64_t offset);

}  // namespace sim
