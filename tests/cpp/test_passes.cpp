// What a step does besides the rule: unscaling, moving averages, zeroing, telemetry, and the steps
// that are skipped. Grid, CPU driver and reference must agree bit for bit; only sums may differ in
// their last digits.
#include <algorithm>
#include <cstring>
#include <limits>

#include "agreement.h"
#include "mixed.h"

namespace lrfast::test {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

std::vector<GroupRow> scheduled_groups(int rule) {
  std::vector<GroupRow> groups = three_groups(rule);
  groups[0].schedule = 0;
  groups[1].schedule = 1;
  return groups;
}

// Each pass with and without each other one, so that none needs another to work.
void test_combinations(int rule) {
  for (int bits = 0; bits < 16; ++bits) {
    const Context context("combination ", bits);
    Options options;
    options.zero = (bits & 1) != 0;
    options.telemetry = (bits & 2) != 0 ? 3 : 0;
    options.scale = (bits & 4) != 0 ? 3.0f : 0.0f;
    options.has_found_inf = (bits & 4) != 0;
    options.norms = bits % 3 == 0;
    options.seed = 1000 + bits;
    const std::vector<TensorSpec> specs = (bits & 8) != 0 ? passes_specs(rule) : mixed_specs(rule);
    std::vector<GroupRow> groups = scheduled_groups(rule);
    groups[bits % 3].frozen = bits % 5 == 4;
    const auto make = [&] { return Plan(rule, specs, groups, 1000, options, two_schedules()); };
    expect_two_steps(make, Grid(rule, 7, 32));
  }
}

// All passes at once, with norms that are exact: chunks of every length, one that ends inside a
// tile of the CPU driver, and one that is longer than a tile.
void test_everything(int rule) {
  Options options;
  options.zero = true;
  options.telemetry = 2;
  options.scale = 4.0f;
  options.max_norm = 50.0;
  options.skip_nonfinite = true;
  options.exact_grads = true;
  std::vector<GroupRow> groups = scheduled_groups(rule);
  groups[1].max_norm = 7.0;
  for (const int64_t chunk : {31, 512, 700, 4097}) {
    for (const int threads : {1, 32, 512}) {
      if (chunk < 100 && threads > 100) continue;
      const Context context("everything, chunk ", chunk, ", threads ", threads);
      const auto make = [&] {
        return Plan(rule, passes_specs(rule), groups, chunk, options, two_schedules());
      };
      expect_two_steps(make, Grid(rule, chunk == 700 ? 1 : 9, threads));
    }
  }
}

// The kernel with passes does no more than the one without where none is wanted.
void test_kernels(int rule) {
  Plan with = make_mixed(rule, 1000);
  Plan without = make_mixed(rule, 1000);
  Grid grid(rule, 5, 32);
  grid.step(without.tables());
  grid.forces_passes = true;
  grid.step(with.tables());
  EXPECT_SAME(with, without);
}

// Every gradient that a tensor has, a frozen group's too; never one that the step was not given.
void test_zeroing(int rule) {
  for (const bool skips : {false, true}) {
    const Context context("zeroing, skipped ", skips);
    Options options;
    options.zero = true;
    options.has_found_inf = true;
    options.found_inf = skips ? 1.0f : 0.0f;
    std::vector<GroupRow> groups = three_groups(rule);
    groups[2].frozen = 1;
    const auto make = [&] { return Plan(rule, passes_specs(rule), groups, 1000, options); };
    const Plan before = make();
    Trio trio(make);
    Grid grid(rule, 4, 32);
    trio.step(grid);
    expect_agreement(trio);
    for (size_t i = 0; i < before.tensors.size(); ++i) {
      const Tensor& tensor = trio.on_grid.tensors[i];
      std::vector<uint8_t> expected(tensor.grad.size(), 0);
      if (!tensor.spec.has_grad) {
        const uint8_t* old = before.tensors[i].grad.data();
        expected.assign(old, old + tensor.grad.size());
      }
      EXPECT(std::equal(expected.begin(), expected.end(), tensor.grad.data()));
    }
  }
}

// 8 - 1 * (2 / scale), then half the way from 2 to that: whole numbers, exact in every type.
void test_values_of_passes() {
  GroupRow group{};
  group.hypers[Sgd::kRate] = 1.0;
  group.schedule = -1;
  Options options;
  options.scale = 0.5f;
  options.average_weight = 0.5;
  options.telemetry = 1;
  for (const DtypePair dtypes : kAllDtypePairs) {
    const Context context("values, dtypes ", dtypes);
    TensorSpec spec{100, dtypes};
    spec.has_average = true;
    Trio trio([&] {
      Plan plan(kPlace<Sgd>, {spec}, {group}, 64, options);
      with_types(dtypes, [&]<class Param, class State>() {
        Tensor& tensor = plan.tensors[0];
        for (int64_t i = 0; i < spec.numel; ++i) {
          put(8.0, tensor.param.as<Param>()[i]);
          put(2.0, tensor.grad.as<Param>()[i]);
          put(2.0, tensor.average.as<compute_t<Param>>()[i]);
        }
      });
      return plan;
    });
    Grid grid(kPlace<Sgd>, 2, 32);
    trio.step(grid);
    for (Plan* plan : {&trio.on_grid, &trio.on_cpu, &trio.plain}) {
      with_types(dtypes, [&]<class Param, class State>() {
        for (int64_t i = 0; i < spec.numel; ++i) {
          EXPECT_EQ(to_compute(plan->tensors[0].param.as<Param>()[i]), compute_t<Param>(4));
          EXPECT_EQ(plan->tensors[0].average.as<compute_t<Param>>()[i], compute_t<Param>(3));
        }
      });
      const double* record = plan->records.as<double>();
      EXPECT_EQ(record[kRecordRate], 1.0);
      EXPECT_EQ(record[kRecordGradNorm], 40.0);
      EXPECT_EQ(record[kRecordUpdateNorm], 40.0);
      EXPECT_EQ(record[kRecordWeightNorm], 40.0);
    }
  }
}

// The average is the weights at first, and its decay then goes from 1 / 10 to its own.
void test_averages_over_steps(int rule) {
  GroupRow group{};
  for (double& hyper : group.hypers) hyper = 0.25;
  group.schedule = -1;
  Options options;
  options.average_weight = 0.6;
  options.average_start = 2;
  options.average_warms_up = true;
  for (const DtypePair dtypes : kAllDtypePairs) {
    const Context context("averages over steps, dtypes ", dtypes);
    TensorSpec spec{100, dtypes};
    spec.has_average = true;
    Trio trio([&] { return Plan(rule, {spec}, {group}, 64, options); });
    Grid grid(rule, 2, 32);
    for (int step = 0; step < 9; ++step) {
      trio.step(grid);
      EXPECT_SAME(trio.on_grid, trio.plain);
      EXPECT_SAME(trio.on_cpu, trio.plain);
    }
  }
}

// ---- steps that are skipped ------------------------------------------------------------------

struct SkipCase {
  float found_inf;
  bool skip_nonfinite;
  float planted;  // one gradient's value; 0: none
  int32_t group;  // where it is planted; 2 is frozen
  bool skipped;
};

constexpr SkipCase kSkipCases[] = {
    {1.0f, false, 0.0f, 0, true},
    {0.0f, false, 0.0f, 0, false},
    {0.0f, true, 0.0f, 0, false},
    {0.0f, true, kInfinity, 0, true},
    {0.0f, true, -kInfinity, 1, true},
    {0.0f, true, std::numeric_limits<float>::quiet_NaN(), 1, true},
    {0.0f, true, kInfinity, 2, false},
    {3.0f, true, kInfinity, 0, true},
};

Plan make_skip_plan(int rule, const SkipCase& given, bool zero) {
  Options options;
  options.has_found_inf = !given.skip_nonfinite || given.found_inf != 0;
  options.found_inf = given.found_inf;
  options.skip_nonfinite = given.skip_nonfinite;
  options.zero = zero;
  options.telemetry = 2;
  std::vector<GroupRow> groups = scheduled_groups(rule);
  groups[2].frozen = 1;
  Plan plan(rule, passes_specs(rule), groups, 500, options, two_schedules());
  for (Tensor& tensor : plan.tensors) {
    if (given.planted == 0 || tensor.spec.group != given.group) continue;
    if (!tensor.spec.has_grad || tensor.spec.numel < 1000) continue;
    with_types(tensor.spec.dtypes, [&]<class Param, class State>() {
      put(given.planted, tensor.grad.as<Param>()[777]);
    });
    break;
  }
  return plan;
}

// Neither values nor counts, products, rates, records nor the clock; and the step behind it is the
// one that the skipped step would have been.
void test_skips(int rule) {
  for (const SkipCase& given : kSkipCases) {
    for (const bool zero : {false, true}) {
      const Context context("skip ", &given - kSkipCases, ", zero ", zero);
      Plan before = make_skip_plan(rule, given, zero);
      Trio trio([&] { return make_skip_plan(rule, given, zero); });
      Grid grid(rule, 5, 32);
      trio.step(grid);
      expect_agreement(trio);
      if (zero) {
        for (Tensor& tensor : before.tensors) {
          if (tensor.spec.has_grad) std::memset(tensor.grad.data(), 0, tensor.grad.size());
        }
      }
      EXPECT_EQ(trio.on_grid.difference(before).empty(), given.skipped);
      EXPECT_EQ(trio.on_grid.records.as<double>()[0] == -7.0, given.skipped);
      EXPECT_EQ(trio.on_grid.clock.as<Clock>()->applied, given.skipped ? 0 : 1);
      EXPECT_EQ(trio.on_grid.clock.as<Clock>()->steps, given.skipped ? 6 : 7);
      if (!given.skipped || given.skip_nonfinite) continue;
      for (Plan* plan : {&trio.on_grid, &trio.on_cpu, &trio.plain}) plan->options.found_inf = 0;
      trio.step(grid);
      expect_agreement(trio);
      EXPECT_EQ(trio.on_grid.clock.as<Clock>()->applied, 1);
    }
  }
}

// ---- telemetry -------------------------------------------------------------------------------

// Five steps, the third skipped, into a ring of two lines: a skipped step takes no line.
void test_ring(int rule) {
  Options options;
  options.telemetry = 2;
  options.has_found_inf = true;
  Trio trio([&] {
    return Plan(rule, passes_specs(rule), scheduled_groups(rule), 300, options, two_schedules());
  });
  Grid grid(rule, 3, 32);
  for (int step = 0; step < 5; ++step) {
    const Context context("ring, step ", step);
    for (Plan* plan : {&trio.on_grid, &trio.on_cpu, &trio.plain}) {
      plan->options.found_inf = step == 2 ? 1.0f : 0.0f;
    }
    trio.step(grid);
    expect_agreement(trio);
    if (step == 2) continue;
    const int64_t line = (trio.on_grid.clock.as<Clock>()->steps - 1) % 2;
    for (int g = 0; g < 3; ++g) {
      const double* record = trio.on_grid.records.as<double>() + (line * 3 + g) * kRecordFields;
      EXPECT_EQ(record[kRecordRate], trio.on_grid.rates.as<double>()[g]);
      EXPECT(record[kRecordUpdateNorm] > 0.0 && record[kRecordWeightNorm] > 0.0);
    }
    EXPECT_EQ(trio.on_grid.records.as<double>()[3 * kRecordFields] == -7.0, step == 0);
  }
}

// The grid's sums for any number of blocks, in any order of them: the same bits.
void test_sums_of_blocks(int rule) {
  Options options;
  options.telemetry = 1;
  options.max_norm = 1.0;
  const auto make = [&] {
    return Plan(rule, passes_specs(rule), three_groups(rule), 100, options);
  };
  Plan first = make();
  Grid one(rule, 1, 32);
  one.step(first.tables());
  for (const int64_t blocks : {2, 6, 64}) {
    Plan plan = make();
    Grid grid(rule, blocks, 32);
    for (int64_t i = 0; i < blocks; ++i) grid.order.push_back((i * 5 + 3) % blocks);
    grid.step(plan.tables());
    EXPECT_SAME(plan, first);
    EXPECT_SAME_SUMS(plan, first);
  }
}

// Each option of the update alone, and all: counts of steps that go along their gradients are exact
// in any order.
void test_update_options(int rule) {
  const RuleInfo info = rule_info(rule);
  for (const int bits : {1, 2, 4, 7}) {
    Options options;
    options.update.cautious = (bits & 1) != 0;
    options.update.cautious_decay = (bits & 2) != 0;
    options.update.unscheduled_decay = (bits & 4) != 0;
    if (options.update.cautious && !info.takes_caution) continue;
    if ((bits & 6) != 0 && !info.decouples) continue;
    options.telemetry = bits == 7 ? 2 : 0;
    options.max_norm = bits == 1 ? 7.0 : 0.0;
    options.exact_grads = true;
    const std::vector<TensorSpec> coded = coded_specs(rule);
    std::vector<TensorSpec> specs = bits > 2 ? passes_specs(rule) : mixed_specs(rule);
    if (info.codes_on_cuda) specs.insert(specs.end(), coded.begin(), coded.end());
    for (TensorSpec& spec : specs) {
      spec.coded = spec.coded && info.num_states[spec.form] <= kMostCodedOnCuda;
      if (options.update.cautious) spec.master = 0;  // which go without sums over tensors
    }
    std::vector<GroupRow> groups = scheduled_groups(rule);
    groups[1].frozen = bits == 4;
    const Context context("update's options ", bits);
    const auto make = [&] {
      Plan plan(rule, specs, groups, bits == 7 ? 1024 : 256, options, two_schedules());
      plan.shuffle_chunks(bits);
      return plan;
    };
    expect_two_steps(make, Grid(rule, 7, 32));
  }
}

// The first update of a state from zero, where the ratio of every gradient but 0 to the root of its
// mean of squares is exact: 1, or 2 without bias correction.
void test_update_clipping(int rule) {
  if (!rule_info(rule).takes_clipping) return;
  std::vector<GroupRow> groups = scheduled_groups(rule);
  for (GroupRow& group : groups) {
    Rules::visit(rule, [&]<class Rule>() {
      for (int i = 0; i < Rule::kNumHypers; ++i) {
        const HyperName& name = Rule::kHypers[i];
        const std::string_view key = name.key;
        if (key == "alpha" || (key == "betas" && name.index == 1)) group.hypers[i] = 0.75;
      }
    });
  }
  std::vector<TensorSpec> specs = passes_specs(rule);
  for (TensorSpec& spec : specs) spec.count = 0, spec.master = 0;
  for (const double threshold : {0.25, 0.9, 4.0}) {
    const Context context("update clipping at ", threshold);
    Options options;
    options.exact_grads = true;
    options.update.clipping = threshold;
    options.update.cautious = threshold == 0.25;
    Trio trio([&] {
      Plan plan(rule, specs, groups, 700, options, two_schedules());
      for (Tensor& tensor : plan.tensors) {
        for (GuardedBytes& state : tensor.states) std::memset(state.data(), 0, state.size());
      }
      return plan;
    });
    Grid grid(rule, 5, 32);
    trio.step(grid);
    expect_agreement(trio);
    EXPECT_EQ(trio.plain.rates.as<double>()[2], 0.5);  // the group's, of no tensor
  }
}

// A step that is stopped between the kernels of its sums and of its update.
void test_stops_before_a_cautious_update(int rule) {
  if (!rule_info(rule).takes_caution) return;
  for (const double first : {0.0, 1.0}) {
    const Context context("cautious, first block's stop ", first);
    Options options;
    options.update.cautious = true;
    Plan plan(rule, mixed_specs(rule), three_groups(rule), 512, options);
    Plan plain(rule, mixed_specs(rule), three_groups(rule), 512, options);
    plan.has_stop = true;
    Grid grid(rule, 3, 32);
    for (const bool again : {false, true}) {
      const StepTables t = plan.tables();
      if (lacks_values(t)) grid.run_schedule_block(t);
      for (int64_t i = 0; i < 3; ++i) {
        plan.stop = again || i != 0 ? 0.0 : first;
        grid.run_measure_block(t, i);
      }
      for (int64_t i = 0; i < 3; ++i) {
        plan.stop = again ? 0.0 : 1.0 - first;
        grid.run_step_block(t, i);
      }
      EXPECT_EQ(t.clock->blocks_done, 0);
      EXPECT_EQ(t.clock->measured, kUndecided);
      if (again || first == 0.0) reference_step(plain);
      EXPECT_SAME(plan, plain);
    }
  }
}

}  // namespace
}  // namespace lrfast::test

int main() {
  using namespace lrfast::test;
  test_values_of_passes();
  for_each_rule([](int rule) {
    test_combinations(rule);
    test_averages_over_steps(rule);
    test_everything(rule);
    test_kernels(rule);
    test_zeroing(rule);
    test_skips(rule);
    test_ring(rule);
    test_sums_of_blocks(rule);
    test_update_options(rule);
    test_update_clipping(rule);
    test_stops_before_a_cautious_update(rule);
  });
  return report("test_passes");
}
