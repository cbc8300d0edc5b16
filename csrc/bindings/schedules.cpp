#include "bindings/schedules.h"

#include <cmath>

namespace lrfast::bindings {
namespace {

Shape parse_shape(const std::string& name) {
  std::string names;
  for (int32_t shape = 0; const char* known : kShapeNames) {
    if (name == known) return static_cast<Shape>(shape);
    names += (shape++ == 0 ? "" : ", ") + std::string(known);
  }
  throw py::value_error("shape must be one of " + names + ", got '" + name + "'");
}

// Steps and counts beyond this are not told apart by doubles, and would overflow when added up.
constexpr int64_t kMaxSteps = int64_t{1} << 53;

// What a table holds may come from a file: nothing of it reaches an index unchecked.
void check_steps(const char* name, int64_t value, int64_t least) {
  if (value >= least && value <= kMaxSteps) return;
  throw py::value_error(std::string("a schedule's ") + name + " must lie in [" +
                        std::to_string(least) + ", 2^53], got " + std::to_string(value));
}

void check_finite(const char* name, double value) {
  if (std::isfinite(value)) return;
  throw py::value_error(std::string("a schedule's ") + name + " must be finite, got " +
                        std::to_string(value));
}

int32_t size_of(const auto& array) { return static_cast<int32_t>(array.rows().size()); }

}  // namespace

void ScheduleArrays::add_segment(const SegmentTuple& tuple) {
  const auto& [begin, t0, span, from, to, name, power, values] = tuple;
  const Shape shape = parse_shape(name);
  check_steps("begin", begin, 0);
  check_finite("t0", t0);
  check_finite("span", span);
  if (shape == Shape::kLookup && static_cast<double>(values.size()) < span) {
    throw py::value_error("values must hold one entry per step of the span, got " +
                          std::to_string(values.size()) + " for " + std::to_string(span));
  }
  Segment segment{begin, t0, span, from, to, 1.0, 0.0, size_of(values_), shape};
  prepare_segment(segment, power);
  segments_.edit().push_back(segment);
  values_.edit().insert(values_.edit().end(), values.begin(), values.end());
}

void ScheduleArrays::add_track(Channel channel, const TrackTuples& tuples) {
  if (tuples.empty()) throw py::value_error("a schedule's track needs one table at least, got 0");
  tracks_.edit().push_back({size_of(tables_), static_cast<int32_t>(tuples.size()), channel});
  for (const auto& [begin, period, gain, decay, floor, stride, segments] : tuples) {
    if (segments.empty()) {
      throw py::value_error("a schedule's table needs one segment at least, got 0");
    }
    check_steps("begin", begin, 0);
    check_steps("period", period, 0);
    check_steps("stride", stride, 1);
    tables_.edit().push_back({begin, stride, period, floor, finite_log(gain), finite_log(decay),
                              size_of(segments_), static_cast<int32_t>(segments.size())});
    for (const SegmentTuple& segment : segments) add_segment(segment);
  }
}

void ScheduleArrays::assign(const std::vector<ScheduleTuple>& schedules) {
  segments_.edit().clear();
  values_.edit().clear();
  tables_.edit().clear();
  tracks_.edit().clear();
  schedules_.edit().clear();
  for (const auto& [rate, momentum, weight_decay] : schedules) {
    const int32_t first = size_of(tracks_);
    for (const TrackTuples& track : rate) add_track(Channel::kRate, track);
    if (momentum) add_track(Channel::kMomentum, *momentum);
    if (weight_decay) add_track(Channel::kWeightDecay, *weight_decay);
    schedules_.edit().push_back({first, size_of(tracks_) - first, momentum.has_value()});
  }
}

bool ScheduleArrays::cycles_momentum(int32_t schedule) const {
  return schedule >= 0 && schedules_.rows()[schedule].cycles_momentum != 0;
}

ScheduleTables ScheduleArrays::on(at::Device device) {
  return {segments_.on(device), values_.on(device), tables_.on(device), tracks_.on(device),
          schedules_.on(device)};
}

py::tuple evaluate_schedule(
    const ScheduleTuple& schedule,
    const py::array_t<int64_t, py::array::c_style | py::array::forcecast>& steps) {
  ScheduleArrays arrays;
  arrays.assign({schedule});
  const ScheduleTables tables = arrays.on(at::kCPU);
  const py::ssize_t count = steps.size();
  py::array_t<double> rates(count);
  py::array_t<double> momenta(count);
  py::array_t<double> decays(count);
  const int64_t* step = steps.data();
  for (py::ssize_t i = 0; i < count; ++i) {
    const ScheduleValues values = lrfast::evaluate_schedule(tables, 0, step[i]);
    rates.mutable_data()[i] = values.rate;
    momenta.mutable_data()[i] = values.momentum;
    decays.mutable_data()[i] = values.weight_decay;
  }
  const auto& [rate, momentum, weight_decay] = schedule;
  return py::make_tuple(rates, momentum ? py::object(momenta) : py::none(),
                        weight_decay ? py::object(decays) : py::none());
}

}  // namespace lrfast::bindings
