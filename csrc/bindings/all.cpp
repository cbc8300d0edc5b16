// The bindings as one unit, but for those of the device: torch's headers and pybind11's take longer
// to compile than the bindings do, and would be compiled once for each file.
#include "bindings/codes.cpp"
#include "bindings/curve.cpp"
#include "bindings/device.cpp"
#include "bindings/directions.cpp"
#include "bindings/engine.cpp"
#include "bindings/module.cpp"
#include "bindings/param_groups.cpp"
#include "bindings/parameter.cpp"
#include "bindings/plan.cpp"
#include "bindings/recording.cpp"
#include "bindings/rule_info.cpp"
#include "bindings/schedules.cpp"
