// The step kernel's body on the host, over whole grids, against the CPU driver and against a plain
// walk over elements: all three must agree bit for bit.
#include <algorithm>
#include <numeric>
#include <random>

#include "cpu/step.h"
#include "cuda/step_body.cuh"

#include "mixed.h"
#include "reference.h"

namespace lrfast::test {
namespace {

// A grid whose blocks run one after another. All share one memory, as blocks on a processor do:
// what the block before, or the step before, has left there must not matter.
template <class Rule>
struct Grid {
  int64_t blocks = 1;
  int threads = 1;
  std::vector<int64_t> order;  // empty: ascending
  cuda::StepMemory<Rule> shared{};

  LRFAST_NOINLINE void run_block(const StepTables& t, int64_t index) {
    cuda::HostBlock block{index, blocks, threads};
    cuda::step_body<Rule>(t, shared, block);
  }
  LRFAST_NOINLINE void step(const StepTables& t) {
    for (int64_t i = 0; i < blocks; ++i) run_block(t, order.empty() ? i : order[i]);
  }
};

template <class Rule>
LRFAST_NOINLINE void cpu_step(Plan& plan) {
  cpu::step(kPlace<Rule>, plan.tables(), 1, nullptr);
}

// Two steps, because the second finds what the first has left: counts, clock, blocks_done.
template <class Rule>
void expect_agreement(const std::vector<Plan*>& plans, Grid<Rule>& grid) {
  Plan& on_grid = *plans[0];
  Plan& on_cpu = *plans[1];
  Plan& plain = *plans[2];
  for (int step = 0; step < 2; ++step) {
    grid.step(on_grid.tables());
    cpu_step<Rule>(on_cpu);
    reference_step<Rule>(plain);
  }
  EXPECT_SAME(on_grid, plain);
  EXPECT_SAME(on_cpu, plain);
  EXPECT(on_grid.is_intact() && on_cpu.is_intact());
  EXPECT_EQ(on_grid.clock.template as<Clock>()->blocks_done, 0);
}

template <class Rule>
void test_grids() {
  for (const int64_t chunk : {8, 31, 1000, 4096, 4097, 32768}) {
    for (const int64_t blocks : {1, 7, 300}) {
      for (const int threads : {1, 32, 512}) {
        if (chunk < 100 && threads > 100) continue;  // idle threads of many chunks: only slow
        const Context context("chunk ", chunk, ", ", blocks, " blocks of ", threads);
        Plan on_grid = make_mixed<Rule>(chunk);
        Plan on_cpu = make_mixed<Rule>(chunk);
        Plan plain = make_mixed<Rule>(chunk);
        Grid<Rule> grid{blocks, threads, {}};
        expect_agreement<Rule>({&on_grid, &on_cpu, &plain}, grid);
      }
    }
  }
}

// More chunks than blocks and fewer, down to chunks of one element, and ends of tensors before, at
// and after a chunk's end.
template <class Rule>
void test_large() {
  for (const int64_t chunk : {1, 2, 4096, 21845, 65536, 65537, 65538, 1 << 20}) {
    for (const int64_t blocks : {1, 132}) {
      const Context context("large, chunk ", chunk, ", ", blocks, " blocks");
      const auto make = [&] {
        const uint8_t last_form = Rule::kNumForms - 1;
        return Plan::make<Rule>({{65537}, {65536, Kind::kBFloat16, last_form}},
                                {make_group<Rule>(0.1)}, chunk);
      };
      Plan on_grid = make();
      Plan on_cpu = make();
      Plan plain = make();
      Grid<Rule> grid{blocks, chunk < 8 ? 4 : 512, {}};
      expect_agreement<Rule>({&on_grid, &on_cpu, &plain}, grid);
    }
  }
}

template <class Rule>
void test_many_small() {
  std::vector<TensorSpec> specs;
  for (int64_t i = 0; i < 3000; ++i) {
    TensorSpec spec{i % 11, kAllKinds[i % 6], static_cast<uint8_t>(i % Rule::kNumForms)};
    spec.has_grad = i % 7 != 0;
    specs.push_back(spec);
  }
  const auto make = [&] { return Plan::make<Rule>(specs, {make_group<Rule>(0.1)}, 64); };
  Plan on_grid = make();
  Plan on_cpu = make();
  Plan plain = make();
  Grid<Rule> grid{132, 32, {}};
  const Context context("many small");
  expect_agreement<Rule>({&on_grid, &on_cpu, &plain}, grid);
}

// Vectors where all arrays are aligned, single elements where one is not: the same bits.
template <class Rule>
void test_alignment() {
  for (int offset = 0; offset < 8; ++offset) {
    for (int which = 0; which < 4; ++which) {
      const Context context("offset ", offset, ", arrays ", which);
      std::vector<TensorSpec> specs = mixed_specs<Rule>();
      for (TensorSpec& spec : specs) {
        if (which == 0) spec = spec.with_offset(offset);
        if (which == 1) spec.param_offset = offset;
        if (which == 2) spec.grad_offset = offset;
        if (which == 3) spec.state_offset = offset;
      }
      const std::vector<GroupRow> groups = {make_group<Rule>(0.1), make_group<Rule>(0.2),
                                            make_group<Rule>(0.3)};
      Plan moved = Plan::make<Rule>(specs, groups, 1024);
      Plan aligned = Plan::make<Rule>(mixed_specs<Rule>(), groups, 1024);
      Grid<Rule> grid{5, 32, {}};
      grid.step(moved.tables());
      reference_step<Rule>(aligned);
      EXPECT_SAME(moved, aligned);
      EXPECT(moved.is_intact());
    }
  }
}

// The fast path is taken where it may be, and only there.
template <class Rule>
void test_locate_chunk() {
  constexpr uint8_t kForm = Rule::kNumForms - 1;
  const auto locate = [](int param, int grad, int state, int64_t begin) {
    Plan plan = Plan::make<Rule>({{100, Kind::kFloat32, kForm, 0, param, grad, state}},
                                 {make_group<Rule>(0.1)}, 40);
    const StepTables t = plan.tables();
    return cuda::locate_chunk<Rule, kForm, float, float>(t.tensors[0], t.grads[0], begin, 40);
  };
  EXPECT(locate(0, 0, 0, 0).aligned);
  EXPECT(locate(4, 8, 12, 40).aligned);
  EXPECT(!locate(1, 0, 0, 0).aligned);
  EXPECT(!locate(0, 2, 0, 0).aligned);
  EXPECT_EQ(locate(0, 0, 3, 0).aligned, Rule::kStates[kForm].count == 0);
  EXPECT(!locate(0, 0, 0, 30).aligned);
  EXPECT_EQ(locate(0, 0, 0, 0).count, 40);
  EXPECT_EQ(locate(0, 0, 0, 60).count, 40);
  EXPECT_EQ(locate(0, 0, 0, 80).count, 20);
}

// The blocks come in any order; whichever is last, and no other, ends the step.
template <class Rule>
void test_block_orders() {
  std::mt19937 random(7);
  for (int round = 0; round < 40; ++round) {
    const Context context("order ", round);
    Plan on_grid = make_mixed<Rule>(512);
    Plan plain = make_mixed<Rule>(512);
    std::shuffle(on_grid.chunks.begin(), on_grid.chunks.end(), random);
    Grid<Rule> grid{1 + round % 9, 32, {}};
    grid.order.resize(grid.blocks);
    std::iota(grid.order.begin(), grid.order.end(), 0);
    std::shuffle(grid.order.begin(), grid.order.end(), random);
    const StepTables t = on_grid.tables();
    const Clock& clock = *on_grid.clock.as<Clock>();
    for (int64_t i = 0; i < grid.blocks; ++i) {
      EXPECT_EQ(clock.applied, 0);
      EXPECT_EQ(clock.blocks_done, i);
      for (const Tensor& tensor : on_grid.tensors) {
        EXPECT_EQ(*tensor.count.as<float>(), tensor.spec.count);
      }
      grid.run_block(t, grid.order[i]);
    }
    EXPECT_EQ(clock.applied, 1);
    reference_step<Rule>(plain);
    EXPECT_SAME(on_grid, plain);
  }
}

// Whole numbers small enough for every type: param - 1 * grad is exact, and grad != 0, so that a
// visit too few or too many, or another element's gradient, changes the value.
template <class Param>
LRFAST_NOINLINE void fill_whole(Tensor& tensor) {
  for (int64_t i = 0; i < tensor.spec.numel; ++i) {
    from_compute(compute_t<Param>(i % 101), tensor.param.as<Param>()[i]);
    from_compute(compute_t<Param>(1 + i % 13), tensor.grad.as<Param>()[i]);
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
  for (const Kind kind : kAllKinds) {
    for (const uint8_t form : {Sgd::kPlain, Sgd::kWithMomentum}) {
      for (const int64_t chunk : {5, 64, 1000}) {
        const Context context("visits, kind ", kind, ", form ", form, ", chunk ", chunk);
        Plan plan = Plan::make<Sgd>({{4097, kind, form}, {1003, kind, form}}, {group}, chunk);
        for (Tensor& tensor : plan.tensors) {
          with_types(kind, [&]<class Param, class State>() { fill_whole<Param>(tensor); });
        }
        Grid<Sgd> grid{3, 32, {}};
        grid.step(plan.tables());
        for (const Tensor& tensor : plan.tensors) {
          with_types(kind, [&]<class Param, class State>() { expect_visited<Param>(tensor); });
          EXPECT_EQ(*tensor.count.as<float>(), 1.0f);
        }
      }
    }
  }
}

// No gradient, or a frozen group: parameter, states, count and product stay. Also where no tensor
// is left to update, and where there is no tensor at all: the step still counts.
template <class Rule>
void test_left_out() {
  std::vector<GroupRow> groups = {make_group<Rule>(0.1), make_group<Rule>(0.2)};
  groups[1].frozen = 1;
  for (int round = 0; round < 3; ++round) {
    const Context context("left out ", round);
    std::vector<TensorSpec> specs = round < 2 ? mixed_specs<Rule>() : std::vector<TensorSpec>{};
    for (TensorSpec& spec : specs) {
      spec.group = round == 1 ? 1 : spec.numel % 2;
      spec.has_grad = spec.numel != 33;
    }
    const auto make = [&] { return Plan::make<Rule>(specs, groups, 100); };
    const Plan before = make();
    Plan on_grid = make();
    Plan on_cpu = make();
    Plan plain = make();
    Grid<Rule> grid{4, 32, {}};
    expect_agreement<Rule>({&on_grid, &on_cpu, &plain}, grid);
    EXPECT_EQ(on_grid.clock.as<Clock>()->applied, 2);
    EXPECT_EQ(on_grid.rates.as<double>()[1], 0.2);
    for (size_t i = 0; i < specs.size(); ++i) {
      const bool updated = specs[i].has_grad && specs[i].group == 0;
      const Tensor& tensor = on_grid.tensors[i];
      EXPECT_EQ(*tensor.count.as<float>(), specs[i].count + (updated ? 2.0f : 0.0f));
      if (updated || specs[i].numel == 0) continue;
      const Tensor& old = before.tensors[i];
      EXPECT(std::memcmp(tensor.param.data(), old.param.data(), old.param.size()) == 0);
      EXPECT_EQ(*tensor.product.as<double>(), *old.product.as<double>());
    }
  }
}

template <class Rule>
void test_stop() {
  for (const double flag : {1.0, 2.0, -1.0, 0.0}) {
    const Context context("stop ", flag);
    const Plan before = make_mixed<Rule>(512);
    Plan on_grid = make_mixed<Rule>(512);
    Plan on_cpu = make_mixed<Rule>(512);
    on_grid.has_stop = on_cpu.has_stop = true;
    on_grid.stop = on_cpu.stop = flag;
    Grid<Rule> grid{3, 32, {}};
    grid.step(on_grid.tables());
    cpu_step<Rule>(on_cpu);
    EXPECT_EQ(on_grid.difference(before).empty(), flag != 0.0);
    EXPECT_SAME(on_grid, on_cpu);
  }
}

// Ten steps under three schedules: clock, counts, rates and products move on together.
template <class Rule>
void test_schedules() {
  const Segment up{0, 0.0, 4.0, 0.1, 1.0, 0.0, Shape::kLinear};
  const Segment down{4, 4.0, 5.0, 1.0, 1e-3, 0.0, Shape::kCosine};
  const Segment momentum{0, 0.0, 8.0, 0.95, 0.85, 0.0, Shape::kCosine};
  const Segment decay{0, 0.0, 9.0, 1.0, 0.5, std::log(0.5), Shape::kExponential};
  const std::vector<ScheduleSpec> schedules = {{{{up, down}}, {momentum}}, {{{decay}, {up}}, {}}};
  std::vector<GroupRow> groups = {make_group<Rule>(0.1), make_group<Rule>(0.2),
                                  make_group<Rule>(0.3)};
  groups[0].schedule = 0;
  groups[1].schedule = 1;
  std::vector<TensorSpec> specs;
  for (const Kind kind : kAllKinds) {
    for (int32_t g = 0; g < 3; ++g) {
      TensorSpec spec{300, kind, Rule::kNumForms - 1, g};
      spec.has_product = g == 0;
      specs.push_back(spec);
    }
  }
  const auto make = [&] { return Plan::make<Rule>(specs, groups, 128, schedules); };
  Plan on_grid = make();
  Plan on_cpu = make();
  Plan plain = make();
  Grid<Rule> grid{4, 32, {}};
  double product = 0.5;
  for (int64_t step = 0; step < 12; ++step) {
    const Context context("scheduled step ", step);
    const StepTables t = on_grid.tables();
    grid.step(t);
    cpu_step<Rule>(on_cpu);
    reference_step<Rule>(plain);
    EXPECT_SAME(on_grid, plain);
    EXPECT_SAME(on_cpu, plain);
    EXPECT_EQ(t.clock->applied, step + 1);
    EXPECT_EQ(*t.tensors[0].count, static_cast<float>(step + 1));
    EXPECT_EQ(t.rates[0], 0.1 * evaluate(t.schedules, 0, step).rate);
    EXPECT_EQ(t.rates[2], 0.3);
    product *= evaluate(t.schedules, 0, step).momentum;
    EXPECT_EQ(*t.tensors[0].momentum_product, product);
  }
}

}  // namespace
}  // namespace lrfast::test

int main() {
  using namespace lrfast::test;
  test_visits();
  for_each_rule([]<class Rule>() {
    test_grids<Rule>();
    test_large<Rule>();
    test_many_small<Rule>();
    test_alignment<Rule>();
    test_locate_chunk<Rule>();
    test_block_orders<Rule>();
    test_left_out<Rule>();
    test_stop<Rule>();
    test_schedules<Rule>();
  });
  return report("test_step_body");
}
