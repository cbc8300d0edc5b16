// Schedules on their way from Python to the device, and their evaluation for Python.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/stl.h>
#include <torch/csrc/autograd/python_variable.h>

#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "bindings/torch_memory.h"
#include "core/schedule.h"

namespace lrfast::bindings {

// (begin, t0, span, from, to, shape, power, values), as lrfast.schedules.Segment lists its fields.
using SegmentTuple =
    std::tuple<int64_t, double, double, double, double, std::string, double, std::vector<double>>;
// (begin, period, gain, decay, floor, stride, segments)
using TableTuple =
    std::tuple<int64_t, int64_t, double, double, double, int64_t, std::vector<SegmentTuple>>;
using TrackTuples = std::vector<TableTuple>;
// (tracks whose product multiplies the rate, track of the momentum, of the weight decay's factor)
using ScheduleTuple =
    std::tuple<std::vector<TrackTuples>, std::optional<TrackTuples>, std::optional<TrackTuples>>;

class ScheduleArrays {
 public:
  void assign(const std::vector<ScheduleTuple>& schedules);
  bool cycles_momentum(int32_t schedule) const;
  ScheduleTables on(at::Device device);
  // visit(tensor) for the memory that the device holds.
  template <class Visit>
  void visit_on(at::Device device, const Visit& visit) {
    segments_.visit_on(device, visit);
    values_.visit_on(device, visit);
    tables_.visit_on(device, visit);
    tracks_.visit_on(device, visit);
    schedules_.visit_on(device, visit);
  }

 private:
  void add_track(Channel channel, const TrackTuples& tuples);
  void add_segment(const SegmentTuple& tuple);

  TorchArray<Segment> segments_;
  TorchArray<double> values_;
  TorchArray<Table> tables_;
  TorchArray<Track> tracks_;
  TorchArray<Schedule> schedules_;
};

// steps: [n] int64 -> (rate multipliers [n], momenta [n] or None, weight decay multipliers [n] or
// None), float64.
py::tuple evaluate_schedule(
    const ScheduleTuple& schedule,
    const py::array_t<int64_t, py::array::c_style | py::array::forcecast>& steps);

}  // namespace lrfast::bindings
