// A host vector of rows with its copy on a device. On the CPU the vector is the copy.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>

#include <cstring>
#include <vector>

namespace lrfast::bindings {

template <class Row>
class DeviceArray {
 public:
  const std::vector<Row>& rows() const { return rows_; }
  std::vector<Row>& edit() {
    is_stale_ = true;
    return rows_;
  }

  // Address of the rows on the device, brought up to date. The copy is queued from pinned memory
  // that torch's allocator keeps until it has run, so that the host never waits and a later edit
  // cannot overtake it.
  const Row* on(at::Device device) {
    if (device.is_cpu()) return rows_.data();
    if (is_stale_) {
      const int64_t bytes = static_cast<int64_t>(rows_.size() * sizeof(Row));
      const auto options = at::TensorOptions().dtype(at::kByte);
      at::Tensor pinned = at::empty({bytes}, options.pinned_memory(true));
      if (bytes > 0) std::memcpy(pinned.mutable_data_ptr(), rows_.data(), bytes);
      if (!copy_.defined() || copy_.numel() != bytes || copy_.device() != device) {
        copy_ = at::empty({bytes}, options.device(device));
      }
      copy_.copy_(pinned, /*non_blocking=*/true);
      is_stale_ = false;
    }
    return static_cast<const Row*>(copy_.const_data_ptr());
  }

 private:
  std::vector<Row> rows_;
  at::Tensor copy_;
  bool is_stale_ = true;
};

}  // namespace lrfast::bindings
