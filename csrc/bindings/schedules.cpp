#include "bindings/schedules.h"

#include <cmath>

namespace lrfast::bindings {
namespace {

Shape parse_shape(const std::string& name) {
  if (name == "constant") return Shape::kConstant;
  if (name == "linear") return Shape::kLinear;
  if (name == "cosine") return Shape::kCosine;
  if (name == "exponential") return Shape::kExponential;
  throw py::value_error("shape must be constant, linear, cosine or exponential, got '" + name +
                        "'");
}

Segment parse_segment(const SegmentTuple& tuple) {
  const auto& [begin, t0, span, from, to, name] = tuple;
  const Shape shape = parse_shape(name);
  const double log_ratio = shape == Shape::kExponential ? std::log(to / from) : 0.0;
  return {begin, t0, span, from, to, log_ratio, shape};
}

}  // namespace

int32_t ScheduleArrays::add_table(const TableTuples& tuples) {
  if (tuples.empty()) throw py::value_error("a schedule's table needs one segment at least, got 0");
  tables_.edit().push_back(
      {static_cast<int32_t>(segments_.rows().size()), static_cast<int32_t>(tuples.size())});
  for (const SegmentTuple& tuple : tuples) segments_.edit().push_back(parse_segment(tuple));
  return static_cast<int32_t>(tables_.rows().size()) - 1;
}

void ScheduleArrays::assign(const std::vector<ScheduleTuple>& schedules) {
  segments_.edit().clear();
  tables_.edit().clear();
  schedules_.edit().clear();
  for (const auto& [rate_tables, momentum] : schedules) {
    Schedule row{
        {static_cast<int32_t>(tables_.rows().size()), static_cast<int32_t>(rate_tables.size())},
        -1};
    for (const TableTuples& table : rate_tables) add_table(table);
    if (momentum) row.momentum = add_table(*momentum);
    schedules_.edit().push_back(row);
  }
}

bool ScheduleArrays::cycles_momentum(int32_t schedule) const {
  return schedule >= 0 && schedules_.rows()[schedule].momentum >= 0;
}

ScheduleTables ScheduleArrays::on(at::Device device) {
  return {segments_.on(device), tables_.on(device), schedules_.on(device)};
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
  const int64_t* step = steps.data();
  for (py::ssize_t i = 0; i < count; ++i) {
    const ScheduleValues values = evaluate(tables, 0, step[i]);
    rates.mutable_data()[i] = values.rate;
    momenta.mutable_data()[i] = values.momentum;
  }
  if (!arrays.cycles_momentum(0)) return py::make_tuple(rates, py::none());
  return py::make_tuple(rates, momenta);
}

}  // namespace lrfast::bindings
