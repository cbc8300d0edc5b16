#include "memory.h"

#include <c10/util/Exception.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>

namespace sim {
namespace {

constexpr size_t kGranularity = 512;  // torch's, for tests that measure memory
constexpr int kPoison = 0xff;         // NaN in every floating type, -1 in the integers

size_t rounded(size_t size) { return (size + kGranularity - 1) / kGranularity * kGranularity; }

char* poisoned(size_t size) {
  auto* data = static_cast<char*>(std::aligned_alloc(kGranularity, size));
  TORCH_CHECK_WITH(OutOfMemoryError, data != nullptr, "CUDA out of memory");
  std::memset(data, kPoison, size);
  return data;
}

bool all_done(const std::vector<EventPtr>& events) {
  return std::all_of(events.begin(), events.end(), [](const auto& e) { return e->is_done; });
}

// What was freed lately is given out again in most cases, as a caching allocator does it always.
template <class Kept>
Kept* reuse(std::vector<Kept*>& kept) {
  if (kept.empty() || simulator().random(4) == 0) return nullptr;
  std::swap(kept[simulator().random(kept.size())], kept.back());
  Kept* found = kept.back();
  kept.pop_back();
  return found;
}

// The buffer that an address is in, of a map from first addresses.
template <class Map>
auto* containing(const Map& map, const void* address) {
  using Found = std::remove_reference_t<decltype(*map.begin()->second)>;
  const auto* at = static_cast<const char*>(address);
  auto next = map.upper_bound(at);
  if (next == map.begin()) return static_cast<Found*>(nullptr);
  Found* found = std::prev(next)->second.get();
  return at < found->data + found->size ? found : nullptr;
}

}  // namespace

DeviceMemory& device_memory() {
  static auto* made = [] {
    auto* memory = new DeviceMemory;
    simulator().on_progress.push_back([memory] { memory->look_for_free(); });
    return memory;
  }();
  return *made;
}

PinnedMemory& pinned_memory() {
  static auto* made = [] {
    auto* memory = new PinnedMemory;
    simulator().on_progress.push_back([memory] { memory->look_for_free(); });
    return memory;
  }();
  return *made;
}

// ---- device memory -----------------------------------------------------------------------------

void free_block(void* block) {
  const Lock lock(simulator().mutex);
  device_memory().free(*static_cast<Block*>(block));
}

c10::DeleterFnPtr DeviceMemory::raw_deleter() const { return &free_block; }

void DeviceMemory::copy_data(void* to, const void* from, size_t size) const {
  std::memcpy(to, from, size);
}

DeviceMemory::Kind DeviceMemory::kind_of(const Block& block) const {
  return {block.stream->device, block.stream->id, block.pool, block.size};
}

c10::DataPtr DeviceMemory::allocate(size_t requested) {
  const Lock lock(simulator().mutex);
  const int device = current_device();
  if (requested == 0) return {nullptr, cuda(device)};
  look_for_free();
  Stream& stream = simulator().current(device);
  const int64_t pool = stream.capture ? stream.capture->pool : 0;
  const size_t size = rounded(requested);
  Block* block = reuse(kept_[{device, stream.id, pool, size}]);
  if (block == nullptr) {
    auto made = std::make_unique<Block>(Block{poisoned(size), size, &stream, pool, {}, {}});
    block = made.get();
    blocks_[block->data] = std::move(made);
    reserved_[device] += static_cast<int64_t>(size);
  } else if (pool != 0) {
    simulator().push(stream, {"", [block] { std::memset(block->data, kPoison, block->size); }});
  }
  block->is_live = true;
  allocated_[device] += static_cast<int64_t>(size);
  return {block->data, block, &free_block, cuda(device)};
}

// To be given out again in its stream's order, to which the filling belongs.
void DeviceMemory::keep(Block& block) {
  const auto fill = [&block] { std::memset(block.data, kPoison, block.size); };
  if (block.pool == 0) {
    simulator().push_eagerly(*block.stream, fill);
  } else if (block.stream->capture && block.stream->capture->pool == block.pool &&
             block.stream->capture->error.empty()) {
    simulator().push(*block.stream, {"", fill});
  }  // else of a graph that may be replayed and write it again
  kept_[kind_of(block)].push_back(&block);
}

void DeviceMemory::free(Block& block) {
  block.is_live = false;
  allocated_[block.stream->device] -= static_cast<int64_t>(block.size);
  if (block.users.empty()) {
    keep(block);
  } else if (simulator().is_capturing_anywhere()) {
    deferred_.push_back(&block);
  } else {
    for (Stream* user : block.users) block.awaited.push_back(simulator().record_eagerly(*user));
    block.users.clear();
    pending_.push_back(&block);
  }
}

void DeviceMemory::look_for_free() {
  if (simulator().is_capturing_anywhere()) return;
  for (Block* block : std::exchange(deferred_, {})) {
    for (Stream* user : block->users) block->awaited.push_back(simulator().record_eagerly(*user));
    block->users.clear();
    pending_.push_back(block);
  }
  pending_.remove_if([&](Block* block) {
    if (!all_done(block->awaited)) return false;
    block->awaited.clear();
    keep(*block);
    return true;
  });
}

void DeviceMemory::record_stream(const void* data, Stream& stream) {
  const auto found = blocks_.find(static_cast<const char*>(data));
  if (found == blocks_.end() || found->second->stream == &stream) return;
  auto& users = found->second->users;
  if (std::find(users.begin(), users.end(), &stream) == users.end()) users.push_back(&stream);
}

// Torch frees the memory of a pool for good, which waits for all that runs.
void DeviceMemory::release_pool(int64_t pool) {
  if (--pools_[pool] > 0) return;
  pools_.erase(pool);
  std::vector<Block*> found;
  for (auto& [kind, kept] : kept_) {
    if (std::get<2>(kind) != pool) continue;
    found.insert(found.end(), kept.begin(), kept.end());
    kept.clear();
  }
  for (auto& [address, block] : blocks_) {  // in any order, as nothing is queued here
    if (block->pool == pool) block->pool = 0;
  }
  for (Block* block : found) {
    block->awaited = simulator().record_all(block->stream->device);
    pending_.push_back(block);
  }
}

int DeviceMemory::device_of(const void* address) const {
  const Block* found = containing(blocks_, address);
  return found == nullptr ? -1 : found->stream->device;
}

// ---- pinned memory -----------------------------------------------------------------------------

void free_pinned(void* buffer) {
  const Lock lock(simulator().mutex);
  pinned_memory().free(*static_cast<PinnedMemory::Buffer*>(buffer));
}

c10::DeleterFnPtr PinnedMemory::raw_deleter() const { return &free_pinned; }

void PinnedMemory::copy_data(void* to, const void* from, size_t size) const {
  std::memcpy(to, from, size);
}

c10::DataPtr PinnedMemory::allocate(size_t requested) {
  const Lock lock(simulator().mutex);
  look_for_free();
  const size_t size = rounded(std::max<size_t>(requested, 1));
  Buffer* buffer = reuse(kept_[size]);
  if (buffer == nullptr) {
    auto made = std::make_unique<Buffer>(Buffer{poisoned(size), size, {}});
    buffer = made.get();
    buffers_[buffer->data] = std::move(made);
  }
  buffer->is_live = true;
  return {buffer->data, buffer, &free_pinned, c10::Device(c10::kCPU)};
}

PinnedMemory::Buffer* PinnedMemory::find(const void* address) const {
  return containing(buffers_, address);
}

// A copy in a graph leaves no trace here: the graph reads the memory whenever it is replayed.
void PinnedMemory::record_use(const void* address, Stream& stream) {
  if (Buffer* buffer = find(address); buffer != nullptr && !stream.capture) {
    buffer->uses.push_back(simulator().record_eagerly(stream));
  }
}

void PinnedMemory::free(Buffer& buffer) {
  buffer.is_live = false;
  pending_.push_back(&buffer);
  look_for_free();
}

// Its next owner may write it at once, which is as bad as this.
void PinnedMemory::look_for_free() {
  pending_.remove_if([&](Buffer* buffer) {
    if (!all_done(buffer->uses)) return false;
    buffer->uses.clear();
    std::memset(buffer->data, kPoison, buffer->size);
    kept_[buffer->size].push_back(buffer);
    return true;
  });
}

}  // namespace sim
