// Schedules on their way from Python to the device, and their evaluation for Python.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/stl.h>
#include <torch/csrc/autograd/python_variable.h>

#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "bindings/device_array.h"
#include "core/schedule.h"

namespace lrfast::bindings {

// (begin, t0, span, from, to, shape), as lrfast.schedules.Segment lists its fields.
using SegmentTuple = std::tuple<int64_t, double, double, double, double, std::string>;
using TableTuples = std::vector<SegmentTuple>;
// (tables whose product multiplies the rate, table of the momentum or None)
using ScheduleTuple = std::tuple<std::vector<TableTuples>, std::optional<TableTuples>>;

class ScheduleArrays {
 public:
  void assign(const std::vector<ScheduleTuple>& schedules);
  bool cycles_momentum(int32_t schedule) const;
  ScheduleTables on(at::Device device);

 private:
  int32_t add_table(const TableTuples& tuples);

  DeviceArray<Segment> segments_;
  DeviceArray<Table> tables_;
  DeviceArray<Schedule> schedules_;
};

// steps: [n] int64 -> (rate multipliers [n], momenta [n] or None), both float64.
py::tuple evaluate_schedule(
    const ScheduleTuple& schedule,
    const py::array_t<int64_t, py::array::c_style | py::array::forcecast>& steps);

}  // namespace lrfast::bindings
