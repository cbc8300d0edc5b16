// The extension module lrfast._C: the list of everything that Python can call. Its types are
// described in lrfast/_C.pyi.
#include <torch/csrc/autograd/python_variable.h>
#include <torch/version.h>

#include "bindings/codes.h"
#include "bindings/curve.h"
#include "bindings/device.h"
#include "bindings/engine.h"
#include "core/curve.h"
#include "core/rules.h"
#include "cpu/instruction_set.h"

#if defined(__clang__)
#define COMPILER ""  // its version begins with its name
#else
#define COMPILER "g++ "
#endif

namespace {

// What `lrfast doctor` says of this build.
void describe_build(pybind11::module_& m) {
  using namespace lrfast::bindings;
  m.attr("torch_version") = TORCH_VERSION;
  m.attr("has_cuda") = cuda_calls::is_built();
  m.attr("cuda_toolkit") = cuda_calls::toolkit();
  m.attr("cuda_architectures") = cuda_calls::architectures();
  m.attr("compiler") = COMPILER __VERSION__;
  m.attr("instruction_set") = lrfast::cpu::instruction_set();
  m.attr("has_dict_versions") = kHasDictVersions;
}

// Each rule's states, in each of its forms.
std::map<std::string, std::vector<std::vector<std::string>>> rule_states() {
  std::map<std::string, std::vector<std::vector<std::string>>> found;
  for (const char* name : lrfast::Rules::kNames) {
    for (const lrfast::StateNames& form : lrfast::bindings::find_rule(name).forms) {
      found[name].emplace_back(form.names, form.names + form.count);
    }
  }
  return found;
}

// Of each rule that can keep its states in 8 bits, each of them: whether it is a mean of squares.
std::map<std::string, std::map<std::string, bool>> coded_states() {
  std::map<std::string, std::map<std::string, bool>> found;
  for (const char* name : lrfast::Rules::kNames) {
    std::map<std::string, bool> states;
    bool is_coded = true;
    for (const lrfast::StateNames& form : lrfast::bindings::find_rule(name).forms) {
      for (int k = 0; k < form.count; ++k) {
        is_coded = is_coded && form.kinds[k] != lrfast::StateKind::kWide;
        states[form.names[k]] = form.kinds[k] == lrfast::StateKind::kPositive;
      }
    }
    if (is_coded) found[name] = states;
  }
  return found;
}

std::vector<std::string> rules_with_cuda_codes() {
  std::vector<std::string> found;
  for (const auto& [name, states] : coded_states()) {
    if (lrfast::bindings::find_rule(name).codes_on_cuda) found.push_back(name);
  }
  return found;
}

std::vector<std::string> rules_with_masters() {
  std::vector<std::string> found;
  for (const char* name : lrfast::Rules::kNames) {
    if (lrfast::bindings::find_rule(name).keeps_masters) found.emplace_back(name);
  }
  return found;
}

std::map<std::string, std::vector<std::string>> update_options() {
  std::map<std::string, std::vector<std::string>> found;
  for (const char* name : lrfast::Rules::kNames) {
    found[name] = lrfast::bindings::find_rule(name).options;
  }
  return found;
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  using namespace lrfast::bindings;
  using py::arg;

  describe_build(m);
  m.attr("rules") =
      std::vector<std::string>(std::begin(lrfast::Rules::kNames), std::end(lrfast::Rules::kNames));
  m.attr("rule_states") = rule_states();
  m.attr("coded_states") = coded_states();
  m.attr("cuda_codes") = rules_with_cuda_codes();
  m.attr("master_rules") = rules_with_masters();
  m.attr("update_options") = update_options();
  m.attr("min_coded") = lrfast::kMinCoded;
  m.attr("code_block") = lrfast::kCodeBlock;
  m.attr("curve_state_size") = lrfast::kCurveStateDoubles;

  m.def("evaluate_schedule", &evaluate_schedule, arg("schedule"), arg("steps"));

  m.def("record_loss", &record_loss, arg("state"), arg("losses"), arg("rates"), arg("loss"),
        arg("lr"), arg("skip"), arg("beta"), arg("stop"), arg("grace"));
  m.def("smooth_ema", &smooth_ema, arg("values"), arg("beta"));
  m.def("moving_average", &moving_average, arg("values"), arg("window"));
  m.def("running_median", &running_median, arg("values"), arg("window"));
  m.def("savitzky_golay", &savitzky_golay, arg("values"), arg("window"), arg("order"));
  m.def("derivative", &derivative, arg("values"), arg("x"), arg("reach"));

  m.def("check_groups", &ParamGroups::check, arg("rule"), arg("groups"));
  m.def("layout_strides", &layout_strides, arg("param"));
  m.def("encode_state", &encode_state, arg("values"), arg("positive"));
  m.def("decode_state", &decode_state, arg("codes"), arg("scales"), arg("positive"));
  m.def("join_masters", &join_masters, arg("param"), arg("bits"));

  py::class_<lrfast::UpdateOptions>(m, "UpdateOptions")
      .def(py::init<double, bool, bool, bool>(), arg("clipping"), arg("cautious"),
           arg("cautious_decay"), arg("unscheduled_decay"));

  py::class_<EngineOptions>(m, "EngineOptions")
      .def(py::init<double, bool, bool, double, int64_t, bool, bool, uint64_t, bool, int64_t,
                    int64_t, lrfast::UpdateOptions>(),
           arg("max_grad_norm"), arg("skip_nonfinite"), arg("zero_grads"), arg("ema_decay"),
           arg("ema_start"), arg("ema_warmup"), arg("stochastic_rounding"), arg("seed"),
           arg("codes"), arg("master_bytes"), arg("telemetry"), arg("update"));

  py::class_<MissingStates>(m, "MissingStates")
      .def_readonly("group", &MissingStates::group)
      .def_readonly("param", &MissingStates::param)
      .def_readonly("tensors", &MissingStates::tensors)
      .def_readonly("count", &MissingStates::count)
      .def_readonly("product", &MissingStates::product)
      .def_readonly("needs_product", &MissingStates::needs_product)
      .def_readonly("largest", &MissingStates::largest);

  py::class_<Engine>(m, "Engine")
      .def(py::init<const std::string&, py::object, py::object>(), arg("rule"), arg("find_shards"),
           arg("products") = py::none())
      .def("step", &Engine::step, arg("param_groups"), arg("state"), arg("grad_scale"),
           arg("found_inf"))
      .def("build", &Engine::build, arg("param_groups"))
      .def("begin_recording", &Engine::begin_recording)
      .def("end_recording", &Engine::end_recording)
      .def("forget_recording", &Engine::forget_recording, arg("number"))
      .def("mark_gradients", &Engine::mark_gradients, arg("number"))
      .def("refresh", &Engine::refresh, arg("number"), arg("param_groups"), arg("state"))
      .def("addresses", &Engine::addresses)
      .def("set_schedules", &Engine::set_schedules, arg("schedules"), arg("group_schedules"))
      .def("set_options", &Engine::set_options, arg("options"))
      .def("watch", &Engine::watch, arg("flag"))
      .def("scale_rates", &Engine::scale_rates, arg("scale"))
      .def("product_after", &Engine::product_after, arg("group"), arg("count"))
      .def("clocks", &Engine::clocks)
      .def("set_clock", &Engine::set_clock, arg("applied"), arg("steps"))
      .def("distances", &Engine::distances)
      .def("set_distance", &Engine::set_distance, arg("numbers"))
      .def("rates", &Engine::rates)
      .def("norms", &Engine::norms)
      .def("records", &Engine::records)
      .def("private_counts", &Engine::private_counts)
      .def_property_readonly("rebuilds", &Engine::rebuilds);
}
