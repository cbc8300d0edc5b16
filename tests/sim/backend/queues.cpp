#include "queues.h"

#include <ATen/core/LegacyTypeDispatch.h>
#include <c10/core/GradMode.h>
#include <c10/util/Exception.h>

#include <algorithm>
#include <cmath>

#include "random.h"

namespace sim {
namespace {

thread_local int this_device = 0;
thread_local int64_t this_stream[kDevices] = {};
thread_local bool in_device_work = false;

// Device work calls CPU operators, which must neither be recorded by autograd nor queued again.
struct DeviceWork {
  bool before = std::exchange(in_device_work, true);
  c10::NoGradGuard no_grad;
  at::AutoDispatchBelowADInplaceOrView below;
  ~DeviceWork() { in_device_work = before; }
};

}  // namespace

Simulator& simulator() {
  static auto* made = new Simulator;  // never destroyed: tensors outlive static destructors
  return *made;
}

int current_device() { return this_device; }
void set_current_device(int device) {
  TORCH_CHECK(device >= 0 && device < kDevices, "CUDA error: invalid device ordinal");
  this_device = device;
}
int64_t current_stream_id(int device) { return this_stream[device]; }
void set_current_stream_id(int device, int64_t id) { this_stream[device] = id; }
bool is_in_device_work() { return in_device_work; }

// ---- the order ---------------------------------------------------------------------------------

// A seed decides not only the order but its kind, so that few seeds show many kinds: how far the
// device is behind the host, and which streams are behind others.
void Simulator::seed(uint64_t seed) {
  random_.seed(seed);
  constexpr double kEagerness[] = {0.0, 0.2, 0.5, 0.9};
  eagerness_ = kEagerness[random_() % 4];
  ++seedings_;
  fingerprint = 0;
}

uint64_t Simulator::random(uint64_t bound) { return random_() % bound; }

Stream& Simulator::stream(int device, int64_t id) {
  auto& found = streams_[{device, id}];
  if (!found) found.reset(new Stream{device, id});
  return *found;
}

Stream& Simulator::current(int device) { return stream(device, this_stream[device]); }

bool Simulator::is_ready(const Stream& stream) const {
  const EventPtr& awaited = stream.queue.front().awaited;
  return !awaited || awaited->is_done;
}

void Simulator::enqueue(Stream& stream, Entry entry) {
  stream.queue.push_back(std::move(entry));
  busy_.insert(stream.key());
}

bool Simulator::run_one() {
  double total = 0.0;
  std::vector<Stream*> ready;
  for (const auto& key : busy_) {
    Stream& stream = *streams_.at(key);
    if (!is_ready(stream)) continue;
    if (stream.weighted_in != seedings_) {
      stream.weight = std::pow(16.0, -static_cast<double>(random_() % 3));
      stream.weighted_in = seedings_;
    }
    ready.push_back(&stream);
    total += stream.weight;
  }
  if (ready.empty()) return false;
  double left = total * (static_cast<double>(random_() >> 11) * 0x1p-53);
  size_t chosen = 0;
  while (chosen + 1 < ready.size() && (left -= ready[chosen]->weight) >= 0.0) ++chosen;
  Stream& stream = *ready[chosen];
  const Entry entry = std::move(stream.queue.front());
  stream.queue.pop_front();
  fingerprint =
      (fingerprint ^ static_cast<uint64_t>(stream.id * kDevices + stream.device)) * 0x100000001b3u;
  if (stream.queue.empty()) busy_.erase(stream.key());
  if (entry.run) {
    const DeviceWork work;
    entry.run();
  }
  return true;
}

void Simulator::advance() {
  if (in_device_work) return;
  while (static_cast<double>(random_() >> 11) * 0x1p-53 < eagerness_ && run_one()) {
  }
  for (const Work& call : on_progress) call();
}

void Simulator::drain() {
  while (!busy_.empty() && run_one()) {
  }
  for (const Work& call : on_progress) call();
}

// ---- launches ----------------------------------------------------------------------------------

void Simulator::push(Stream& stream, Launch launch) {
  ++launches;
  if (!stream.capture) {
    if (is_profiling && !launch.name.empty()) profile.push_back(launch.name);
    enqueue(stream, {std::move(launch.run), nullptr});
    return;
  }
  Graph& graph = *stream.capture;
  TORCH_CHECK(graph.error.empty(), "CUDA error: operation failed due to a previous error during ",
              "capture: ", graph.error);
  graph.launches.push_back(std::move(launch));
  if (&stream != graph.origin) graph.joined[stream.key()] = false;
}

void Simulator::push_eagerly(Stream& stream, Work run) {
  enqueue(stream, {std::move(run), nullptr});
}

void Simulator::launch(int device, std::string name, Work run) {
  const Lock lock(mutex);
  push(current(device), {std::move(name), std::move(run)});
  advance();
}

// ---- events ------------------------------------------------------------------------------------

EventPtr Simulator::record_eagerly(Stream& stream) {
  auto event = std::make_shared<Event>();
  enqueue(stream, {[event] { event->is_done = true; }, nullptr});
  return event;
}

std::vector<EventPtr> Simulator::record_all(int device) {
  std::vector<EventPtr> events;
  for (const auto& key : std::set(busy_)) {
    if (key.first == device) events.push_back(record_eagerly(*streams_.at(key)));
  }
  return events;
}

EventPtr Simulator::record(Stream& stream) {
  if (!stream.capture) return record_eagerly(stream);
  auto event = std::make_shared<Event>();
  event->captured_by = stream.capture->number;
  return event;
}

// A stream that waits for a capturing one joins its capture; a capturing one cannot wait for what
// is outside.
void Simulator::wait(Stream& stream, const EventPtr& event) {
  if (event->captured_by == 0) {
    if (!stream.capture) {
      if (!event->is_done) enqueue(stream, {nullptr, event});
      return;
    }
    stream.capture->error = "dependency created on uncaptured work in another stream";
    TORCH_CHECK(false, "CUDA error: ", stream.capture->error);
  }
  const auto found = open_.find(event->captured_by);
  TORCH_CHECK(found != open_.end(), "CUDA error: a wait for an event of a capture that has ended");
  const GraphPtr& graph = found->second;
  if (stream.capture == nullptr) {
    if (stream.id == 0) {
      graph->error = "the default stream would depend on a capturing stream";
      TORCH_CHECK(false, "CUDA error: operation would make the legacy stream depend on a ",
                  "capturing blocking stream");
    }
    stream.capture = graph;
    graph->joined[stream.key()] = false;
  } else {
    TORCH_CHECK(stream.capture == graph, "CUDA error: two captures would merge");
  }
  // One order of launches is kept, so that to have waited is all that remains of the wait.
  if (&stream == graph->origin) {
    for (auto& [key, has_returned] : graph->joined) has_returned = true;
  }
}

void Simulator::refuse_in_capture(const char* what) {
  if (in_device_work || captures_ == 0) return;
  for (auto& [number, graph] : open_) graph->error = what;
  TORCH_CHECK(false, "CUDA error: operation not permitted when stream is capturing: ", what);
}

void Simulator::about_to_wait(const char* what) {
  if (in_device_work) return;
  ++waits;
  refuse_in_capture(what);
  TORCH_CHECK(sync_debug_mode < 2, "called a synchronizing CUDA operation: ", what);
}

bool Simulator::query(const EventPtr& event) {
  TORCH_CHECK(event->captured_by == 0, "CUDA error: operation not permitted on an event last ",
              "recorded in a capturing stream");
  refuse_in_capture("query of an event");
  advance();
  return event->is_done;
}

bool Simulator::query(Stream& stream) {
  refuse_in_capture("query of a stream");
  advance();
  return stream.queue.empty();
}

void Simulator::run_until(const std::function<bool()>& is_done) {
  while (!is_done()) {
    TORCH_CHECK(run_one(), "the simulated streams wait for each other: nothing can go on");
  }
  for (const Work& call : on_progress) call();
}

void Simulator::synchronize(const EventPtr& event) {
  TORCH_CHECK(event->captured_by == 0, "CUDA error: operation not permitted on an event last ",
              "recorded in a capturing stream");
  about_to_wait("synchronisation with an event");
  run_until([&] { return event->is_done; });
}

void Simulator::synchronize(Stream& stream) {
  about_to_wait("synchronisation with a stream");
  const EventPtr event = record_eagerly(stream);
  run_until([&] { return event->is_done; });
}

void Simulator::synchronize_device(int device) {
  about_to_wait("synchronisation with a device");
  run_until([&] {
    const auto first = busy_.lower_bound({device, INT64_MIN});
    return first == busy_.end() || first->first != device;
  });
}

// ---- graphs ------------------------------------------------------------------------------------

GraphPtr Simulator::begin_capture(int device, int64_t pool) {
  Stream& origin = current(device);
  TORCH_CHECK(origin.id != 0, "CUDA graphs must be captured on a non-default stream");
  TORCH_CHECK(!origin.capture, "the stream is capturing already");
  auto graph = std::make_shared<Graph>();
  graph->number = ++last_graph_;
  graph->origin = &origin;
  graph->pool = pool;
  origin.capture = graph;
  open_[graph->number] = graph;
  ++captures_;
  return graph;
}

void Simulator::end_capture(const GraphPtr& graph) {
  TORCH_CHECK(open_.erase(graph->number) == 1, "no capture to end");
  --captures_;
  graph->origin->capture = nullptr;
  for (const auto& [key, has_returned] : graph->joined) {
    streams_.at(key)->capture = nullptr;
    if (!has_returned && graph->error.empty()) {
      graph->error = "unjoined work: a stream has joined that the capturing one never awaited";
    }
  }
  TORCH_CHECK(graph->error.empty(), "CUDA error: operation failed due to a previous error during ",
              "capture: ", graph->error);
}

// Torch replays on the current stream of the device that was captured.
void Simulator::replay(const GraphPtr& graph) {
  TORCH_CHECK(open_.count(graph->number) == 0, "a graph is replayed while it is captured");
  Stream& stream = current(graph->origin->device);
  TORCH_CHECK(!stream.capture, "a graph is replayed while another is captured");
  for (const auto& generator : graph->generators) begin_replay(*generator, stream);
  for (const Launch& launch : graph->launches) push(stream, launch);
  advance();
}

}  // namespace sim
