// Norms of gradients against a plain sum in double, and the clipping that they serve. Where a norm
// is exact in every order of its summands, all drivers must clip to the same bits.
#include <cmath>
#include <cstring>
#include <limits>

#include "cpu/step.h"

#include "agreement.h"
#include "mixed.h"

namespace lrfast::test {
namespace {

// ---- norms -----------------------------------------------------------------------------------

// Long sums of all types, in chunks whose ends are vectors' ends and are not, over few groups
// (several threads to a group) and many (several groups to a thread), some without a chunk.
void test_norms() {
  const int rule = kPlace<Sgd>;
  for (const int groups : {1, 3, 70}) {
    for (const int threads : {1, 32, 512}) {
      for (const int64_t chunk : {int64_t{97}, int64_t{4096}, int64_t{65536}}) {
        const Context context("norms of ", groups, " groups, threads ", threads, ", chunk ", chunk);
        Options options;
        options.norms = true;
        options.scale = 5.0f;
        std::vector<TensorSpec> specs;
        for (int i = 0; i < 2 * kNumDtypePairs; ++i) {
          specs.push_back({i * 331 + 5, kAllDtypePairs[i % kNumDtypePairs], 0, i * 7 % groups});
          specs.back().grad_offset = i % 3;
          specs.back().has_grad = i % 8 != 7;
        }
        std::vector<GroupRow> rows(groups, make_group(rule, 0.1));
        for (int g = 0; g < groups; ++g) rows[g].frozen = g % 4 == 1;
        for (int g = 0; g < groups; ++g) rows[g].max_norm = g % 2 == 1 ? 1e9 : 0.0;
        const auto make = [&] { return Plan(rule, specs, rows, chunk, options); };
        expect_two_steps(make, Grid(rule, 4, threads));
      }
    }
  }
}

// One long tensor of each type: float sums would have lost their last digits long before the end.
void test_long_norms() {
  for (const DtypePair dtypes :
       {DtypePair::kFloat32, DtypePair::kFloat64, DtypePair::kBFloat16, DtypePair::kFloat16}) {
    const Context context("long norm, dtypes ", dtypes);
    Options options;
    options.norms = true;
    const auto make = [&] {
      Plan plan(kPlace<Sgd>, {{300001, dtypes}}, {make_group(kPlace<Sgd>, 0.1)}, 300001, options);
      with_types(dtypes, [&]<class Param, class State>() {
        for (int64_t i = 0; i < 300001; ++i) put(1.125, plan.tensors[0].grad.as<Param>()[i]);
      });
      return plan;
    };
    Trio trio(make);
    Grid grid(kPlace<Sgd>, 1, 32);
    trio.step(grid);
    expect_agreement(trio);
    const double exact = std::sqrt(300001.0) * 1.125;
    for (const Plan* plan : {&trio.on_grid, &trio.on_cpu, &trio.plain}) {
      EXPECT_NEAR(plan->norms.as<double>()[0], exact, kSumTolerance * exact);
    }
  }
}

// ---- clipping --------------------------------------------------------------------------------

struct ClipCase {
  double shared;
  double own[3];
  float scale;
  bool passes;  // averages, zeroing and telemetry besides
};

// Clipped and not; the optimizer's norm, groups' own, and both: a group with its own does not count
// for the others.
constexpr ClipCase kClipCases[] = {
    {1.0, {0, 0, 0}, 0, false},      {1e9, {0, 0, 0}, 0, false},  {0, {0.5, 0, 0}, 0, false},
    {0, {0.5, 3.0, 1e9}, 0, true},   {2.0, {0, 1.0, 0}, 8, true}, {1e9, {0, 0, 0.25}, 3, false},
    {100.0, {200.0, 0, 0}, 0, true},
};

void test_clipping(int rule) {
  for (const ClipCase& given : kClipCases) {
    for (const int frozen : {-1, 1}) {
      const Context context("clipping ", &given - kClipCases, ", frozen ", frozen);
      Options options;
      options.exact_grads = true;
      options.max_norm = given.shared;
      options.scale = given.scale;
      options.zero = given.passes;
      options.telemetry = given.passes ? 2 : 0;
      std::vector<GroupRow> groups = three_groups(rule);
      for (int g = 0; g < 3; ++g) groups[g].max_norm = given.own[g];
      if (frozen >= 0) groups[frozen].frozen = 1;
      auto specs = given.passes ? passes_specs(rule) : mixed_specs(rule);
      if (frozen >= 0) specs.back().counted = false;
      Trio trio([&] { return Plan(rule, specs, groups, 600, options); });
      Grid grid(rule, 5, 64);
      trio.step(grid);
      expect_agreement(trio);
      EXPECT_EQ(
          std::memcmp(trio.on_grid.norms.data(), trio.plain.norms.data(), trio.plain.norms.size()),
          0);
      EXPECT_EQ(
          std::memcmp(trio.on_cpu.norms.data(), trio.plain.norms.data(), trio.plain.norms.size()),
          0);
    }
  }
}

// One group of gradients 3 and 4, another of 12: 5, 12 and 13 are their norms.
struct Clipped {
  double grads[3];
  double norms[4];
};

Clipped clip(double shared, double own, float scale, bool on_cpu) {
  GroupRow groups[2] = {};
  for (GroupRow& group : groups) {
    group.hypers[Sgd::kRate] = 1.0;
    group.schedule = -1;
  }
  groups[1].max_norm = own;
  Options options;
  options.max_norm = shared;
  options.scale = scale;
  options.norms = true;
  Plan plan(kPlace<Sgd>, {{2, DtypePair::kFloat64}, {1, DtypePair::kFloat64, 0, 1}},
            {groups[0], groups[1]}, 8, options);
  double* first = plan.tensors[0].param.as<double>();
  double* second = plan.tensors[1].param.as<double>();
  first[0] = first[1] = second[0] = 0.0;
  plan.tensors[0].grad.as<double>()[0] = 3.0;
  plan.tensors[0].grad.as<double>()[1] = 4.0;
  plan.tensors[1].grad.as<double>()[0] = 12.0;
  if (on_cpu) {
    cpu_step(plan);
  } else {
    Grid(kPlace<Sgd>, 2, 4).step(plan.tables());
  }
  Clipped clipped{{-first[0], -first[1], -second[0]}, {}};
  for (int i = 0; i < 4; ++i) clipped.norms[i] = plan.norms.as<double>()[i];
  return clipped;
}

void test_values_of_clipping() {
  for (const bool on_cpu : {false, true}) {
    const Context context("values of clipping, on the CPU ", on_cpu);
    const auto expect = [&](double shared, double own, float scale, double first, double second) {
      const Clipped clipped = clip(shared, own, scale, on_cpu);
      EXPECT_NEAR(clipped.grads[0], 3.0 * first, 1e-15 * first);
      EXPECT_NEAR(clipped.grads[1], 4.0 * first, 1e-15 * first);
      EXPECT_NEAR(clipped.grads[2], 12.0 * second, 1e-14 * second);
      const double unscale = scale == 0 ? 1.0 : 1.0 / scale;
      EXPECT_EQ(clipped.norms[0], 5.0 * unscale);
      EXPECT_EQ(clipped.norms[1], 12.0 * unscale);
      EXPECT_EQ(clipped.norms[2], 13.0 * unscale);
      EXPECT_EQ(clipped.norms[3], (own > 0.0 ? 5.0 : 13.0) * unscale);
    };
    expect(0, 0, 0, 1.0, 1.0);
    expect(6.5, 0, 0, 6.5 / (13.0 + 1e-6), 6.5 / (13.0 + 1e-6));
    expect(14.0, 0, 0, 1.0, 1.0);
    expect(0, 6.0, 0, 1.0, 6.0 / (12.0 + 1e-6));
    expect(2.5, 6.0, 0, 2.5 / (5.0 + 1e-6), 6.0 / (12.0 + 1e-6));
    expect(2.5, 6.0, 4, 0.25, 0.25);  // scaled norms are 1.25 and 3
    expect(1.0, 1.0, 4, 0.25 / (1.25 + 1e-6), 0.25 / (3.0 + 1e-6));
  }
}

// ---- sums over several devices or processes --------------------------------------------------

// As three processes do that hold the same gradients: their sums are added between the parts.
template <class Step>
void step_in_parts(Plan& plan, Step&& step) {
  StepTables t = plan.tables();
  t.phase = Phase::kSquares;
  step(t);
  for (size_t g = 0; g < plan.groups.size(); ++g) plan.squares.as<double>()[g] *= 3.0;
  if (rule_info(plan.rule).measures) {
    t.phase = Phase::kMeasure;
    step(t);
    for (int i = 0; i < 2; ++i) t.totals.terms[i] *= 3.0;
  }
  t.phase = Phase::kUpdate;
  step(t);
}

void test_parts(int rule) {
  for (const double stop : {0.0, 1.0}) {
    const Context context("a step in parts, stopped ", stop);
    Options options;
    options.exact_grads = true;
    options.max_norm = 2.0;
    options.skip_nonfinite = true;
    std::vector<TensorSpec> specs = mixed_specs(rule);
    for (size_t i = 0; i < specs.size(); i += 2) specs[i].counted = false;
    std::vector<GroupRow> groups = three_groups(rule);
    groups[1].max_norm = 1.0;
    const auto make = [&] {
      Plan plan(rule, specs, groups, 600, options);
      plan.has_stop = true;
      plan.stop = stop;
      return plan;
    };
    Plan on_grid = make();
    Plan on_cpu = make();
    Grid grid(rule, 5, 64);
    cpu::Scratch scratch;
    step_in_parts(on_grid, [&](const StepTables& t) { grid.step(t); });
    step_in_parts(on_cpu, [&](const StepTables& t) { cpu::step(rule, t, 1, nullptr, scratch); });
    EXPECT_SAME(on_grid, on_cpu);
    if (stop != 0.0) continue;
    expect_near_distance(on_grid, on_cpu);
    Plan whole = make();
    cpu_step(whole);
    for (size_t i = 0; i < groups.size() + 2; ++i) {
      const double one = whole.norms.as<double>()[i];
      EXPECT(one > 0.0);
      EXPECT_NEAR(on_cpu.norms.as<double>()[i], std::sqrt(3.0) * one, 1e-14 * one);
      EXPECT_EQ(on_grid.norms.as<double>()[i], on_cpu.norms.as<double>()[i]);
    }
  }
}

// torch's clip_grad_norm_: an infinite norm makes finite gradients zero, a norm that is not a
// number makes all of them that.
void test_coefficients() {
  constexpr double kInfinity = std::numeric_limits<double>::infinity();
  EXPECT_EQ(clip_coefficient(0.0, 1.0), 1.0);
  EXPECT_EQ(clip_coefficient(1.0, 1.0), 1.0 / (1.0 + 1e-6));
  EXPECT_EQ(clip_coefficient(0.999, 1.0), 1.0);
  EXPECT_EQ(clip_coefficient(kInfinity, 1.0), 0.0);
  EXPECT(std::isnan(clip_coefficient(NAN, 1.0)));
}

}  // namespace
}  // namespace lrfast::test

int main() {
  using namespace lrfast::test;
  test_norms();
  test_long_norms();
  test_coefficients();
  test_values_of_clipping();
  for_each_rule([](int rule) { test_clipping(rule); });
  for_each_rule([](int rule) { test_parts(rule); });
  return report("test_clipping");
}
