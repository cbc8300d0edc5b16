// The CPU driver with real threads: the same bits for every number of them, and work that is cut
// into fair shares. Runs under ThreadSanitizer too.
#include <algorithm>
#include <atomic>
#include <cstring>
#include <functional>
#include <thread>

#include "cpu/step.h"

#include "mixed.h"
#include "reference.h"

namespace lrfast::test {
namespace {

std::atomic<int64_t> last_tasks{0};

void run_threads(int64_t tasks, const std::function<void(int64_t)>& body) {
  last_tasks = tasks;
  std::vector<std::thread> threads;
  for (int64_t i = 0; i < tasks; ++i) threads.emplace_back(body, i);
  for (std::thread& thread : threads) thread.join();
}

template <class Rule>
std::vector<GroupRow> three_groups() {
  return {make_group<Rule>(0.1), make_group<Rule>(0.01, 0.8), make_group<Rule>(0.5, 0.0)};
}

// Steps one plan with each number of threads. Returns the tasks that the most threads got.
template <class Rule>
LRFAST_NOINLINE int64_t expect_same_for_all_threads(const std::function<Plan()>& make, int steps) {
  Plan plain = make();
  for (int i = 0; i < steps; ++i) reference_step<Rule>(plain);
  for (const int threads : {1, 2, 3, 7}) {
    const Context context(threads, " threads");
    Plan plan = make();
    last_tasks = 1;
    for (int i = 0; i < steps; ++i) {
      cpu::step(kPlace<Rule>, plan.tables(), threads, threads == 1 ? nullptr : &run_threads);
    }
    EXPECT(last_tasks >= 1 && last_tasks <= threads);
    EXPECT_SAME(plan, plain);
    EXPECT(plan.is_intact());
  }
  return last_tasks;
}

// Chunks of every length, neighbours in one cache line, tensors without work in between.
template <class Rule>
void test_mixed() {
  std::vector<TensorSpec> specs = mixed_specs<Rule>();
  for (const Kind kind : kAllKinds) {
    for (uint8_t form = 0; form < Rule::kNumForms; ++form) {
      specs.push_back({20011, kind, form});
      specs.back().has_grad = specs.size() % 3 != 0;
    }
  }
  for (const int64_t chunk : {64, 1000, 16384}) {
    const Context context("mixed, chunk ", chunk);
    const auto make = [&] { return Plan::make<Rule>(specs, three_groups<Rule>(), chunk); };
    EXPECT(expect_same_for_all_threads<Rule>(make, 2) >= 4);
  }
}

// Tensors of one group that share neither count nor product, in an order that returns to a count
// met before: nothing that is kept from one tensor may serve the wrong one.
template <class Rule>
void test_counts() {
  std::vector<TensorSpec> specs;
  for (int i = 0; i < 400; ++i) {
    TensorSpec spec{i % 40, i % 3 == 0 ? Kind::kFloat64 : Kind::kFloat32, Rule::kNumForms - 1};
    spec.count = static_cast<float>(i % 5 < 3 ? 0 : i % 5);
    spec.has_product = i % 7 < 3;
    spec.group = i % 11 < 9 ? 0 : 1;
    specs.push_back(spec);
  }
  const auto make = [&] { return Plan::make<Rule>(specs, three_groups<Rule>(), 32); };
  expect_same_for_all_threads<Rule>(make, 3);
}

template <class Rule>
void test_without_work() {
  std::vector<GroupRow> frozen = three_groups<Rule>();
  for (GroupRow& group : frozen) group.frozen = 1;
  const auto all_frozen = [&] { return Plan::make<Rule>(mixed_specs<Rule>(), frozen, 8); };
  const auto no_tensors = [&] { return Plan::make<Rule>({}, frozen, 8); };
  const auto no_groups = [&] { return Plan::make<Rule>({}, {}, 8); };
  const auto empty = [&] { return Plan::make<Rule>({{0}, {0}}, three_groups<Rule>(), 8); };
  expect_same_for_all_threads<Rule>(all_frozen, 2);
  EXPECT_EQ(expect_same_for_all_threads<Rule>(no_tensors, 2), 1);
  EXPECT_EQ(expect_same_for_all_threads<Rule>(no_groups, 2), 1);
  EXPECT_EQ(expect_same_for_all_threads<Rule>(empty, 2), 1);
}

template <class Rule>
void test_schedules() {
  const Segment cosine{0, 0.0, 8.0, 1.0, 0.01, 0.0, Shape::kCosine};
  const Segment linear{0, 0.0, 3.0, 0.5, 2.0, 0.0, Shape::kLinear};
  std::vector<GroupRow> groups = three_groups<Rule>();
  groups.push_back(groups[0]);
  groups[0].schedule = 1;  // 1, 0, -1, 0: no group may inherit its neighbour's values
  groups[1].schedule = 0;
  groups[3].schedule = 0;
  std::vector<TensorSpec> specs;
  for (int32_t g = 0; g < 4; ++g) specs.push_back({30000, Kind::kFloat32, 0, g});
  const auto make = [&] {
    return Plan::make<Rule>(specs, groups, 1000, {{{{cosine}}, {linear}}, {{{linear}}, {}}});
  };
  expect_same_for_all_threads<Rule>(make, 10);
}

template <class Rule>
void test_stop() {
  const auto make = [] {
    Plan plan = Plan::make<Rule>(mixed_specs<Rule>(), three_groups<Rule>(), 64);
    plan.has_stop = true;
    plan.stop = 2.0;
    return plan;
  };
  EXPECT_EQ(expect_same_for_all_threads<Rule>(make, 2), 1);
}

// Runs the tasks one after another and notes how many elements each has changed.
Plan* watched = nullptr;
std::vector<int64_t> shares;

int64_t count_zeros() {
  int64_t zeros = 0;
  for (const Tensor& t : watched->tensors) {
    zeros += std::count(t.param.as<float>(), t.param.as<float>() + t.spec.numel, 0.0f);
  }
  return zeros;
}

void run_watched(int64_t tasks, const std::function<void(int64_t)>& body) {
  for (int64_t i = 0; i < tasks; ++i) {
    const int64_t before = count_zeros();
    body(i);
    shares.push_back(before - count_zeros());
  }
}

// A frozen half in front, one large tensor, many small ones: tasks differ by a few chunks at most.
void test_shares() {
  std::vector<TensorSpec> specs = {{150000, Kind::kFloat32, 0, 1}, {150000}};
  for (int i = 0; i < 150; ++i) specs.push_back({1000});
  GroupRow group{};
  group.hypers[Sgd::kRate] = 1.0;
  group.schedule = -1;
  GroupRow frozen = group;
  frozen.frozen = 1;
  for (const int threads : {2, 3, 7, 64}) {
    const Context context("shares of ", threads);
    Plan plan = Plan::make<Sgd>(specs, {group, frozen}, 1024);
    for (Tensor& t : plan.tensors) std::memset(t.param.data(), 0, t.param.size());
    watched = &plan;
    shares.clear();
    cpu::step(kPlace<Sgd>, plan.tables(), threads, &run_watched);
    // 300,000 elements are worth waking 9 threads for, not 64.
    EXPECT_EQ(static_cast<int64_t>(shares.size()), std::min(threads, 9));
    const int64_t fair = 300000 / static_cast<int64_t>(shares.size());
    for (const int64_t share : shares) EXPECT_NEAR(share, fair, fair / 20 + 2 * 1024);
  }
}

}  // namespace
}  // namespace lrfast::test

int main() {
  using namespace lrfast::test;
  test_shares();
  for_each_rule([]<class Rule>() {
    test_mixed<Rule>();
    test_counts<Rule>();
    test_without_work<Rule>();
    test_schedules<Rule>();
    test_stop<Rule>();
  });
  return report("test_cpu_step");
}
