// StepTables over host memory, built from a list of tensors: what bindings/engine.cpp does with
// torch's memory. The same specs give the same bytes, so that two plans can be stepped in two ways
// and compared.
#pragma once

#include <cmath>
#include <deque>
#include <string>
#include <type_traits>
#include <vector>

#include "core/step.h"

#include "check.h"
#include "guarded.h"
#include "rule_info.h"

namespace lrfast::test {

constexpr DtypePair kAllDtypePairs[] = {DtypePair::kFloat32,
                                        DtypePair::kFloat64,
                                        DtypePair::kBFloat16,
                                        DtypePair::kFloat16,
                                        DtypePair::kBFloat16StatesFloat32,
                                        DtypePair::kFloat16StatesFloat32,
                                        DtypePair::kFloat32StatesBFloat16,
                                        DtypePair::kStochasticBFloat16,
                                        DtypePair::kStochasticBFloat16StatesFloat32};
constexpr int kNumDtypePairs = sizeof(kAllDtypePairs) / sizeof(DtypePair);

struct TensorSpec {
  int64_t numel = 0;
  DtypePair dtypes = DtypePair::kFloat32;
  uint8_t form = 0;
  int32_t group = 0;
  int param_offset = 0;  // elements behind a 64-byte boundary
  int grad_offset = 0;
  int state_offset = 0;
  int average_offset = 0;
  bool has_grad = true;
  bool has_product = false;  // a rule that always keeps one has it anyway
  bool has_average = false;
  bool counted = true;  // in the norms
  bool coded = false;   // states in 8 bits, if the rule and the dtypes allow it
  uint8_t master = 0;   // bytes of master bits, likewise
  float count = 0;
  double product = 0.5;
};

struct ScheduleSpec {
  std::vector<std::vector<Segment>> rates;
  std::vector<Segment> momentum;  // empty: not cycled
  std::vector<Segment> weight_decay = {};
};

// What a step does besides the rule, and the values that the gradients begin with.
struct Options {
  float scale = 0;  // 0: none
  bool has_found_inf = false;
  float found_inf = 0;
  double max_norm = 0;
  bool skip_nonfinite = false;
  bool zero = false;
  bool norms = false;     // also where nothing above or below needs them
  int64_t telemetry = 0;  // capacity of the ring of records
  double average_weight = 0.125;
  int64_t average_start = 0;
  bool average_warms_up = false;
  uint64_t seed = 42;
  int64_t steps = 6;  // before the plan's first; its schedules begin at 0 all the same
  UpdateOptions update{};
  // Of a rule that measures one. At a growth rate of 1 the estimate does not follow its terms,
  // whose last digits depend on the order of summands.
  Distance distance{0.5, 0.5, 1e9, 0.25, 2.0, 3.0};
  // Quarters of small whole numbers: sums of their squares are exact in any order, so that norms,
  // and what clipping makes of them, have the same bits everywhere.
  bool exact_grads = false;
};

// Rounds a value to an element, stochastic ones to the nearest.
template <class Element>
void put(double value, Element& out) {
  if constexpr (std::is_same_v<Element, StochasticBFloat16>) {
    from_compute(static_cast<float>(value), out, 0x8000u);
  } else {
    from_compute(static_cast<compute_t<Element>>(value), out);
  }
}

struct Tensor {
  TensorSpec spec;
  GuardedBytes param;
  GuardedBytes grad;
  GuardedBytes average;
  std::deque<GuardedBytes> states;
  std::deque<GuardedBytes> scales;  // of states in 8 bits; otherwise empty
  GuardedBytes master_bits{0};      // empty: none
  GuardedBytes count{sizeof(float)};
  GuardedBytes product{sizeof(double)};
};

class Plan {
 public:
  Plan(int rule, const std::vector<TensorSpec>& specs, const std::vector<GroupRow>& groups,
       int64_t chunk_size, const Options& options = {},
       const std::vector<ScheduleSpec>& schedules = {});

  Plan(Plan&&) = default;

  // For one step: the sums of the step before are gone. Valid until the plan is moved or changed.
  StepTables tables();

  bool has_norms() const;
  bool is_intact() const;

  // Where parameters, gradients, averages, states, counts, clock or rates differ in at least one
  // bit, or "" if nowhere. The terms of a distance are sums.
  std::string difference(const Plan& other) const;
  // The same of norms and records.
  std::string sums_difference(const Plan& other) const;

  // Puts each group's chunks in an order of its own.
  void shuffle_chunks(uint64_t seed);

  int rule;
  std::deque<Tensor> tensors;
  std::vector<GroupRow> groups;
  std::vector<ChunkRow> chunks;
  std::vector<int64_t> group_chunks;
  std::vector<int64_t> tensor_chunks;
  Options options;
  GuardedBytes clock{sizeof(Clock)};
  GuardedBytes rates;
  GuardedBytes values;   // [groups]
  GuardedBytes squares;  // [groups]
  GuardedBytes norms;    // [groups + 2]
  GuardedBytes records;  // [telemetry][groups][kRecordFields]
  bool has_stop = false;
  double stop = 0.0;
  bool has_rate_scale = false;
  double rate_scale = 1.0;

 private:
  void add_schedule(const ScheduleSpec& spec);
  void add_track(Channel channel, const std::vector<Segment>& segments);
  void add_tensor(const TensorSpec& given);
  void add_chunks();
  template <class Element>
  GuardedBytes make_array(int64_t numel, int offset, double low, double high);

  int64_t chunk_size_;
  uint64_t filled_ = 0;
  GuardedBytes chunk_squares_;
  GuardedBytes chunk_changes_;
  GuardedBytes chunk_terms_;
  GuardedBytes terms_{2 * sizeof(double)};
  GuardedBytes tensor_terms_;
  std::vector<Segment> segments_;
  std::vector<Table> tables_;
  std::vector<Track> tracks_;
  std::vector<Schedule> schedules_;
  std::vector<TensorRow> rows_;
  std::vector<void*> grads_;
  SwappableInputs inputs_{};
};

// Whether no step has left the schedules' values behind, so that a kernel of its own has to.
inline bool lacks_values(const StepTables& t) {
  return t.num_groups > 0 && std::isnan(t.values[0].rate);
}

// The CPU driver without threads.
void cpu_step(int rule, const StepTables& tables);
void cpu_step(Plan& plan);

// Schedules 0 (which cycles the momentum) and 1.
std::vector<ScheduleSpec> two_schedules();

#define EXPECT_SAME(plan, other) EXPECT_EQ((plan).difference(other), std::string())
#define EXPECT_SAME_SUMS(plan, other) EXPECT_EQ((plan).sums_difference(other), std::string())

}  // namespace lrfast::test
