// Streams as queues: what is launched runs later, in a seeded random order that CUDA allows too.
#pragma once

#include <c10/core/Stream.h>

#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <random>
#include <set>
#include <string>
#include <utility>
#include <vector>

namespace sim {

constexpr int kDevices = 2;

using Work = std::function<void()>;
struct Graph;
struct Registered;  // a generator that a graph draws from (random.h)

// One record of a torch event; recording the event again makes another.
struct Event {
  bool is_done = false;
  int64_t captured_by = 0;  // number of the graph that holds the record; 0: none
};
using EventPtr = std::shared_ptr<Event>;

// An entry of a queue: some work, or a wait for an event.
struct Entry {
  Work run;
  EventPtr awaited;
};

struct Launch {
  std::string name;
  Work run;
};

struct Stream {
  int device;
  int64_t id;  // 0: the default stream
  std::deque<Entry> queue;
  std::shared_ptr<Graph> capture;  // what its launches are recorded in instead of run; null: none
  double weight = 1.0;             // how often it goes on while others could
  int64_t weighted_in = -1;        // seeding that the weight is of

  std::pair<int, int64_t> key() const { return {device, id}; }
};

// Recorded launches, in one of the orders that the capture allows.
struct Graph {
  int64_t number;
  std::vector<Launch> launches;
  Stream* origin = nullptr;
  int64_t pool = 0;
  std::string error;  // of the operation that has invalidated the capture
  // Of the streams that have joined, in the order of their ids: has the origin waited for them?
  std::map<std::pair<int, int64_t>, bool> joined;
  std::vector<std::shared_ptr<Registered>> generators;
};
using GraphPtr = std::shared_ptr<Graph>;

class Simulator {
 public:
  // Everything below is under this lock. Device work runs under it, too.
  std::recursive_mutex mutex;

  void seed(uint64_t seed);
  // Of a uniform distribution below the bound; for the launches that run in random order.
  uint64_t random(uint64_t bound);

  Stream& stream(int device, int64_t id);
  Stream& current(int device);
  int64_t new_stream() { return ++last_stream_; }

  // Queues work on the device's current stream, as a kernel's launch does.
  void launch(int device, std::string name, Work run);
  void push(Stream& stream, Launch launch);
  // Past a capture: what the allocator does is in no graph.
  void push_eagerly(Stream& stream, Work run);

  EventPtr record(Stream& stream);
  // The same, past a capture.
  EventPtr record_eagerly(Stream& stream);
  // Behind all that is queued on a device.
  std::vector<EventPtr> record_all(int device);
  void wait(Stream& stream, const EventPtr& event);
  bool query(const EventPtr& event);
  bool query(Stream& stream);
  void synchronize(const EventPtr& event);
  void synchronize(Stream& stream);
  void synchronize_device(int device);
  // Runs what is left, on all devices; for the end of a test.
  void drain();

  GraphPtr begin_capture(int device, int64_t pool);
  void end_capture(const GraphPtr& graph);
  void replay(const GraphPtr& graph);
  bool is_capturing(int device) { return current(device).capture != nullptr; }
  bool is_capturing_anywhere() const { return captures_ != 0; }

  // A random amount of work runs, as a GPU does while the host goes on.
  void advance();

  // Raises as torch does where its sync debug mode is "error".
  void about_to_wait(const char* what);
  int sync_debug_mode = 0;  // as torch counts: 2 makes each synchronisation an error

  // Names of launches while a profile is taken.
  bool is_profiling = false;
  std::vector<std::string> profile;
  int64_t waits = 0;
  int64_t launches = 0;
  uint64_t fingerprint = 0;  // of the order so far

  // Called whenever work has run: allocators look which memory has become free.
  std::vector<Work> on_progress;

 private:
  bool run_one();
  bool is_ready(const Stream& stream) const;
  void enqueue(Stream& stream, Entry entry);
  void refuse_in_capture(const char* what);
  void run_until(const std::function<bool()>& is_done);

  std::map<std::pair<int, int64_t>, std::unique_ptr<Stream>> streams_;
  std::set<std::pair<int, int64_t>> busy_;  // streams whose queues hold something
  std::mt19937_64 random_{1};
  double eagerness_ = 0.3;
  int64_t seedings_ = 0;
  int64_t last_stream_ = 0;
  int64_t last_graph_ = 0;
  int captures_ = 0;
  std::map<int64_t, GraphPtr> open_;
};

Simulator& simulator();

// Of this thread.
int current_device();
void set_current_device(int device);
int64_t current_stream_id(int device);
void set_current_stream_id(int device, int64_t id);
// Whether this thread is running device work, which waits for nothing.
bool is_in_device_work();

inline int device_or_current(int device) { return device < 0 ? current_device() : device; }
inline c10::Device cuda(int device) { return {c10::kCUDA, static_cast<c10::DeviceIndex>(device)}; }
inline c10::Stream as_torch(int device, int64_t id) {
  return c10::Stream(c10::Stream::UNSAFE, cuda(device), id);
}

using Lock = std::lock_guard<std::recursive_mutex>;

}  // namespace sim
