// A host vector of rows with a copy on each device that asks for one. On the host itself the vector
// is the copy. Memory says how a device's memory is had (torch_memory.h; plain memory in
// tests/cpp).
#pragma once

#include <cstdint>
#include <stdexcept>
#include <vector>

namespace lrfast::bindings {

template <class Row, class Memory>
class DeviceArray {
 public:
  using Device = typename Memory::Device;
  using Buffer = typename Memory::Buffer;

  const std::vector<Row>& rows() const { return rows_; }
  std::vector<Row>& edit() {
    ++version_;
    return rows_;
  }

  // Address of the rows on the device, brought up to date. It stays while they become no more.
  const Row* on(const Device& device) {
    if (Memory::is_host(device)) return rows_.data();
    return static_cast<const Row*>(Memory::address(buffer_on(device)));
  }

  // The same, as the buffer that holds them: not for the host.
  Buffer& buffer_on(const Device& device) {
    Copy& copy = copy_on(device);
    if (copy.version == version_) return copy.buffer;
    const int64_t size = size_in_bytes();
    if (copy.version == 0 || Memory::capacity(copy.buffer) < size) {
      copy.buffer = Memory::allocate(size, device);
    }
    Memory::upload(copy.buffer, rows_.data(), size);
    copy.version = version_;
    return copy.buffer;
  }

  // Where on() will put the rows, for a launch that is recorded now and runs once they are there.
  Buffer& reserved_on(const Device& device) {
    Copy& copy = copy_on(device);
    if (copy.version == 0 || Memory::capacity(copy.buffer) < size_in_bytes()) {
      throw std::runtime_error("a table of the optimizer has outgrown its memory during a capture");
    }
    return copy.buffer;
  }

  bool is_current_on(const Device& device) const {
    if (Memory::is_host(device)) return true;
    for (const Copy& copy : copies_) {
      if (copy.device == device) return copy.version == version_;
    }
    return false;
  }

  // visit(buffer) for what the device holds.
  template <class Visit>
  void visit_on(const Device& device, Visit&& visit) {
    for (Copy& copy : copies_) {
      if (copy.device == device && copy.version != 0) visit(copy.buffer);
    }
  }

 private:
  struct Copy {
    Device device;
    Buffer buffer;
    int64_t version;  // of the rows that it holds; 0: none yet
  };

  int64_t size_in_bytes() const { return static_cast<int64_t>(rows_.size() * sizeof(Row)); }

  Copy& copy_on(const Device& device) {
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
