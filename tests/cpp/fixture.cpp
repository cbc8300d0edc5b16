#include "fixture.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <random>
#include <utility>

#include "cpu/codes.h"
#include "cpu/step.h"

namespace lrfast::test {
namespace {

// One uniform value in [0, 1) per place.
double uniform(uint64_t place) { return static_cast<double>(mix(place) >> 11) * 0x1p-53; }

std::string byte_difference(const std::string& name, const GuardedBytes& a, const GuardedBytes& b) {
  if (a.size() != b.size()) return text(" ", name, " sizes");
  if (std::memcmp(a.data(), b.data(), a.size()) == 0) return "";
  for (size_t i = 0; i < a.size(); ++i) {
    if (a.data()[i] != b.data()[i]) return text(" ", name, " byte ", i, " of ", a.size());
  }
  return "";
}

GuardedBytes without_sums(const GuardedBytes& clock) {
  GuardedBytes copy(sizeof(Clock));
  std::memcpy(copy.data(), clock.data(), sizeof(Clock));
  Distance& distance = copy.as<Clock>()->distance;
  distance.numerator = distance.denominator = 0.0;
  return copy;
}

void fill(GuardedBytes& bytes, double value) {
  std::fill_n(bytes.as<double>(), bytes.size() / sizeof(double), value);
}

TensorRow make_row(Tensor& tensor, uint32_t number) {
  TensorRow row{};
  row.param = tensor.param.data();
  for (size_t k = 0; k < tensor.states.size(); ++k) row.states[k] = tensor.states[k].data();
  for (size_t k = 0; k < tensor.scales.size(); ++k) row.scales[k] = tensor.scales[k].data();
  row.coded = !tensor.scales.empty();
  row.master = tensor.spec.master;
  if (row.master != 0) row.master_bits = tensor.master_bits.data();
  if (tensor.spec.has_average) row.average = tensor.average.data();
  row.count = tensor.count.as<float>();
  if (tensor.spec.has_product) row.product = tensor.product.as<double>();
  row.numel = tensor.spec.numel;
  row.group = tensor.spec.group;
  row.number = number;
  row.dtypes = tensor.spec.dtypes;
  row.form = tensor.spec.form;
  row.counted = tensor.spec.counted;
  return row;
}

// Makes codes of a tensor's last state.
void encode(StateKind kind, Tensor& tensor) {
  const TensorSpec& spec = tensor.spec;
  GuardedBytes codes(spec.numel, spec.state_offset);
  tensor.scales.emplace_back(count_scales(spec.numel), spec.state_offset);
  cpu::encode_state(kind, tensor.states.back().as<float>(), spec.numel, codes.data(),
                    tensor.scales.back().data());
  tensor.states.back() = std::move(codes);
}

size_t records_size(const Options& options, size_t groups) {
  return options.telemetry * groups * kRecordFields * sizeof(double);
}

}  // namespace

Plan::Plan(int rule, const std::vector<TensorSpec>& specs, const std::vector<GroupRow>& groups,
           int64_t chunk_size, const Options& options, const std::vector<ScheduleSpec>& schedules)
    : rule(rule),
      groups(groups),
      options(options),
      rates(groups.size() * sizeof(double)),
      values(groups.size() * sizeof(ScheduleValues)),
      squares(groups.size() * sizeof(double)),
      norms((groups.size() + 2) * sizeof(double)),
      records(records_size(options, groups.size())),
      chunk_size_(chunk_size),
      chunk_squares_(0),
      chunk_changes_(0),
      chunk_terms_(0),
      tensor_terms_(2 * specs.size() * sizeof(double)) {
  for (const ScheduleSpec& spec : schedules) add_schedule(spec);
  for (const TensorSpec& spec : specs) add_tensor(spec);
  add_chunks();
  chunk_squares_ = GuardedBytes(chunks.size() * sizeof(double));
  chunk_changes_ = GuardedBytes(2 * chunks.size() * sizeof(double));
  chunk_terms_ = GuardedBytes(2 * chunks.size() * sizeof(double));
  clock.as<Clock>()->steps = options.steps;
  clock.as<Clock>()->distance = options.distance;
  fill(values, NAN);    // until a step has left some
  fill(records, -7.0);  // no sum is negative: an entry that no step has written shows
}

void Plan::add_schedule(const ScheduleSpec& spec) {
  const int32_t first = static_cast<int32_t>(tracks_.size());
  for (const auto& segments : spec.rates) add_track(Channel::kRate, segments);
  if (!spec.momentum.empty()) add_track(Channel::kMomentum, spec.momentum);
  if (!spec.weight_decay.empty()) add_track(Channel::kWeightDecay, spec.weight_decay);
  schedules_.push_back(
      {first, static_cast<int32_t>(tracks_.size()) - first, !spec.momentum.empty()});
}

void Plan::add_track(Channel channel, const std::vector<Segment>& segments) {
  tracks_.push_back({static_cast<int32_t>(tables_.size()), 1, channel});
  tables_.push_back({0, 1, 0, 0.0, 0.0, 0.0, static_cast<int32_t>(segments_.size()),
                     static_cast<int32_t>(segments.size())});
  segments_.insert(segments_.end(), segments.begin(), segments.end());
}

template <class Element>
GuardedBytes Plan::make_array(int64_t numel, int offset, double low, double high) {
  GuardedBytes bytes(numel * sizeof(Element), offset * sizeof(Element));
  for (int64_t i = 0; i < numel; ++i) {
    put(low + (high - low) * uniform(filled_++), bytes.as<Element>()[i]);
  }
  return bytes;
}

void Plan::add_tensor(const TensorSpec& given) {
  const RuleInfo info = rule_info(rule);
  TensorSpec spec = given;
  spec.has_product = spec.has_product || info.always_product;
  const StateKind* kinds = info.kinds[spec.form];
  // A chunk begins with a block of codes.
  spec.coded = spec.coded && chunk_size_ % kCodeBlock == 0 && info.num_states[spec.form] > 0 &&
               kinds[0] != StateKind::kWide;
  with_types(spec.dtypes, [&]<class Param, class State>() {
    spec.coded = spec.coded && std::is_same_v<State, float>;
    constexpr bool kIsWide = std::is_same_v<Param, Float16> && std::is_same_v<State, float>;
    const bool may_lack = std::is_same_v<Param, BFloat16> || kIsWide;
    if (!may_lack || !info.keeps_masters) spec.master = 0;
    const auto& s = spec;
    Tensor tensor{
        s,
        make_array<Param>(s.numel, s.param_offset, -2.0, 2.0),
        make_array<Param>(s.numel, s.grad_offset, -1.0, 1.0),
        make_array<compute_t<Param>>(s.has_average ? s.numel : 0, s.average_offset, -2.0, 2.0),
        {},
        {},
        GuardedBytes(s.numel * s.master, s.master * s.state_offset)};
    for (int64_t i = 0; i < s.numel * s.master; ++i) {
      tensor.master_bits.data()[i] = static_cast<uint8_t>(uniform(filled_++) * 256.0);
    }
    if (options.exact_grads) {
      for (int64_t i = 0; i < s.numel; ++i) {
        put(std::floor(uniform(filled_++) * 17.0 - 8.0) / 4.0, tensor.grad.as<Param>()[i]);
      }
    }
    // Some stand under a square root, RMSprop's first one less the square of another.
    for (int k = 0; k < info.num_states[s.form]; ++k) {
      const double low = k == 0 ? 0.25 : 0.0;
      tensor.states.push_back(make_array<State>(s.numel, s.state_offset, low, 0.45 + 2 * low));
      if constexpr (std::is_same_v<State, float>) {
        if (s.coded) encode(kinds[k], tensor);
      }
    }
    tensors.push_back(std::move(tensor));
  });
  *tensors.back().count.as<float>() = spec.count;
  *tensors.back().product.as<double>() = spec.has_product ? spec.product : 0.0;
}

// Group after group: the drivers find a group's sums by where its chunks begin.
void Plan::add_chunks() {
  tensor_chunks.assign(1, 0);
  for (const Tensor& tensor : tensors) {
    tensor_chunks.push_back(tensor_chunks.back() +
                            (tensor.spec.numel + chunk_size_ - 1) / chunk_size_);
  }
  group_chunks.assign(1, 0);
  for (size_t g = 0; g < groups.size(); ++g) {
    for (size_t i = 0; i < tensors.size(); ++i) {
      const TensorSpec& spec = tensors[i].spec;
      if (spec.group != static_cast<int32_t>(g)) continue;
      for (int64_t c = 0; c * chunk_size_ < spec.numel; ++c) {
        chunks.push_back({static_cast<int32_t>(i), static_cast<int32_t>(c)});
      }
    }
    group_chunks.push_back(static_cast<int64_t>(chunks.size()));
  }
}

void Plan::shuffle_chunks(uint64_t seed) {
  std::mt19937_64 random(seed);
  for (size_t g = 0; g < groups.size(); ++g) {
    std::shuffle(chunks.begin() + group_chunks[g], chunks.begin() + group_chunks[g + 1], random);
  }
}

bool Plan::has_norms() const {
  return options.norms || options.max_norm > 0.0 || options.skip_nonfinite ||
         options.telemetry > 0 || std::any_of(groups.begin(), groups.end(), [](auto& group) {
           return group.max_norm > 0.0;
         });
}

StepTables Plan::tables() {
  StepTables t{};
  rows_.clear();
  grads_.clear();
  for (Tensor& tensor : tensors) {
    rows_.push_back(make_row(tensor, static_cast<uint32_t>(rows_.size() + 5)));
    grads_.push_back(tensor.spec.has_grad ? tensor.grad.data() : nullptr);
    t.has_averages = t.has_averages || tensor.spec.has_average;
    t.has_codes = t.has_codes || tensor.spec.coded;
    t.has_masters = t.has_masters || tensor.spec.master != 0;
  }
  t.tensors = rows_.data();
  t.grads = grads_.data();
  t.groups = groups.data();
  t.chunks = chunks.data();
  t.group_chunks = group_chunks.data();
  t.tensor_chunks = tensor_chunks.data();
  inputs_ = {{segments_.data(), nullptr, tables_.data(), tracks_.data(), schedules_.data()},
             has_rate_scale ? &rate_scale : nullptr,
             has_stop ? &stop : nullptr,
             options.max_norm};
  t.inputs = &inputs_;
  t.values = values.as<ScheduleValues>();
  t.clock = clock.as<Clock>();
  t.rates = rates.as<double>();
  t.gradients = {options.scale != 0 ? &options.scale : nullptr,
                 options.has_found_inf ? &options.found_inf : nullptr, options.skip_nonfinite,
                 options.zero};
  for (GuardedBytes* sums :
       {&norms, &chunk_squares_, &chunk_changes_, &chunk_terms_, &terms_, &tensor_terms_}) {
    fill(*sums, NAN);
  }
  if (rule_info(rule).measures) {
    t.totals.chunk_terms = chunk_terms_.as<double>();
    t.totals.terms = terms_.as<double>();
  }
  t.update = options.update;
  if (t.update.cautious || t.update.clipping > 0.0) {
    t.totals.chunk_terms = chunk_terms_.as<double>();
    t.totals.tensor_terms = tensor_terms_.as<double>();
  }
  if (has_norms()) {
    t.totals.chunk_squares = chunk_squares_.as<double>();
    t.totals.group_squares = squares.as<double>();
    t.totals.norms = norms.as<double>();
  }
  if (options.telemetry > 0) {
    t.totals.chunk_changes = chunk_changes_.as<double>();
    t.totals.records = records.as<double>();
    t.totals.capacity = options.telemetry;
  }
  t.average_weight = options.average_weight;
  t.average_start = options.average_start;
  t.average_warms_up = options.average_warms_up;
  t.seed = options.seed;
  t.num_chunks = static_cast<int64_t>(chunks.size());
  t.chunk_size = chunk_size_;
  t.num_tensors = static_cast<int32_t>(tensors.size());
  t.num_groups = static_cast<int32_t>(groups.size());
  return t;
}

bool Plan::is_intact() const {
  bool intact = true;
  for (const GuardedBytes* own : {&clock, &rates, &norms, &records, &chunk_squares_,
                                  &chunk_changes_, &chunk_terms_, &terms_, &tensor_terms_}) {
    intact = intact && own->is_intact();
  }
  for (const Tensor& t : tensors) {
    for (const GuardedBytes* array :
         {&t.param, &t.grad, &t.average, &t.count, &t.product, &t.master_bits}) {
      intact = intact && array->is_intact();
    }
    for (const GuardedBytes& state : t.states) intact = intact && state.is_intact();
    for (const GuardedBytes& scales : t.scales) intact = intact && scales.is_intact();
  }
  return intact;
}

std::string Plan::difference(const Plan& other) const {
  for (size_t i = 0; i < tensors.size(); ++i) {
    const Tensor& a = tensors[i];
    const Tensor& b = other.tensors[i];
    std::string found = byte_difference("param", a.param, b.param) +
                        byte_difference("grad", a.grad, b.grad) +
                        byte_difference("average", a.average, b.average) +
                        byte_difference("count", a.count, b.count) +
                        byte_difference("product", a.product, b.product) +
                        byte_difference("master bits", a.master_bits, b.master_bits);
    for (size_t k = 0; k < a.states.size(); ++k) {
      found += byte_difference(text("state ", k), a.states[k], b.states[k]);
      if (a.spec.coded) found += byte_difference(text("scales ", k), a.scales[k], b.scales[k]);
    }
    if (!found.empty()) {
      return text("tensor ", i, " (numel ", a.spec.numel, ", dtypes ", a.spec.dtypes, ", form ",
                  a.spec.form, ", group ", a.spec.group, "):", found);
    }
  }
  return byte_difference("clock", without_sums(clock), without_sums(other.clock)) +
         byte_difference("rates", rates, other.rates);
}

std::string Plan::sums_difference(const Plan& other) const {
  return byte_difference("norms", norms, other.norms) +
         byte_difference("clock", clock, other.clock) +
         byte_difference("records", records, other.records);
}

void cpu_step(int rule, const StepTables& tables) {
  // One for all plans: what a larger plan, or another rule, has left in it must not matter.
  static cpu::Scratch scratch;
  cpu::step(rule, tables, 1, nullptr, scratch);
}

void cpu_step(Plan& plan) { cpu_step(plan.rule, plan.tables()); }

std::vector<ScheduleSpec> two_schedules() {
  const Segment up{0, 0.0, 4.0, 0.1, 1.0, 1.0, 0.0, 0, Shape::kLinear};
  const Segment down{4, 4.0, 5.0, 1.0, 1e-3, 1.0, 0.0, 0, Shape::kCosine};
  const Segment momentum{0, 0.0, 8.0, 0.95, 0.85, 1.0, 0.0, 0, Shape::kCosine};
  const Segment decay{0, 0.0, 9.0, 1.0, 0.5, 1.0, std::log(0.5), 0, Shape::kExponential};
  return {{{{up, down}}, {momentum}}, {{{decay}, {up}}, {}, {up}}};
}

}  // namespace lrfast::test
