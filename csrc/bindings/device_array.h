// A host vector of rows with a copy on each device that asks for one. On the CPU the vector is the
// copy.
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
    ++version_;
    return rows_;
  }

  // Address of the rows on the device, brought up to date. The copy is queued from pinned memory
  // that torch's allocator keeps until it has run, so that the host never waits and a later edit
  // cannot overtake it.
  const Row* on(at::Device device) {
    if (device.is_cpu()) return rows_.data();
    return static_cast<const Row*>(bytes_on(device).const_data_ptr());
  }

  // The same on a GPU, as a tensor of bytes; where values are known on the device alone, they are
  // copied into it afterwards.
  at::Tensor& bytes_on(at::Device device) {
    Copy& copy = copy_on(device);
    if (copy.version != version_) {
      const int64_t size = static_cast<int64_t>(rows_.size() * sizeof(Row));
      const auto options = at::TensorOptions().dtype(at::kByte);
      at::Tensor pinned = at::empty({size}, options.pinned_memory(true));
      if (size > 0) std::memcpy(pinned.mutable_data_ptr(), rows_.data(), size);
      if (!copy.bytes.defined() || copy.bytes.numel() != size) {
        copy.bytes = at::empty({size}, options.device(device));
      }
      copy.bytes.copy_(pinned, /*non_blocking=*/true);
      copy.version = version_;
    }
    return copy.bytes;
  }

 private:
  struct Copy {
    at::Device device;
    at::Tensor bytes;
    int64_t version = 0;  // of the rows that it holds
  };

  Copy& copy_on(at::Device device) {
    for (Copy& copy : copies_) {
      if (copy.device == device) return copy;
    }
    copies_.push_back({device, {}, 0});
    return copies_.back();
  }

  std::vector<Row> rows_;
  std::vector<Copy> copies_;
  int64_t version_ = 1;
};

}  // namespace lrfast::bindings
