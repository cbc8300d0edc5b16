// What a CUDA graph relies on: tables that stay where they are while the host edits them. A graph
// is played here by a copy of StepTables that is made once and given to the kernels' bodies at each
// step; the device by memory of its own.
#include <cstring>
#include <memory>

#include "bindings/device_array.h"
#include "cpu/step.h"

#include "grid.h"

namespace lrfast::test {
namespace {

struct DeviceMemory {
  using Device = int;  // 0: the host
  struct Buffer {
    std::shared_ptr<char[]> bytes;
    int64_t size = 0;
  };

  static bool is_host(int device) { return device == 0; }
  static void* address(const Buffer& buffer) { return buffer.bytes.get(); }
  static int64_t capacity(const Buffer& buffer) { return buffer.size; }
  static Buffer allocate(int64_t size, int) {
    return {std::shared_ptr<char[]>(new char[static_cast<size_t>(size)]), size};
  }
  static void upload(Buffer& buffer, const void* rows, int64_t size) {
    if (size > 0) std::memcpy(buffer.bytes.get(), rows, static_cast<size_t>(size));
  }
};

template <class Row>
using Array = bindings::DeviceArray<Row, DeviceMemory>;

void test_array() {
  Array<int32_t> array;
  array.edit() = {1, 2, 3};
  EXPECT(!array.is_current_on(1));
  EXPECT(array.is_current_on(0));
  EXPECT_EQ(array.on(0), array.rows().data());
  const int32_t* place = array.on(1);
  EXPECT_EQ(place[2], 3);
  array.edit()[2] = 7;
  EXPECT(!array.is_current_on(1));
  EXPECT_EQ(array.reserved_on(1).bytes.get(), static_cast<const void*>(place));
  EXPECT_EQ(place[2], 3);  // not brought up to date by asking where it is
  EXPECT_EQ(array.on(1), place);
  EXPECT_EQ(place[2], 7);
  array.edit() = {5};
  EXPECT_EQ(array.on(1), place);
  array.edit() = {1, 2, 3, 4};
  bool refused = false;
  try {
    array.reserved_on(1);
  } catch (const std::runtime_error&) {
    refused = true;
  }
  EXPECT(refused);
  EXPECT(array.on(1) != place);
  EXPECT(array.on(2) != array.on(1));
}

// Copies of a plan's tables on the device.
struct Tables {
  Array<TensorRow> tensors;
  Array<void*> grads;
  Array<GroupRow> groups;
  Array<ChunkRow> chunks;
  Array<int64_t> group_chunks;
  Array<Segment> segments;
  Array<Table> tables;
  Array<Track> tracks;
  Array<Schedule> schedules;
  Array<SwappableInputs> inputs;

  // One linear schedule of that many pieces.
  void set_schedule(int pieces) {
    segments.edit().clear();
    for (int i = 0; i < pieces; ++i) {
      segments.edit().push_back({i, static_cast<double>(i), 1.0, 0.1 * (i + 1), 0.1 * (i + 2), 1.0,
                                 0.0, 0, Shape::kLinear});
    }
    tables.edit() = {{0, 1, 0, 0.0, 0.0, 0.0, 0, pieces}};
    tracks.edit() = {{0, 1, Channel::kRate}};
    schedules.edit() = {{0, 1, 0}};
  }

  SwappableInputs swappable_inputs(int device, const double* scale, const double* stop) {
    return {
        {segments.on(device), nullptr, tables.on(device), tracks.on(device), schedules.on(device)},
        scale,
        stop,
        0.0};
  }
};

void test_replays(int rule) {
  std::vector<GroupRow> groups = {make_group(rule, 0.1), make_group(rule, 0.02)};
  groups[0].schedule = 0;
  std::vector<TensorSpec> specs = {{700}, {33, DtypePair::kBFloat16}, {1025}};
  specs[1].group = specs[2].group = 1;
  Plan replayed(rule, specs, groups, 256);
  Plan eager(rule, specs, groups, 256);

  Tables device;
  StepTables graph = replayed.tables();
  device.tensors.edit().assign(graph.tensors, graph.tensors + graph.num_tensors);
  device.grads.edit().assign(graph.grads, graph.grads + graph.num_tensors);
  device.groups.edit() = groups;
  device.chunks.edit() = replayed.chunks;
  device.group_chunks.edit() = replayed.group_chunks;
  device.set_schedule(2);
  device.inputs.edit().assign(1, device.swappable_inputs(1, nullptr, nullptr));
  graph.tensors = device.tensors.on(1);
  graph.grads = device.grads.on(1);
  graph.groups = device.groups.on(1);
  graph.chunks = device.chunks.on(1);
  graph.group_chunks = device.group_chunks.on(1);
  graph.inputs = device.inputs.on(1);

  Grid grid(rule, 3, 32);
  cpu::Scratch scratch;
  double scale = 0.5;
  double stop = 0.0;
  for (int step = 0; step < 12; ++step) {
    const Context context("replay ", step);
    bool is_rescheduled = step == 0;
    if (step == 2) device.groups.edit()[0].hypers[0] = 0.3;
    if (step == 3) device.groups.edit()[1].frozen = 1;
    if (step == 5) device.groups.edit()[1].frozen = 0;
    if (step == 6) {  // more rows than there were: elsewhere, and the swappable inputs say where
      device.set_schedule(40);
      device.groups.edit()[1].schedule = 0;
      is_rescheduled = true;
    }
    if (step == 9) scale = 0.125;
    if (step == 10) stop = 1.0;
    if (step == 11) stop = 0.0;
    const double* scale_now = step >= 8 ? &scale : nullptr;
    const double* stop_now = step >= 10 ? &stop : nullptr;
    device.inputs.edit().assign(1, device.swappable_inputs(1, scale_now, stop_now));
    EXPECT_EQ(device.groups.on(1), graph.groups);
    EXPECT_EQ(device.inputs.on(1), graph.inputs);
    if (is_rescheduled) grid.run_schedule_block(graph);
    grid.step(graph);

    eager.groups = device.groups.rows();
    StepTables now = eager.tables();
    const SwappableInputs inputs = device.swappable_inputs(0, scale_now, stop_now);
    now.inputs = &inputs;
    cpu::step(rule, now, 1, nullptr, scratch);
    EXPECT_SAME(replayed, eager);
    EXPECT_EQ(graph.clock->applied, step + (step < 10));
  }
}

}  // namespace
}  // namespace lrfast::test

int main() {
  using namespace lrfast::test;
  test_array();
  for_each_rule([](int rule) { test_replays(rule); });
  return report("test_captured");
}
