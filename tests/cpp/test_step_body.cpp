// The step kernel's body on the host, over whole grids, against the CPU driver and against a plain
// walk over elements: all three must agree bit for bit. What else a step does than the rule is in
// test_passes.cpp.
#include <algorithm>
#include <cstring>
#include <numeric>
#include <random>

#include "cuda/step_body.cuh"

#include "agreement.h"
#include "mixed.h"

namespace lrfast::test {
namespace {

struct GridShape {
  int64_t chunk;
  int64_t blocks;
  int threads;
};

void test_grids(int rule) {
  constexpr GridShape kShapes[] = {{8, 150, 1},    {31, 7, 32},    {31, 1, 5},      {1000, 1, 32},
                                   {1000, 7, 512}, {4096, 2, 512}, {4097, 150, 32}, {32768, 1, 1}};
  for (const GridShape& s : kShapes) {
    const Context context("chunk ", s.chunk, ", ", s.blocks, " blocks of ", s.threads);
    expect_two_steps([&] { return make_mixed(rule, s.chunk); }, Grid(rule, s.blocks, s.threads));
  }
}

// More chunks than blocks and fewer, down to chunks of one element, and ends of tensors before, at
// and after a chunk's end.
void test_large(int rule) {
  constexpr GridShape kShapes[] = {
      {1, 132, 2}, {21845, 1, 512}, {65536, 132, 512}, {65537, 1, 512}, {1 << 20, 132, 512}};
  const uint8_t last_form = static_cast<uint8_t>(rule_info(rule).num_forms - 1);
  for (const GridShape& s : kShapes) {
    const Context context("large, chunk ", s.chunk, ", ", s.blocks, " blocks of ", s.threads);
    const auto make = [&] {
      return Plan(rule, {{65537}, {65536, DtypePair::kStochasticBFloat16, last_form}},
                  {make_group(rule, 0.1)}, s.chunk);
    };
    expect_two_steps(make, Grid(rule, s.blocks, s.threads));
  }
}

void test_many_small(int rule) {
  std::vector<TensorSpec> specs;
  for (int64_t i = 0; i < 3000; ++i) {
    const int64_t form = i / kNumDtypePairs % rule_info(rule).num_forms;
    TensorSpec spec{i % 11, kAllDtypePairs[i % kNumDtypePairs], static_cast<uint8_t>(form)};
    spec.has_grad = i % 7 != 0;
    specs.push_back(spec);
  }
  const Context context("many small");
  const auto make = [&] { return Plan(rule, specs, {make_group(rule, 0.1)}, 64); };
  expect_two_steps(make, Grid(rule, 132, 32));
}

// States in 8 bits, in vectors and not, whole blocks of codes and parts, with passes and without.
void test_coded(int rule) {
  if (!rule_info(rule).codes_on_cuda) return;
  constexpr GridShape kShapes[] = {{256, 7, 5}, {512, 1, 32}, {1024, 150, 64}, {16384, 3, 512}};
  for (const GridShape& s : kShapes) {
    for (const int offset : {0, 1}) {
      const Context context("coded, chunk ", s.chunk, ", threads ", s.threads, ", offset ", offset);
      Options options;
      options.telemetry = s.blocks > 1 ? 2 : 0;
      options.zero = s.blocks > 1;
      std::vector<TensorSpec> specs = coded_specs(rule);
      for (TensorSpec& spec : specs) {
        spec.state_offset = offset;
        spec.coded = rule_info(rule).num_states[spec.form] <= kMostCodedOnCuda;
      }
      const auto make = [&] { return Plan(rule, specs, three_groups(rule), s.chunk, options); };
      expect_two_steps(make, Grid(rule, s.blocks, s.threads));
    }
  }
}

// Vectors where all arrays are aligned, single elements where one is not: the same bits.
void test_alignment(int rule) {
  for (const int offset : {1, 2, 4, 8}) {
    for (int which = 0; which < 5; ++which) {
      const Context context("offset ", offset, ", arrays ", which);
      std::vector<TensorSpec> specs = passes_specs(rule);
      for (TensorSpec& spec : specs) {
        if (which == 0 || which == 1) spec.param_offset = offset;
        if (which == 0 || which == 2) spec.grad_offset = offset;
        if (which == 0 || which == 3) spec.state_offset = offset;
        if (which == 0 || which == 4) spec.average_offset = offset;
      }
      Plan moved(rule, specs, three_groups(rule), 1024);
      Plan aligned(rule, passes_specs(rule), three_groups(rule), 1024);
      Grid grid(rule, 5, 32);
      grid.step(moved.tables());
      reference_step(aligned);
      EXPECT_SAME(moved, aligned);
      EXPECT(moved.is_intact());
    }
  }
}

// The fast path is taken where it may be, and only there.
void test_locate_chunk() {
  const auto locate = [](int param, int grad, int state, int average, int64_t begin) {
    TensorSpec spec{100, DtypePair::kFloat32, Sgd::kWithMomentum, 0, param, grad, state, average};
    spec.has_average = average != 0;
    Plan plan(kPlace<Sgd>, {spec}, {make_group(kPlace<Sgd>, 0.1)}, 40);
    const StepTables t = plan.tables();
    return cuda::locate_chunk<Sgd, Sgd::kWithMomentum, float, float>(t.tensors[0], t.grads[0],
                                                                     begin, 40);
  };
  EXPECT(locate(0, 0, 0, 0, 0).aligned);
  EXPECT(locate(4, 8, 12, 16, 40).aligned);
  EXPECT(!locate(1, 0, 0, 0, 0).aligned);
  EXPECT(!locate(0, 2, 0, 0, 0).aligned);
  EXPECT(!locate(0, 0, 3, 0, 0).aligned);
  EXPECT(!locate(0, 0, 0, 1, 0).aligned);
  EXPECT(!locate(0, 0, 0, 0, 30).aligned);
  EXPECT_EQ(locate(0, 0, 0, 0, 0).count, 40);
  EXPECT_EQ(locate(0, 0, 0, 0, 60).count, 40);
  EXPECT_EQ(locate(0, 0, 0, 0, 80).count, 20);
  EXPECT_EQ(locate(0, 0, 0, 0, 80).begin, 80);
}

// The blocks come in any order; whichever is last, and no other, ends the step.
void test_block_orders(int rule) {
  std::mt19937 random(7);
  Plan plain = make_mixed(rule, 512);
  reference_step(plain);
  for (int round = 0; round < 9; ++round) {
    const Context context("order ", round);
    Plan on_grid = make_mixed(rule, 512);
    on_grid.shuffle_chunks(round);
    Grid grid(rule, 1 + round % 9, 32);
    std::vector<int64_t> order(grid.blocks);
    std::iota(order.begin(), order.end(), 0);
    std::shuffle(order.begin(), order.end(), random);
    const StepTables t = on_grid.tables();
    const Clock& clock = *on_grid.clock.as<Clock>();
    grid.run_schedule_block(t);
    for (int64_t i = 0; i < grid.blocks; ++i) grid.run_measure_block(t, order[i]);
    for (int64_t i = 0; i < grid.blocks; ++i) {
      EXPECT_EQ(clock.applied, 0);
      EXPECT_EQ(clock.steps, 6);
      EXPECT_EQ(clock.blocks_done, i);
      for (const Tensor& tensor : on_grid.tensors) {
        EXPECT_EQ(*tensor.count.as<float>(), tensor.spec.count);
      }
      grid.run_step_block(t, order[i]);
    }
    EXPECT_EQ(clock.applied, 1);
    EXPECT_EQ(clock.steps, 7);
    EXPECT_SAME(on_grid, plain);
  }
}

// Whole numbers small enough for every type: param - 1 * grad is exact, and grad != 0, so that a
// visit too few or too many, or another element's gradient, changes the value.
template <class Param>
LRFAST_NOINLINE void fill_whole(Tensor& tensor) {
  for (int64_t i = 0; i < tensor.spec.numel; ++i) {
    put(static_cast<double>(i % 101), tensor.param.as<Param>()[i]);
    put(static_cast<double>(1 + i % 13), tensor.grad.as<Param>()[i]);
  }
}

template <class Param>
LRFAST_NOINLINE void expect_visited(const Tensor& tensor) {
  for (int64_t i = 0; i < tensor.spec.numel; ++i) {
    const double value = to_compute(tensor.param.as<Param>()[i]);
    EXPECT_EQ(value, static_cast<double>(i % 101 - (1 + i % 13)));
  }
}

void test_visits() {
  GroupRow group{};
  group.hypers[Sgd::kRate] = 1.0;
  group.schedule = -1;
  for (const DtypePair dtypes : kAllDtypePairs) {
    for (const uint8_t form : {Sgd::kPlain, Sgd::kWithMomentum}) {
      for (const int64_t chunk : {5, 64, 1000}) {
        for (const bool passes : {false, true}) {
          const Context context("visits, dtypes ", dtypes, ", form ", form, ", chunk ", chunk);
          Plan plan(kPlace<Sgd>, {{4097, dtypes, form}, {1003, dtypes, form}}, {group}, chunk);
          for (Tensor& tensor : plan.tensors) {
            with_types(dtypes, [&]<class Param, class State>() { fill_whole<Param>(tensor); });
          }
          Grid grid(kPlace<Sgd>, 3, 32);
          grid.forces_passes = passes;
          grid.step(plan.tables());
          for (const Tensor& tensor : plan.tensors) {
            with_types(dtypes, [&]<class Param, class State>() { expect_visited<Param>(tensor); });
            EXPECT_EQ(*tensor.count.as<float>(), 1.0f);
          }
        }
      }
    }
  }
}

// No gradient, or a frozen group: parameter, average, states, count and product stay. Also where no
// tensor is left to update, and where there is no tensor at all: the step still counts.
void test_left_out(int rule) {
  std::vector<GroupRow> groups = {make_group(rule, 0.1), make_group(rule, 0.2)};
  groups[1].frozen = 1;
  for (int round = 0; round < 3; ++round) {
    const Context context("left out ", round);
    std::vector<TensorSpec> specs = round < 2 ? passes_specs(rule) : std::vector<TensorSpec>{};
    for (TensorSpec& spec : specs) {
      spec.group = round == 1 ? 1 : spec.numel % 2;
      spec.has_grad = spec.numel != 33;
    }
    const auto make = [&] { return Plan(rule, specs, groups, 100); };
    const Plan before = make();
    Trio trio(make);
    Grid grid(rule, 4, 32);
    for (int step = 0; step < 2; ++step) trio.step(grid);
    expect_agreement(trio);
    EXPECT_EQ(trio.on_grid.clock.as<Clock>()->applied, 2);
    EXPECT_EQ(trio.on_grid.rates.as<double>()[1], 0.2);
    for (size_t i = 0; i < specs.size(); ++i) {
      const bool updated = specs[i].has_grad && specs[i].group == 0;
      const Tensor& tensor = trio.on_grid.tensors[i];
      EXPECT_EQ(*tensor.count.as<float>(), specs[i].count + (updated ? 2.0f : 0.0f));
      if (updated || specs[i].numel == 0) continue;
      const Tensor& old = before.tensors[i];
      EXPECT(std::memcmp(tensor.param.data(), old.param.data(), old.param.size()) == 0);
      EXPECT(std::memcmp(tensor.average.data(), old.average.data(), old.average.size()) == 0);
      EXPECT_EQ(*tensor.product.as<double>(), *old.product.as<double>());
    }
  }
}

void test_stop(int rule) {
  for (const double flag : {1.0, 2.0, -1.0, 0.0}) {
    const Context context("stop ", flag);
    Options options;
    options.zero = true;
    options.telemetry = 2;
    const auto make = [&] {
      Plan plan(rule, passes_specs(rule), three_groups(rule), 512, options);
      plan.has_stop = true;
      plan.stop = flag;
      return plan;
    };
    const Plan before = make();
    Trio trio(make);
    Grid grid(rule, 3, 32);
    trio.step(grid);
    expect_agreement(trio);
    EXPECT_EQ(trio.on_grid.difference(before).empty(), flag != 0.0);
    EXPECT_EQ(trio.on_grid.records.as<double>()[0] == -7.0, flag != 0.0);
  }
}

// Another stream sets or clears the flag while some blocks have yet to look: the first one's look
// counts for all, so that a step is made whole or not at all, and later steps are as they were.
void test_stop_in_the_middle(int rule) {
  for (const double first : {0.0, 1.0}) {
    for (const double max_norm : {0.0, 1.0}) {
      const Context context("first block's stop ", first, ", max_norm ", max_norm);
      Options options;
      options.max_norm = max_norm;
      options.exact_grads = true;
      Plan plan(rule, mixed_specs(rule), three_groups(rule), 512, options);
      Plan plain(rule, mixed_specs(rule), three_groups(rule), 512, options);
      plan.has_stop = true;
      Grid grid(rule, 3, 32);
      const StepTables t = plan.tables();
      grid.run_schedule_block(t);
      for (int64_t i = 0; max_norm > 0.0 && i < 3; ++i) {
        plan.stop = i == 0 ? first : 1.0 - first;
        grid.run_norm_block(t, i);
      }
      EXPECT_EQ(t.clock->blocks_done, 0);
      const bool decides = max_norm == 0.0;  // without norms
      for (int64_t i = 0; i < 3; ++i) {
        plan.stop = (i == 0) == decides ? first : 1.0 - first;
        grid.run_measure_block(t, i);
      }
      for (int64_t i = 0; i < 3; ++i) {
        plan.stop = (i == 0) == decides ? first : 1.0 - first;
        grid.run_step_block(t, i);
      }
      EXPECT_EQ(t.clock->blocks_done, 0);
      if (first == 0.0) reference_step(plain);
      EXPECT_SAME(plan, plain);
      plan.stop = 0.0;
      grid.step(plan.tables());
      reference_step(plain);
      EXPECT_EQ(t.clock->blocks_done, 0);
      EXPECT_SAME(plan, plain);
    }
  }
}

// found_inf likewise: all blocks skip the step, or none.
void test_found_inf_in_the_middle(int rule) {
  for (const float first : {0.0f, 1.0f}) {
    for (const double max_norm : {0.0, 1.0}) {
      const Context context("first block's found_inf ", first, ", max_norm ", max_norm);
      Options options;
      options.max_norm = max_norm;
      options.exact_grads = options.zero = options.has_found_inf = true;
      Plan plan(rule, mixed_specs(rule), three_groups(rule), 512, options);
      options.found_inf = first;
      Plan plain(rule, mixed_specs(rule), three_groups(rule), 512, options);
      Grid grid(rule, 3, 32);
      const StepTables t = plan.tables();
      grid.run_schedule_block(t);
      for (int64_t i = 0; max_norm > 0.0 && i < 3; ++i) grid.run_norm_block(t, i);
      for (int64_t i = 0; i < 3; ++i) {
        plan.options.found_inf = i == 0 ? first : 1.0f - first;
        grid.run_measure_block(t, i);
      }
      for (int64_t i = 0; i < 3; ++i) {
        plan.options.found_inf = i == 0 ? first : 1.0f - first;
        grid.run_step_block(t, i);
      }
      reference_step(plain);
      EXPECT_SAME(plan, plain);
      EXPECT_EQ(t.clock->decision, kUndecided);
    }
  }
}

// Ten steps under three schedules: clock, counts, rates and products move on together.
void test_schedules(int rule) {
  std::vector<GroupRow> groups = three_groups(rule);
  groups[0].schedule = 0;
  groups[1].schedule = 1;
  std::vector<TensorSpec> specs;
  const uint8_t last_form = static_cast<uint8_t>(rule_info(rule).num_forms - 1);
  for (const DtypePair dtypes : kAllDtypePairs) {
    for (int32_t g = 0; g < 3; ++g) {
      specs.push_back({300, dtypes, last_form, g});
      specs.back().has_product = g == 0;
    }
  }
  Trio trio([&] { return Plan(rule, specs, groups, 128, {}, two_schedules()); });
  Grid grid(rule, 4, 32);
  for (int64_t step = 0; step < 12; ++step) {
    const Context context("scheduled step ", step);
    trio.step(grid);
    expect_agreement(trio);
    const StepTables t = trio.on_grid.tables();
    EXPECT_EQ(t.clock->applied, step + 1);
    EXPECT_EQ(t.clock->steps, step + 7);
    EXPECT_EQ(*static_cast<const float*>(t.tensors[0].count), static_cast<float>(step + 1));
    EXPECT_EQ(t.rates[0], 0.1 * evaluate_schedule(t.inputs->schedules, 0, step).rate);
    EXPECT_EQ(t.rates[2], 0.5);
  }
}

// The product is the one of the momenta that were used, under the name that the rule gives it.
void test_products() {
  double adam = 0.5;
  double nadam = 0.5;
  GroupRow groups[] = {make_group(kPlace<Adam>, 0.1), make_group(kPlace<NAdam>, 0.1)};
  groups[0].schedule = groups[1].schedule = 0;
  TensorSpec spec{5};
  spec.has_product = true;
  Plan with_adam(kPlace<Adam>, {spec}, {groups[0]}, 8, {}, two_schedules());
  Plan with_nadam(kPlace<NAdam>, {spec}, {groups[1]}, 8, {}, two_schedules());
  const StepTables t = with_adam.tables();
  Grid adam_grid(kPlace<Adam>, 2, 4);
  Grid nadam_grid(kPlace<NAdam>, 2, 4);
  for (int64_t step = 0; step < 10; ++step) {
    const double momentum = evaluate_schedule(t.inputs->schedules, 0, step).momentum;
    adam *= momentum;
    nadam *= momentum * (1.0 - 0.5 * std::pow(0.96, (step + 1.0) * 0.004));
    adam_grid.step(with_adam.tables());
    nadam_grid.step(with_nadam.tables());
    EXPECT_EQ(*with_adam.tensors[0].product.as<double>(), adam);
    EXPECT_NEAR(*with_nadam.tensors[0].product.as<double>(), nadam, 1e-14 * nadam);
  }
}

}  // namespace
}  // namespace lrfast::test

int main() {
  using namespace lrfast::test;
  test_visits();
  test_locate_chunk();
  test_products();
  for_each_rule([](int rule) {
    test_grids(rule);
    test_large(rule);
    test_many_small(rule);
    test_coded(rule);
    test_alignment(rule);
    test_block_orders(rule);
    test_left_out(rule);
    test_stop(rule);
    test_stop_in_the_middle(rule);
    test_found_inf_in_the_middle(rule);
    test_schedules(rule);
  });
  return report("test_step_body");
}
