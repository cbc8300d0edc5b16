// Two steps of each rule on one double, against the formulas written out once more. The second step
// meets states, counts and products that the first has left. tests/optim/test_references.py has the
// long runs.
#include <algorithm>
#include <cmath>

#include "fixture.h"

namespace lrfast::test {
namespace {

constexpr double kParam = 0.75;
constexpr double kGrads[] = {0.5, -0.3};
constexpr double kTolerance = 1e-14;

// A parameter after two steps, or more with the gradients in turn, states from zero.
template <class Rule>
double after_two_steps(uint8_t form, const std::vector<double>& hypers, int steps = 2) {
  GroupRow group{};
  std::copy(hypers.begin(), hypers.end(), group.hypers);
  group.schedule = -1;
  TensorSpec spec{1, DtypePair::kFloat64, form};
  spec.product = 1.0;
  Plan plan(kPlace<Rule>, {spec}, {group}, 8);
  for (GuardedBytes& state : plan.tensors[0].states) *state.as<double>() = 0.0;
  *plan.tensors[0].param.as<double>() = kParam;
  for (int t = 0; t < steps; ++t) {
    *plan.tensors[0].grad.as<double>() = kGrads[t % 2];
    cpu_step(plan);
  }
  return *plan.tensors[0].param.as<double>();
}

void test_lion() {
  // rate, beta1, beta2, decay, maximize. The gradients' signs differ, the momentum's does not.
  double p = kParam;
  double m = 0.0;
  for (const double g : kGrads) {
    const double u = 0.9 * m + 0.1 * g > 0.0 ? 1.0 : -1.0;
    p = p * (1.0 - 0.1 * 0.2) - 0.1 * u;
    m = 0.99 * m + 0.01 * g;
  }
  EXPECT_NEAR(after_two_steps<Lion>(Lion::kPlain, {0.1, 0.9, 0.99, 0.2, 0.0}), p, kTolerance);
  // Nothing moves where momentum and gradient are zero.
  GroupRow group = make_group(kPlace<Lion>, 0.1);
  group.hypers[Lion::kWeightDecay] = 0.0;
  Plan still(kPlace<Lion>, {{1}}, {group}, 8);
  *still.tensors[0].states[0].as<float>() = *still.tensors[0].grad.as<float>() = 0.0f;
  const float before = *still.tensors[0].param.as<float>();
  cpu_step(still);
  EXPECT_EQ(*still.tensors[0].param.as<float>(), before);
}

void test_nadam() {
  for (const bool decoupled : {false, true}) {
    const Context context("nadam, decoupled ", decoupled);
    double p = kParam;
    double m = 0.0;
    double v = 0.0;
    double product = 1.0;
    for (int t = 1; t <= 2; ++t) {
      const double g = kGrads[t - 1] + (decoupled ? 0.0 : 0.2 * p);
      if (decoupled) p *= 1.0 - 0.1 * 0.2;
      const double mu = 0.9 * (1.0 - 0.5 * std::pow(0.96, t * 0.4));
      const double next = 0.9 * (1.0 - 0.5 * std::pow(0.96, (t + 1) * 0.4));
      product *= mu;
      m = 0.9 * m + 0.1 * g;
      v = 0.99 * v + 0.01 * g * g;
      const double d = std::sqrt(v / (1.0 - std::pow(0.99, t))) + 1e-3;
      p -= 0.1 * (1.0 - mu) / (1.0 - product) * g / d;
      p -= 0.1 * next / (1.0 - product * next) * m / d;
    }
    // rate, beta1, beta2, eps, decay, decoupled, maximize, momentum decay
    const double found = after_two_steps<NAdam>(
        NAdam::kPlain, {0.1, 0.9, 0.99, 1e-3, 0.2, decoupled ? 1.0 : 0.0, 0.0, 0.4});
    EXPECT_NEAR(found, p, kTolerance);
  }
}

void test_radam() {
  constexpr int kSteps = 8;  // of which the last three are rectified
  for (const bool decoupled : {false, true}) {
    const Context context("radam, decoupled ", decoupled);
    double p = kParam;
    double m = 0.0;
    double v = 0.0;
    for (int t = 1; t <= kSteps; ++t) {
      const double g = kGrads[(t - 1) % 2] + (decoupled ? 0.0 : 0.2 * p);
      if (decoupled) p *= 1.0 - 0.1 * 0.2;
      m = 0.9 * m + 0.1 * g;
      v = 0.9 * v + 0.1 * g * g;
      const double power = std::pow(0.9, t);
      const double n = 19.0 - 2.0 * t * power / (1.0 - power);
      EXPECT_EQ(n > 5.0, t > 5);
      double step = m / (1.0 - power);  // both betas are 0.9
      if (n > 5.0) {
        step *= std::sqrt(1.0 - power) / (std::sqrt(v) + 1e-3);
        step *= std::sqrt((n - 4.0) * (n - 2.0) * 19.0 / (15.0 * 17.0 * n));
      }
      p -= 0.1 * step;
    }
    // rate, beta1, beta2, eps, decay, decoupled, maximize
    const double found = after_two_steps<RAdam>(
        RAdam::kPlain, {0.1, 0.9, 0.9, 1e-3, 0.2, decoupled ? 1.0 : 0.0, 0.0}, kSteps);
    EXPECT_NEAR(found, p, kTolerance);
  }
}

void test_adam() {
  for (const bool amsgrad : {false, true}) {
    for (const bool decoupled : {false, true}) {
      const Context context("adam, amsgrad ", amsgrad, ", decoupled ", decoupled);
      double p = kParam;
      double m = 0.0;
      double v = 0.0;
      double largest = 0.0;
      for (int t = 1; t <= 2; ++t) {
        const double g = -kGrads[t - 1] + (decoupled ? 0.0 : 0.2 * p);
        if (decoupled) p *= 1.0 - 0.1 * 0.2;
        m = 0.9 * m + 0.1 * g;
        v = 0.5 * v + 0.5 * g * g;  // so fast that the second one is not the largest
        largest = amsgrad && largest > v ? largest : v;
        const double d = std::sqrt(largest / (1.0 - std::pow(0.5, t))) + 1e-3;
        p -= 0.1 / (1.0 - std::pow(0.9, t)) * m / d;
      }
      // rate, beta1, beta2, eps, decay, decoupled, maximize, amsgrad
      const double found = after_two_steps<Adam>(
          amsgrad ? Adam::kWithAmsgrad : Adam::kPlain,
          {0.1, 0.9, 0.5, 1e-3, 0.2, decoupled ? 1.0 : 0.0, 1.0, amsgrad ? 1.0 : 0.0});
      EXPECT_NEAR(found, p, kTolerance);
    }
  }
}

void test_adamax() {
  double p = kParam;
  double m = 0.0;
  double u = 0.0;
  for (int t = 1; t <= 2; ++t) {
    const double g = kGrads[t - 1] + 0.2 * p;
    m = 0.9 * m + 0.1 * g;
    u = std::max(0.99 * u, std::abs(g) + 1e-3);  // at first the gradient, then what is left of it
    p -= 0.1 / (1.0 - std::pow(0.9, t)) * m / u;
  }
  // rate, beta1, beta2, eps, decay, maximize
  const double found = after_two_steps<Adamax>(Adamax::kPlain, {0.1, 0.9, 0.99, 1e-3, 0.2, 0.0});
  EXPECT_NEAR(found, p, kTolerance);
}

void test_rmsprop() {
  for (uint8_t form = 0; form < RmsProp::kNumForms; ++form) {
    const Context context("rmsprop, form ", form);
    const bool has_momentum = (form & RmsProp::kWithMomentum) != 0;
    const bool centered = (form & RmsProp::kWithMean) != 0;
    double p = kParam;
    double v = 0.0;
    double mean = 0.0;
    double buffer = 0.0;
    for (const double grad : kGrads) {
      const double g = grad + 0.2 * p;
      v = 0.9 * v + 0.1 * g * g;
      mean = 0.9 * mean + 0.1 * g;
      const double step = g / (std::sqrt(v - (centered ? mean * mean : 0.0)) + 1e-3);
      buffer = 0.8 * buffer + step;
      p -= 0.1 * (has_momentum ? buffer : step);
    }
    // rate, momentum, alpha, eps, decay, centered, maximize
    const double found = after_two_steps<RmsProp>(
        form, {0.1, has_momentum ? 0.8 : 0.0, 0.9, 1e-3, 0.2, centered ? 1.0 : 0.0, 0.0});
    EXPECT_NEAR(found, p, kTolerance);
  }
}

void test_adagrad() {
  double p = kParam;
  double sum = 0.0;
  for (int t = 1; t <= 2; ++t) {
    const double g = -kGrads[t - 1] + 0.2 * p;
    sum += g * g;
    p -= 0.1 / (1.0 + (t - 1) * 0.5) * g / (std::sqrt(sum) + 1e-3);
  }
  // rate, rate decay, weight decay, eps, maximize
  const double found = after_two_steps<Adagrad>(Adagrad::kPlain, {0.1, 0.5, 0.2, 1e-3, 1.0});
  EXPECT_NEAR(found, p, kTolerance);
}

void test_adadelta() {
  double p = kParam;
  double v = 0.0;
  double u = 0.0;
  for (const double grad : kGrads) {
    const double g = -grad + 0.2 * p;
    v = 0.9 * v + 0.1 * g * g;
    const double d = std::sqrt(u + 1e-3) / std::sqrt(v + 1e-3) * g;
    u = 0.9 * u + 0.1 * d * d;
    p -= 0.7 * d;
  }
  // rate, rho, eps, decay, maximize
  const double found = after_two_steps<Adadelta>(Adadelta::kPlain, {0.7, 0.9, 1e-3, 0.2, 1.0});
  EXPECT_NEAR(found, p, kTolerance);
}

// The sum of weights starts at 1, and no largest learning rate is kept.
template <class Rule>
void expect_schedule_free(const std::vector<double>& hypers, bool has_squares) {
  double y = kParam;
  double z = 0.0;
  double v = 0.0;
  double sum = 1.0;
  for (int t = 1; t <= 4; ++t) {
    const double g = kGrads[(t - 1) % 2];
    const double rate = 0.1 * std::min(1.0, t / 3.0);
    const double weight = std::pow(t, 0.5) * std::pow(rate, 1.5);
    sum += weight;
    v = 0.99 * v + 0.01 * g * g;
    const double d =
        (has_squares ? g / (std::sqrt(v / (1.0 - std::pow(0.99, t))) + 1e-3) : g) + 0.2 * y;
    const double x = (y - 0.1 * z) / 0.9;
    z -= rate * d;
    y = 0.1 * z + 0.9 * (x + weight / sum * (z - x));
  }
  EXPECT_NEAR(after_two_steps<Rule>(Rule::kPlain, hypers, 4), y, kTolerance);
}

void test_schedule_free() {
  // rate, betas or momentum, eps if it has one, decay, warm-up, r, weight_lr_power
  expect_schedule_free<AdamWScheduleFree>({0.1, 0.9, 0.99, 1e-3, 0.2, 3.0, 0.5, 1.5}, true);
  expect_schedule_free<SgdScheduleFree>({0.1, 0.9, 0.2, 3.0, 0.5, 1.5}, false);
}

// Two tensors in one group each, the second at twice the first's gradient, so that sums are over
// both.
void test_prodigy() {
  for (const int switches : {0, 1, 2, 3, 4, 5, 6, 7}) {
    const bool decoupled = switches & 1;
    const bool corrected = switches & 2;
    const bool safeguarded = switches & 4;
    const double beta1 = switches == 3 ? 0.0 : 0.9;
    const double beta3 = switches == 5 ? 0.7 : std::sqrt(0.99);
    const Context context("prodigy, switches ", switches);
    GroupRow group{};
    // rate, betas, beta3, eps, decay, decoupled, bias correction, safeguard, d0, d_coef, growth
    const double hypers[] = {0.9,
                             beta1,
                             0.99,
                             switches == 5 ? 0.7 : kNoValue,
                             1e-2,
                             0.2,
                             decoupled ? 1.0 : 0.0,
                             corrected ? 1.0 : 0.0,
                             safeguarded ? 1.0 : 0.0,
                             0.01,
                             1.3,
                             switches == 6 ? 1.001 : HUGE_VAL};
    std::copy(std::begin(hypers), std::end(hypers), group.hypers);
    group.schedule = -1;
    const uint8_t form = beta1 == 0.0 ? Prodigy::kWithoutMean : Prodigy::kPlain;
    TensorSpec spec{1, DtypePair::kFloat64, form};
    TensorSpec other = spec;
    other.group = 1;
    Options options;
    options.distance = {0.01, 0.01, 0.01, 0.0, 0.0, 0.0};
    Plan plan(kPlace<Prodigy>, {spec, other}, {group, group}, 8, options);
    double p[2] = {kParam, kParam};
    double m[2] = {};
    double v[2] = {};
    double s[2] = {};
    double d = 0.01;
    double largest = 0.01;
    double numerator = 0.0;
    for (Tensor& tensor : plan.tensors) {
      for (GuardedBytes& state : tensor.states) *state.as<double>() = 0.0;
      *tensor.states.back().as<double>() = *tensor.param.as<double>() = kParam;
    }
    double first = 0.0;
    for (int t = 1; t <= 6; ++t) {
      double rate = 0.9 * d;
      if (corrected) rate *= std::sqrt(1.0 - std::pow(0.99, t)) / (1.0 - std::pow(beta1, t));
      numerator *= beta3;
      double sum = 0.0;
      double g[2];
      for (int i = 0; i < 2; ++i) {
        g[i] = (0.5 + 0.1 * (t % 2)) * (i + 1.0);
        *plan.tensors[i].grad.as<double>() = g[i];
        if (!decoupled) g[i] += 0.2 * p[i];
        numerator += d / 0.01 * rate * g[i] * (kParam - p[i]);
        s[i] = beta3 * s[i] + d / 0.01 * (safeguarded ? d : rate) * g[i];
        sum += std::fabs(s[i]);
        m[i] = beta1 * m[i] + d * (1.0 - beta1) * g[i];
        v[i] = 0.99 * v[i] + d * d * 0.01 * g[i] * g[i];
      }
      const double measured = 1.3 * numerator / sum;
      if (d == 0.01) d = std::max(d, measured);
      largest = std::max(largest, measured);
      d = std::min(largest, d * hypers[Prodigy::kGrowthRate]);
      if (t == 1) first = d;
      for (int i = 0; i < 2; ++i) {
        if (decoupled) p[i] -= 0.2 * rate * p[i];
        p[i] -= rate * (beta1 == 0.0 ? d * g[i] : m[i]) / (std::sqrt(v[i]) + d * 1e-2);
      }
      cpu_step(plan);
      const Distance& found = plan.clock.as<Clock>()->distance;
      EXPECT_NEAR(found.estimate, d, kTolerance);
      EXPECT_EQ(found.used, found.estimate);
      EXPECT_EQ(found.count, static_cast<double>(t));
      for (int i = 0; i < 2; ++i) {
        EXPECT_NEAR(*plan.tensors[i].param.as<double>(), p[i], kTolerance);
      }
    }
    EXPECT(d > first);
  }
}

void test_dadapt_adam() {
  for (const int switches : {0, 1, 2, 3}) {
    const bool decoupled = switches & 1;
    const bool corrected = switches & 2;
    const double growth = switches == 3 ? 1.01 : HUGE_VAL;
    const Context context("dadapt_adam, switches ", switches);
    std::vector<GroupRow> groups(2);
    for (int i = 0; i < 2; ++i) {
      // rate, betas, eps, decay, decoupled, bias correction, layer scale, growth
      const double hypers[] = {
          0.9, 0.8, 0.9, 1e-2, 0.2, decoupled ? 1.0 : 0.0, corrected ? 1.0 : 0.0, 1.0 + i, growth};
      std::copy(std::begin(hypers), std::end(hypers), groups[i].hypers);
      groups[i].schedule = -1;
    }
    TensorSpec spec{1, DtypePair::kFloat64};
    TensorSpec other = spec;
    other.group = 1;
    Options options;
    options.distance = {0.01, 0.01, 0.01, 0.0, 0.0, 0.0};
    Plan plan(kPlace<DAdaptAdam>, {spec, other}, groups, 8, options);
    double p[2] = {kParam, kParam};
    double m[2] = {};
    double v[2] = {};
    double s[2] = {};
    double d = 0.01;
    double weighted = 0.0;
    for (Tensor& tensor : plan.tensors) {
      for (GuardedBytes& state : tensor.states) *state.as<double>() = 0.0;
      *tensor.param.as<double>() = kParam;
    }
    const double w = std::sqrt(0.9);
    for (int t = 1; t <= 20; ++t) {
      double rate = 0.9 * d;
      if (corrected) rate *= std::sqrt(1.0 - std::pow(0.9, t)) / (1.0 - std::pow(0.8, t));
      double numerator = 0.0;
      double sum = 0.0;
      for (int i = 0; i < 2; ++i) {
        const double scale = 1.0 + i;
        double g = (0.5 + 0.1 * (t % 2)) * (i + 1.0);
        *plan.tensors[i].grad.as<double>() = g;
        if (!decoupled) g += 0.2 * p[i];
        numerator += scale * rate * g * s[i] / (std::sqrt(v[i]) + 1e-2);
        m[i] = 0.8 * m[i] + 0.2 * scale * rate * g;
        v[i] = 0.9 * v[i] + 0.1 * g * g;
        s[i] = w * s[i] + (1.0 - w) * rate * g;
        sum += scale * std::fabs(s[i]);
      }
      weighted = w * weighted + (1.0 - w) * numerator;
      d = std::max(d, std::min(weighted / ((1.0 - w) * sum), d * growth));
      for (int i = 0; i < 2; ++i) {
        if (decoupled) p[i] -= 0.2 * rate * p[i];
        p[i] -= m[i] / (std::sqrt(v[i]) + 1e-2);
      }
      cpu_step(plan);
      EXPECT_NEAR(plan.clock.as<Clock>()->distance.estimate, d, kTolerance);
      for (int i = 0; i < 2; ++i) {
        EXPECT_NEAR(*plan.tensors[i].param.as<double>(), p[i], 4 * kTolerance);
      }
    }
    EXPECT(d > 0.011);
  }
}

void test_real_power() {
  for (const double base : {1e-300, 1e-5, 0.3, 1.0, 7.0, 1e6}) {
    for (const double exponent : {-1.5, 0.0, 0.5, 1.0, 2.0, 2.25}) {
      const double expected = std::pow(base, exponent);
      if (expected > 0.0 && expected < 1e300) {
        EXPECT_NEAR(real_power(base, exponent), expected, 3e-13 * expected);
      }
    }
  }
  EXPECT_EQ(real_power(0.0, 0.5), 0.0);
  EXPECT_EQ(real_power(0.0, 0.0), 1.0);
}

// A sum that starts at a count is that of a constant learning rate.
void test_sums() {
  const double hypers[] = {0.3, 0.9, 0.01, 0.0, 0.0, 2.0};  // rate, beta, decay, warm-up, r, power
  double sum = 0.0;
  for (int t = 0; t < 40; ++t) {
    EXPECT_NEAR(SgdScheduleFree::product_after(hypers, t), sum, kTolerance);
    sum += 0.09;
  }
}

void test_sgd() {
  for (const bool nesterov : {false, true}) {
    const Context context("sgd, nesterov ", nesterov);
    double p = kParam;
    double buffer = 0.0;
    for (int t = 1; t <= 2; ++t) {
      const double g = kGrads[t - 1] + 0.2 * p;
      buffer = t == 1 ? g : 0.9 * buffer + 0.75 * g;
      p -= 0.1 * (nesterov ? g + 0.9 * buffer : buffer);
    }
    // rate, momentum, dampening, decay, nesterov, maximize
    const double found =
        after_two_steps<Sgd>(Sgd::kWithMomentum, {0.1, 0.9, 0.25, 0.2, nesterov ? 1.0 : 0.0, 0.0});
    EXPECT_NEAR(found, p, kTolerance);
  }
}

// Without the products in between: the first pass leaves directions, the second one moves along
// what it finds there. AdamW's tensors are updated in the second one alone.
void test_muon() {
  for (const bool nesterov : {false, true}) {
    const Context context("muon, nesterov ", nesterov);
    GroupRow matrices{};
    // rate, momentum, decay, kind, nesterov
    const double hypers[] = {0.1, 0.9, 0.0, 0.0, 0.2, 0.0, 0.0, nesterov ? 1.0 : 0.0};
    std::copy(std::begin(hypers), std::end(hypers), matrices.hypers);
    matrices.schedule = -1;
    GroupRow adamw = matrices;
    const double others[] = {0.1, 0.9, 0.99, 1e-3, 0.2, 1.0, 0.0, 0.0};
    std::copy(std::begin(others), std::end(others), adamw.hypers);
    TensorSpec spec{1, DtypePair::kFloat64, Muon::kWithDirection};
    TensorSpec other{1, DtypePair::kFloat64, Muon::kAdamWPlain};
    other.group = 1;
    Plan plan(kPlace<Muon>, {spec, other}, {matrices, adamw}, 8);
    for (Tensor& tensor : plan.tensors) {
      for (GuardedBytes& state : tensor.states) *state.as<double>() = 0.0;
      *tensor.param.as<double>() = kParam;
    }
    double p = kParam;
    double b = 0.0;
    for (const double g : kGrads) {
      for (Tensor& tensor : plan.tensors) *tensor.grad.as<double>() = g;
      b = 0.9 * b + 0.1 * g;
      const double d = nesterov ? 0.9 * b + 0.1 * g : b;
      double direction = 7.0;
      StepTables t = plan.tables();
      std::vector<TensorRow> rows(t.tensors, t.tensors + t.num_tensors);
      rows[0].direction = &direction;
      t.tensors = rows.data();
      t.phase = Phase::kDirections;
      cpu_step(plan.rule, t);
      EXPECT_NEAR(direction, d, kTolerance);
      EXPECT_NEAR(*plan.tensors[0].states[0].as<double>(), b, kTolerance);
      EXPECT_EQ(*plan.tensors[0].param.as<double>(), p);
      EXPECT_EQ(*plan.tensors[0].count.as<float>(), *plan.tensors[1].count.as<float>());
      direction = 3.0 * direction;
      t.phase = Phase::kMoves;
      cpu_step(plan.rule, t);
      p = p * (1.0 - 0.1 * 0.2) - 0.1 * 3.0 * d;
      EXPECT_NEAR(*plan.tensors[0].param.as<double>(), p, kTolerance);
      p = *plan.tensors[0].param.as<double>();
    }
    const double adam =
        after_two_steps<Adam>(Adam::kPlain, {0.1, 0.9, 0.99, 1e-3, 0.2, 1.0, 0.0, 0.0});
    EXPECT_EQ(*plan.tensors[1].param.as<double>(), adam);
  }
}

// A product that starts at a count is what the steps up to it would have made.
void test_products() {
  const double adam[kMaxHypers] = {0.1, 0.9, 0.99, 1e-3, 0.2, 0.0, 0.0, 0.0};
  const double nadam[kMaxHypers] = {0.1, 0.9, 0.99, 1e-3, 0.2, 0.0, 0.0, 0.4};
  double product = 1.0;
  double power = 1.0;
  for (int t = 0; t < 40; ++t) {
    const Context context("product after ", t);
    EXPECT_NEAR(Adam::product_after(adam, t), power, kTolerance * power);
    EXPECT_EQ(Adamax::product_after(adam, t), Adam::product_after(adam, t));
    EXPECT_NEAR(NAdam::product_after(nadam, t), product, kTolerance * product);
    EXPECT_EQ(Sgd::product_after(adam, t), 1.0);
    power *= 0.9;
    product *= 0.9 * (1.0 - 0.5 * std::pow(0.96, (t + 1) * 0.4));
  }
}

}  // namespace
}  // namespace lrfast::test

int main() {
  using namespace lrfast::test;
  test_sgd();
  test_adam();
  test_adamax();
  test_nadam();
  test_radam();
  test_products();
  test_rmsprop();
  test_adagrad();
  test_adadelta();
  test_lion();
  test_schedule_free();
  test_prodigy();
  test_dadapt_adam();
  test_muon();
  test_real_power();
  test_sums();
  return report("test_rules");
}
