// Device and pinned memory, both on the host. As torch's allocators do, what is freed is given out
// again as soon as the streams allow it; as they do not, it is filled with NaN in that moment.
#pragma once

#include <c10/core/Allocator.h>

#include <list>
#include <map>
#include <memory>
#include <tuple>
#include <vector>

#include "queues.h"

namespace sim {

// A piece of device memory, given out or kept for later.
struct Block {
  char* data;
  size_t size;
  Stream* stream;              // that it was allocated on, and whose order its reuse follows
  int64_t pool;                // of graphs; 0: the ordinary memory
  std::vector<Stream*> users;  // other streams that record_stream() has named
  std::vector<EventPtr> awaited;
  bool is_live = false;
};

class DeviceMemory final : public c10::Allocator {
 public:
  c10::DataPtr allocate(size_t size) override;
  c10::DeleterFnPtr raw_deleter() const override;
  void copy_data(void* to, const void* from, size_t size) const override;

  void record_stream(const void* data, Stream& stream);
  void look_for_free();  // blocks whose streams have gone on far enough

  // Pools of graphs live as long as their last graph.
  int64_t new_pool() { return ++last_pool_; }
  void retain_pool(int64_t pool) { ++pools_[pool]; }
  void release_pool(int64_t pool);

  int64_t allocated(int device) const { return allocated_[device]; }
  int64_t reserved(int device) const { return reserved_[device]; }

  // The device whose memory an address is in; -1: in none.
  int device_of(const void* address) const;

 private:
  friend void free_block(void*);
  using Kind = std::tuple<int, int64_t, int64_t, size_t>;  // device, stream, pool, size

  Kind kind_of(const Block& block) const;
  void free(Block& block);
  void keep(Block& block);

  std::map<const char*, std::unique_ptr<Block>> blocks_;  // looked up by address, never walked
  std::map<Kind, std::vector<Block*>> kept_;
  std::list<Block*> pending_;     // in the order in which they were freed
  std::vector<Block*> deferred_;  // freed during a capture, which records no such events
  std::map<int64_t, int> pools_;
  int64_t last_pool_ = 0;
  int64_t allocated_[kDevices] = {};
  int64_t reserved_[kDevices] = {};
};

class PinnedMemory final : public c10::Allocator {
 public:
  c10::DataPtr allocate(size_t size) override;
  c10::DeleterFnPtr raw_deleter() const override;
  void copy_data(void* to, const void* from, size_t size) const override;

  bool contains(const void* address) const { return find(address) != nullptr; }
  // Notes a copy that was just queued on the stream.
  void record_use(const void* address, Stream& stream);
  void look_for_free();

 private:
  friend void free_pinned(void*);
  struct Buffer {
    char* data;
    size_t size;
    std::vector<EventPtr> uses;
    bool is_live = true;
  };

  Buffer* find(const void* address) const;
  void free(Buffer& buffer);

  std::map<const char*, std::unique_ptr<Buffer>> buffers_;  // as above
  std::map<size_t, std::vector<Buffer*>> kept_;
  std::list<Buffer*> pending_;
};

DeviceMemory& device_memory();
PinnedMemory& pinned_memory();

}  // namespace sim
