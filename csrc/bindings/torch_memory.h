// Tables in torch's memory.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>

#include <cstring>

#include "bindings/device_array.h"

namespace lrfast::bindings {

struct TorchMemory {
  using Device = at::Device;
  using Buffer = at::Tensor;  // of bytes

  static bool is_host(const at::Device& device) { return device.is_cpu(); }
  static void* address(const at::Tensor& buffer) { return buffer.mutable_data_ptr(); }
  static int64_t capacity(const at::Tensor& buffer) { return buffer.numel(); }

  static at::Tensor allocate(int64_t size, const at::Device& device) {
    return at::empty({size}, at::TensorOptions().dtype(at::kByte).device(device));
  }

  // Queued from pinned memory that torch's allocator keeps until the copy has run, so that the host
  // never waits and a later edit cannot overtake it. Not to be captured: a graph would copy from
  // that memory again when it is another tensor's (pytorch#119153).
  static void upload(at::Tensor& buffer, const void* rows, int64_t size) {
    if (size == 0) return;
    at::Tensor pinned = at::empty({size}, at::TensorOptions().dtype(at::kByte).pinned_memory(true));
    std::memcpy(pinned.mutable_data_ptr(), rows, size);
    buffer.narrow(0, 0, size).copy_(pinned, /*non_blocking=*/true);
  }
};

// Whether a copy to that device may be queued. The CPU does not wait for its own copies: it would
// read a GPU's value before that has come, so it takes each by a synchronisation.
inline bool may_queue_copy(const at::Device& device) { return !device.is_cpu(); }

template <class Row>
using TorchArray = DeviceArray<Row, TorchMemory>;

}  // namespace lrfast::bindings
