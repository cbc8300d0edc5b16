// An array between two guard zones. Their pattern must survive every step; under AddressSanitizer
// they are poisoned too, so that reading them fails at once.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <utility>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#define LRFAST_POISON(address, bytes) __asan_poison_memory_region(address, bytes)
#define LRFAST_UNPOISON(address, bytes) __asan_unpoison_memory_region(address, bytes)
#else
#define LRFAST_POISON(address, bytes) ((void)0)
#define LRFAST_UNPOISON(address, bytes) ((void)0)
#endif

namespace lrfast::test {

class GuardedBytes {
 public:
  // The payload begins offset bytes behind a boundary of kAlignment.
  explicit GuardedBytes(size_t size, size_t offset = 0)
      : size_(size),
        begin_(kGuard + offset),
        total_((begin_ + size + kGuard + kAlignment - 1) / kAlignment * kAlignment),
        bytes_(static_cast<uint8_t*>(std::aligned_alloc(kAlignment, total_)), &std::free) {
    for (size_t i = 0; i < total_; ++i) bytes_.get()[i] = pattern(i);
    std::memset(data(), 0, size_);
    poison();
  }
  GuardedBytes(GuardedBytes&&) = default;
  GuardedBytes& operator=(GuardedBytes&& other) {
    std::swap(size_, other.size_);
    std::swap(begin_, other.begin_);
    std::swap(total_, other.total_);
    std::swap(bytes_, other.bytes_);
    return *this;
  }
  ~GuardedBytes() {
    if (bytes_ != nullptr) unpoison();
  }

  uint8_t* data() { return bytes_.get() + begin_; }
  const uint8_t* data() const { return bytes_.get() + begin_; }
  size_t size() const { return size_; }

  template <class T>
  T* as() {
    return reinterpret_cast<T*>(data());
  }
  template <class T>
  const T* as() const {
    return reinterpret_cast<const T*>(data());
  }

  bool is_intact() const {
    unpoison();
    bool intact = true;
    for (size_t i = 0; i < begin_; ++i) intact = intact && bytes_.get()[i] == pattern(i);
    for (size_t i = begin_ + size_; i < total_; ++i) {
      intact = intact && bytes_.get()[i] == pattern(i);
    }
    poison();
    return intact;
  }

 private:
  static constexpr size_t kAlignment = 64;
  static constexpr size_t kGuard = 128;

  static uint8_t pattern(size_t i) { return static_cast<uint8_t>(0xa5 ^ (i * 29)); }
  void poison() const {
    LRFAST_POISON(bytes_.get(), begin_);
    LRFAST_POISON(bytes_.get() + begin_ + size_, total_ - begin_ - size_);
  }
  void unpoison() const { LRFAST_UNPOISON(bytes_.get(), total_); }

  size_t size_;
  size_t begin_;
  size_t total_;
  std::unique_ptr<uint8_t, void (*)(void*)> bytes_;
};

}  // namespace lrfast::test
