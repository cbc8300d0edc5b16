#include "bindings/recording.h"

#include <algorithm>

#include "bindings/device.h"

namespace lrfast::bindings {
namespace {

std::vector<const void*> addresses_of(const std::vector<DeviceHyper>& hypers) {
  std::vector<const void*> all;
  for (const DeviceHyper& hyper : hypers) all.push_back(hyper.value.const_data_ptr());
  return all;
}

// The gradient that a parameter holds now, by identity.
const void* held_grad(const Parameter& param) {
  if (!param.is_local) return grad_impl(*param.key.impl);
  const py::object grad = param.object.attr("grad");
  return grad.is_none() ? nullptr : grad.ptr();
}

// A part of a DTensor is known by its wrapper alone.
const void* held_data(const Parameter& param) {
  if (param.is_local || param.is_left_out) return nullptr;
  const at::TensorImpl* grad = grad_impl(*param.key.impl);
  return grad == nullptr ? nullptr : grad->unsafe_storage().data();
}

bool requires_grad_now(const Parameter& param) {
  const auto* meta = autograd_of(*THPVariable_Unpack(param.object.ptr()).unsafeGetTensorImpl());
  return meta != nullptr && meta->requires_grad_;
}

}  // namespace

void RecordedGradient::mark(const Parameter& param) {
  left = held_grad(param);
  left_data = held_data(param);
  requires_grad = requires_grad_now(param);
}

std::string RecordedGradient::change_in(const Parameter& param, bool trains) const {
  if (!param.is_left_out && !param.is_unchanged())
    return param.describe() + " lies elsewhere in memory";
  if (requires_grad_now(param) != requires_grad) {
    return "requires_grad of " + param.describe() + " has changed";
  }
  const void* now = held_grad(param);
  if (now == left && held_data(param) == left_data) {
    if (!trains || !skips_staging) return {};
    return param.describe() + ", which has gaps in memory, was frozen and trains now";
  }
  const std::string grad = "the gradient of " + param.describe();
  if (left == nullptr) return grad + " was None and is there now";
  return grad + (now == nullptr ? " is None now" : " was replaced by another tensor") +
         "; zero gradients in place between training steps: zero_grad(set_to_none=False)";
}

void GraphRecording::note_step(const StepSettings& settings, const ParamGroups& groups,
                               const std::vector<Parameter>& parameters,
                               const std::vector<DevicePlan>& plans) {
  steps += 1;
  is_captured = std::all_of(plans.begin(), plans.end(),
                            [](const DevicePlan& plan) { return is_capturing(plan.device); });
  has_norms = settings.wants_norms();
  options = settings.options;
  hypers = addresses_of(groups.device_hypers());
  gradients.assign(parameters.size(), {});
  for (size_t i = 0; i < parameters.size(); ++i) {
    const Parameter& param = parameters[i];
    if (param.is_left_out) continue;
    gradients[i].read = plans[param.device].grad(param);
    gradients[i].skips_staging = param.staged_param.defined() && groups.needs(param.group).frozen;
  }
}

std::string GraphRecording::change_in(const StepSettings& settings,
                                      const ParamGroups& groups) const {
  const EngineOptions& now = settings.options;
  const auto name = [](const char* option) { return std::string(option) + " has changed"; };
  if (now.skip_nonfinite != options.skip_nonfinite) return name("skip_nonfinite");
  if (now.zero_grads != options.zero_grads) return name("zero_grads");
  if (now.ema_decay != options.ema_decay) return name("ema_decay");
  if (now.ema_start != options.ema_start) return name("ema_start");
  if (now.ema_warmup != options.ema_warmup) return name("ema_warmup");
  if (now.stochastic_rounding != options.stochastic_rounding) return name("stochastic_rounding");
  if (now.seed != options.seed) return name("seed");
  if (now.telemetry != options.telemetry) return name("telemetry");
  if (now.update.cautious != options.update.cautious) return name("cautious");
  if (now.update.clipping != options.update.clipping) return name("clipping_threshold");
  if (now.update.cautious_decay != options.update.cautious_decay) {
    return name("cautious_weight_decay");
  }
  if (now.update.unscheduled_decay != options.update.unscheduled_decay) {
    return name("scheduled_weight_decay");
  }
  if (settings.wants_norms() != has_norms) {
    return std::string("clipping has been switched ") + (has_norms ? "off" : "on");
  }
  if (addresses_of(groups.device_hypers()) == hypers) return {};
  return "a tensor in param_groups was replaced, which can only be filled in place";
}

}  // namespace lrfast::bindings
