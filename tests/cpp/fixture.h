// StepTables over host memory, built from a list of tensors: what bindings/engine.cpp does with
// torch's memory. The same specs give the same bytes, so that two plans can be stepped in two ways
// and compared.
#pragma once

#include <array>
#include <cmath>
#include <deque>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "core/kernel.h"
#include "core/rules.h"
#include "core/step.h"

#include "check.h"
#include "guarded.h"

namespace lrfast::test {

constexpr Kind kAllKinds[] = {Kind::kFloat32,
                              Kind::kFloat64,
                              Kind::kBFloat16,
                              Kind::kFloat16,
                              Kind::kBFloat16StatesFloat32,
                              Kind::kFloat16StatesFloat32};

struct TensorSpec {
  int64_t numel = 0;
  Kind kind = Kind::kFloat32;
  uint8_t form = 0;
  int32_t group = 0;
  int param_offset = 0;  // elements behind a 64-byte boundary
  int grad_offset = 0;
  int state_offset = 0;
  bool has_grad = true;
  bool has_product = false;
  float count = 0;

  TensorSpec with_offset(int elements) const {
    TensorSpec moved = *this;
    moved.param_offset = moved.grad_offset = moved.state_offset = elements;
    return moved;
  }
};

struct ScheduleSpec {
  std::vector<std::vector<Segment>> rates;
  std::vector<Segment> momentum;  // empty: not cycled
};

// One uniform value in [0, 1) per place (splitmix64, Steele et al. 2014).
inline double noise(uint64_t place) {
  uint64_t z = (place + 1) * 0x9e3779b97f4a7c15u;
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
  return static_cast<double>((z ^ (z >> 31)) >> 11) * 0x1p-53;
}

// A group of that rule's with usual values; rules are told apart by torch's names alone, so that a
// new one is tested from the day it is registered.
template <class Rule>
LRFAST_NOINLINE GroupRow make_group(double rate, double momentum = 0.9) {
  GroupRow group{};
  for (int i = 0; i < Rule::kNumHypers; ++i) {
    const std::string_view key = Rule::kHypers[i].key;
    if (key == "lr") group.hypers[i] = rate;
    if (key == "momentum" || (key == "betas" && Rule::kHypers[i].index == 0)) {
      group.hypers[i] = momentum;
    }
    if (key == "betas" && Rule::kHypers[i].index == 1) group.hypers[i] = 0.99;
    if (key == "eps") group.hypers[i] = 1e-8;
    if (key == "weight_decay") group.hypers[i] = 0.01;
    if (key == "dampening") group.hypers[i] = 0.25;
  }
  group.schedule = -1;
  return group;
}

struct Tensor {
  TensorSpec spec;
  GuardedBytes param;
  GuardedBytes grad;
  std::deque<GuardedBytes> states;
  GuardedBytes count{sizeof(float)};
  GuardedBytes product{sizeof(double)};
};

class Plan {
 public:
  template <class Rule>
  LRFAST_NOINLINE static Plan make(const std::vector<TensorSpec>& specs,
                                   const std::vector<GroupRow>& groups, int64_t chunk_size,
                                   const std::vector<ScheduleSpec>& schedules = {}) {
    Plan plan(groups, chunk_size, schedules);
    for (const TensorSpec& spec : specs) {
      plan.add_tensor(spec, Rule::kStates[spec.form].count);
    }
    return plan;
  }

  LRFAST_NOINLINE Plan(Plan&&) = default;
  LRFAST_NOINLINE ~Plan() {}

  // Valid until the plan is moved or changed.
  LRFAST_NOINLINE StepTables tables() {
    StepTables t{};
    rows_.clear();
    grads_.clear();
    for (Tensor& tensor : tensors) {
      rows_.push_back(make_row(tensor));
      grads_.push_back(tensor.spec.has_grad ? tensor.grad.data() : nullptr);
    }
    t.tensors = rows_.data();
    t.grads = grads_.data();
    t.groups = groups.data();
    t.chunks = chunks.data();
    t.schedules = {segments_.data(), tables_.data(), schedules_.data()};
    t.clock = clock.as<Clock>();
    t.rates = rates.as<double>();
    t.stop = has_stop ? &stop : nullptr;
    t.num_chunks = static_cast<int64_t>(chunks.size());
    t.chunk_size = chunk_size_;
    t.num_tensors = static_cast<int32_t>(tensors.size());
    t.num_groups = static_cast<int32_t>(groups.size());
    return t;
  }

  LRFAST_NOINLINE bool is_intact() const {
    bool intact = clock.is_intact() && rates.is_intact();
    for (const Tensor& t : tensors) {
      intact = intact && t.param.is_intact() && t.grad.is_intact() && t.count.is_intact() &&
               t.product.is_intact();
      for (const GuardedBytes& state : t.states) intact = intact && state.is_intact();
    }
    return intact;
  }

  // Where the two differ in at least one bit, or "" if nowhere.
  LRFAST_NOINLINE std::string difference(const Plan& other) const {
    for (size_t i = 0; i < tensors.size(); ++i) {
      const Tensor& a = tensors[i];
      const Tensor& b = other.tensors[i];
      std::string found =
          difference("param", a.param, b.param) + difference("grad", a.grad, b.grad) +
          difference("count", a.count, b.count) + difference("product", a.product, b.product);
      for (size_t k = 0; k < a.states.size(); ++k) {
        found += difference(text("state ", k).c_str(), a.states[k], b.states[k]);
      }
      if (!found.empty()) {
        return text("tensor ", i, " (numel ", a.spec.numel, ", kind ", a.spec.kind, ", form ",
                    a.spec.form, "):", found);
      }
    }
    return difference("clock", clock, other.clock) + difference("rates", rates, other.rates);
  }

  std::deque<Tensor> tensors;
  std::vector<GroupRow> groups;
  std::vector<ChunkRow> chunks;
  GuardedBytes clock{sizeof(Clock)};
  GuardedBytes rates;
  bool has_stop = false;
  double stop = 0.0;

 private:
  Plan(const std::vector<GroupRow>& given, int64_t chunk_size,
       const std::vector<ScheduleSpec>& schedules)
      : groups(given), rates(given.size() * sizeof(double)), chunk_size_(chunk_size) {
    for (const ScheduleSpec& spec : schedules) {
      Schedule row{{static_cast<int32_t>(tables_.size()), static_cast<int32_t>(spec.rates.size())},
                   -1};
      for (const auto& table : spec.rates) add_table(table);
      if (!spec.momentum.empty()) {
        row.momentum = static_cast<int32_t>(tables_.size());
        add_table(spec.momentum);
      }
      schedules_.push_back(row);
    }
  }

  void add_table(const std::vector<Segment>& segments) {
    tables_.push_back(
        {static_cast<int32_t>(segments_.size()), static_cast<int32_t>(segments.size())});
    segments_.insert(segments_.end(), segments.begin(), segments.end());
  }

  LRFAST_NOINLINE void add_tensor(const TensorSpec& spec, int num_states) {
    with_types(spec.kind, [&]<class Param, class State>() {
      const auto array = [&]<class Element>(int offset, double low, double high) {
        GuardedBytes bytes(spec.numel * sizeof(Element), offset * sizeof(Element));
        fill<Element>(bytes, low, high);
        return bytes;
      };
      Tensor tensor{spec,
                    array.template operator()<Param>(spec.param_offset, -2.0, 2.0),
                    array.template operator()<Param>(spec.grad_offset, -1.0, 1.0),
                    {}};
      for (int k = 0; k < num_states; ++k) {  // not negative: some stand under a square root
        tensor.states.push_back(array.template operator()<State>(spec.state_offset, 0.0, 1.0));
      }
      *tensor.count.template as<float>() = spec.count;
      *tensor.product.template as<double>() = spec.has_product ? 0.5 : 0.0;
      tensors.push_back(std::move(tensor));
    });
    const int32_t index = static_cast<int32_t>(tensors.size()) - 1;
    for (int64_t c = 0; c * chunk_size_ < spec.numel; ++c) {
      chunks.push_back({index, static_cast<int32_t>(c)});
    }
  }

  template <class Element>
  LRFAST_NOINLINE void fill(GuardedBytes& bytes, double low, double high) {
    for (size_t i = 0; i < bytes.size() / sizeof(Element); ++i) {
      const double value = low + (high - low) * noise(filled_++);
      from_compute(static_cast<compute_t<Element>>(value), bytes.as<Element>()[i]);
    }
  }

  LRFAST_NOINLINE static TensorRow make_row(Tensor& tensor) {
    TensorRow row{};
    row.param = tensor.param.data();
    for (size_t k = 0; k < tensor.states.size(); ++k) row.states[k] = tensor.states[k].data();
    row.count = tensor.count.as<float>();
    if (tensor.spec.has_product) row.momentum_product = tensor.product.as<double>();
    row.numel = tensor.spec.numel;
    row.group = tensor.spec.group;
    row.kind = tensor.spec.kind;
    row.form = tensor.spec.form;
    return row;
  }

  LRFAST_NOINLINE static std::string difference(const char* name, const GuardedBytes& a,
                                                const GuardedBytes& b) {
    if (a.size() != b.size()) return text(" ", name, " sizes");
    for (size_t i = 0; i < a.size(); ++i) {
      if (a.data()[i] != b.data()[i]) return text(" ", name, " byte ", i, " of ", a.size());
    }
    return "";
  }

  int64_t chunk_size_;
  uint64_t filled_ = 0;
  std::vector<Segment> segments_;
  std::vector<Table> tables_;
  std::vector<Schedule> schedules_;
  std::vector<TensorRow> rows_;
  std::vector<const void*> grads_;
};

#define EXPECT_SAME(plan, other) EXPECT_EQ((plan).difference(other), std::string())

}  // namespace lrfast::test
