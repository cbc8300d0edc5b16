// The CPU driver with real threads: the same bits for every number of them, sums included, and work
// that is cut into fair shares. Runs under ThreadSanitizer too.
#include <algorithm>
#include <atomic>
#include <cstring>
#include <thread>

#include "cpu/step.h"

#include "agreement.h"
#include "mixed.h"

namespace lrfast::test {
namespace {

std::atomic<int64_t> last_tasks{0};

void run_threads(int64_t tasks, cpu::RunTasks run, void* context) {
  last_tasks = tasks;
  std::vector<std::thread> threads;
  for (int64_t i = 0; i < tasks; ++i) threads.emplace_back(run, i, i + 1, context);
  for (std::thread& thread : threads) thread.join();
}

// Steps one plan with each number of threads. Returns the tasks that the most threads got.
template <class Make>
LRFAST_NOINLINE int64_t expect_same_for_all_threads(const Make& make, int steps) {
  Plan plain = make();
  for (int i = 0; i < steps; ++i) reference_step(plain);
  Plan one = make();
  for (int i = 0; i < steps; ++i) cpu_step(one);
  if (one.has_norms()) expect_near_sums(one.norms, plain.norms, "norms");
  expect_near_sums(one.records, plain.records, "records");
  expect_near_distance(one, plain);
  EXPECT_SAME(one, plain);
  cpu::Scratch scratch;
  for (const int threads : {2, 7}) {
    const Context context(threads, " threads");
    Plan plan = make();
    last_tasks = 1;
    for (int i = 0; i < steps; ++i) {
      cpu::step(plan.rule, plan.tables(), threads, &run_threads, scratch);
    }
    EXPECT(last_tasks >= 1 && last_tasks <= threads);
    EXPECT_SAME(plan, one);
    EXPECT_SAME_SUMS(plan, one);
    EXPECT(plan.is_intact());
  }
  return last_tasks;
}

// Chunks of every length, neighbours in one cache line, tensors without work in between, and
// enough elements for several threads.
std::vector<TensorSpec> shared_specs(int rule) {
  std::vector<TensorSpec> specs = passes_specs(rule);
  const int forms = rule_info(rule).num_forms;
  for (const DtypePair dtypes : kAllDtypePairs) {
    for (int form = 0; form < forms; ++form) {
      specs.push_back({20011 / forms, dtypes, static_cast<uint8_t>(form)});
      specs.back().has_grad = specs.size() % 5 != 0;
      specs.back().has_average = specs.size() % 2 != 0;
    }
  }
  return specs;
}

void test_mixed(int rule) {
  const Context context("mixed");
  std::vector<TensorSpec> specs = shared_specs(rule);
  for (TensorSpec& spec : specs) spec.has_average = false;  // then there are no tiles
  const auto make = [&] { return Plan(rule, specs, three_groups(rule), 1000); };
  EXPECT(expect_same_for_all_threads(make, 2) >= 4);
}

void test_passes(int rule) {
  Options options;
  options.max_norm = 50.0;
  options.exact_grads = true;
  options.scale = 2.0f;
  options.zero = true;
  options.telemetry = 2;
  options.skip_nonfinite = true;
  const Context context("passes");
  const auto make = [&] {
    return Plan(rule, shared_specs(rule), three_groups(rule), 700, options);
  };
  EXPECT(expect_same_for_all_threads(make, 2) >= 4);
}

// States in 8 bits, with every pass and none; neither threads nor chunks change a bit.
void test_coded(int rule) {
  for (const bool has_passes : {false, true}) {
    Options options;
    options.exact_grads = true;
    options.max_norm = has_passes ? 50.0 : 0.0;
    options.zero = has_passes;
    options.telemetry = has_passes ? 2 : 0;
    const Context context(has_passes ? "coded, passes" : "coded");
    const auto make = [&](int64_t chunk) {
      std::vector<TensorSpec> specs = coded_specs(rule);
      for (TensorSpec& spec : specs) spec.has_average = spec.has_average && has_passes;
      return Plan(rule, specs, three_groups(rule), chunk, options);
    };
    EXPECT(expect_same_for_all_threads([&] { return make(512); }, 3) >= 4);
    Plan small = make(256);
    Plan large = make(16384);
    for (int i = 0; i < 3; ++i) {
      cpu_step(small);
      cpu_step(large);
    }
    EXPECT_SAME(small, large);
  }
}

// Steps that are skipped, whose gradients are zeroed by as many threads.
void test_skipped(int rule) {
  Options options;
  options.has_found_inf = true;
  options.found_inf = 1.0f;
  options.zero = true;
  const auto make = [&] {
    return Plan(rule, shared_specs(rule), three_groups(rule), 1000, options);
  };
  EXPECT(expect_same_for_all_threads(make, 1) >= 4);
}

// Tensors of one group that share neither count nor product, in an order that returns to a count
// met before: nothing that is kept from one tensor may serve the wrong one. A product of zero is
// none at all but in its own eyes.
void test_counts(int rule) {
  std::vector<TensorSpec> specs;
  for (int i = 0; i < 400; ++i) {
    TensorSpec spec{i % 40, i % 3 == 0 ? DtypePair::kFloat64 : DtypePair::kFloat32,
                    static_cast<uint8_t>(rule_info(rule).num_forms - 1)};
    spec.count = static_cast<float>(i % 5 < 3 ? 0 : i % 5);
    spec.has_product = i % 7 < 3;
    spec.product = i % 2 * 0.5;
    spec.group = i % 11 < 9 ? 0 : 1;
    specs.push_back(spec);
  }
  const auto make = [&] { return Plan(rule, specs, three_groups(rule), 32); };
  expect_same_for_all_threads(make, 3);
}

void test_without_work(int rule) {
  std::vector<GroupRow> frozen = three_groups(rule);
  for (GroupRow& group : frozen) group.frozen = 1;
  Options options;
  options.zero = true;
  options.telemetry = 1;
  const auto plan = [&](const std::vector<TensorSpec>& specs, const std::vector<GroupRow>& groups) {
    return [=] { return Plan(rule, specs, groups, 8, options); };
  };
  expect_same_for_all_threads(plan(passes_specs(rule), frozen), 2);
  EXPECT_EQ(expect_same_for_all_threads(plan({}, frozen), 2), 1);
  EXPECT_EQ(expect_same_for_all_threads(plan({}, {}), 2), 1);
  EXPECT_EQ(expect_same_for_all_threads(plan({{0}, {0}}, three_groups(rule)), 2), 1);
}

void test_schedules(int rule) {
  std::vector<GroupRow> groups = three_groups(rule);
  groups.push_back(groups[0]);
  groups[0].schedule = 1;  // 1, 0, -1, 0: no group may inherit its neighbour's values
  groups[1].schedule = 0;
  groups[3].schedule = 0;
  std::vector<TensorSpec> specs;
  for (int32_t g = 0; g < 4; ++g) specs.push_back({20000, DtypePair::kFloat32, 0, g});
  const auto make = [&] {
    Plan plan(rule, specs, groups, 1000, {}, two_schedules());
    plan.has_rate_scale = true;
    plan.rate_scale = 0.625;
    return plan;
  };
  expect_same_for_all_threads(make, 5);
}

void test_stop(int rule) {
  const auto make = [&] {
    Plan plan = make_mixed(rule, 64);
    plan.has_stop = true;
    plan.stop = 2.0;
    return plan;
  };
  EXPECT_EQ(expect_same_for_all_threads(make, 2), 1);
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

void run_watched(int64_t tasks, cpu::RunTasks run, void* context) {
  for (int64_t i = 0; i < tasks; ++i) {
    const int64_t before = count_zeros();
    run(i, i + 1, context);
    shares.push_back(before - count_zeros());
  }
}

// A frozen half in front, one large tensor, many small ones: tasks differ by a few chunks at most.
void test_shares() {
  std::vector<TensorSpec> specs = {{150000, DtypePair::kFloat32, 0, 1}, {150000}};
  for (int i = 0; i < 150; ++i) specs.push_back({1000});
  GroupRow group{};
  group.hypers[Sgd::kRate] = 1.0;
  group.schedule = -1;
  GroupRow frozen = group;
  frozen.frozen = 1;
  for (const int threads : {2, 3, 7, 64}) {
    const Context context("shares of ", threads);
    Plan plan(kPlace<Sgd>, specs, {group, frozen}, 1024);
    cpu::Scratch scratch;
    for (Tensor& t : plan.tensors) std::memset(t.param.data(), 0, t.param.size());
    watched = &plan;
    shares.clear();
    cpu::step(kPlace<Sgd>, plan.tables(), threads, &run_watched, scratch);
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
  for_each_rule([](int rule) {
    test_mixed(rule);
    test_coded(rule);
    test_passes(rule);
    test_skipped(rule);
    test_counts(rule);
    test_without_work(rule);
    test_schedules(rule);
    test_stop(rule);
  });
  return report("test_cpu_step");
}
