#include "bindings/directions.h"

#include <ATen/ops/zeros.h>

#include <map>
#include <tuple>

#include "bindings/device.h"

namespace lrfast::bindings {
namespace {

struct Matrix {
  int64_t rows, columns;
};

// A parameter as the matrix of its first dimension and all others, as it lies in memory. Order and
// transposition of the others are the same to the products.
Matrix matrix_of(const Parameter& param) {
  const at::Tensor& tensor = param.tensor;
  TORCH_CHECK_VALUE(tensor.dim() >= 2, param.describe(),
                    " must have two dimensions or more in a group of rule 'muon'; give it to one "
                    "of rule 'adamw'");
  const int64_t outputs = tensor.size(0);
  const int64_t inputs = tensor.numel() / outputs;
  const int64_t stride = layout_strides(tensor)[0];
  if (outputs == 1 || stride == inputs) return {outputs, inputs};
  TORCH_CHECK_VALUE(stride == 1, param.describe(),
                    " must have its first dimension first or last in memory, got strides ",
                    tensor.strides(), "; make it contiguous()");
  return {inputs, outputs};
}

}  // namespace

void Directions::place(std::vector<Parameter>& parameters, const ParamGroups& groups, int form,
                       std::vector<DevicePlan>& plans, const EngineOptions& options) {
  std::vector<bool> has_direction;
  for (size_t g = 0; g < groups.rows().size(); ++g) {
    has_direction.push_back(groups.needs(static_cast<int32_t>(g)).form == form);
  }
  if (is_current_ && has_direction == has_direction_) return;
  using Key = std::tuple<int32_t, at::ScalarType, int64_t, int64_t, int64_t>;
  std::map<Key, std::vector<int32_t>> alike;
  for (size_t i = 0; i < parameters.size(); ++i) {
    const Parameter& param = parameters[i];
    if (param.is_left_out || param.elements == 0 || !has_direction[param.group]) continue;
    const Matrix matrix = matrix_of(param);
    alike[{param.device, param.tensor.scalar_type(), matrix.rows, matrix.columns,
           param.tensor.size(0)}]
        .push_back(static_cast<int32_t>(i));
  }
  std::vector<Stack> stacks;
  for (const auto& [key, members] : alike) {
    const auto& [device, type, rows, columns, outputs] = key;
    TORCH_CHECK(!is_capturing(plans[device].device),
                "matrices have no memory for their directions yet, and cannot get it while a CUDA "
                "graph is captured: make a step before, or use lrfast.capture");
    const auto tensor_options = at::TensorOptions().dtype(type).device(plans[device].device);
    const auto count = static_cast<int64_t>(members.size());
    stacks.push_back({at::zeros({count, rows, columns}, tensor_options), outputs, members});
  }
  for (Parameter& param : parameters) param.direction.reset();
  for (const Stack& stack : stacks) {
    for (size_t i = 0; i < stack.parameters.size(); ++i) {
      parameters[stack.parameters[i]].direction = stack.matrices.select(0, static_cast<int64_t>(i));
    }
  }
  for (const Parameter& param : parameters) {
    if (!param.is_left_out) plans[param.device].set_row(param, options);
  }
  stacks_ = std::move(stacks);
  has_direction_ = std::move(has_direction);
  is_current_ = true;
}

// A graph holds the products of all matrices, as any of them may train at a later replay.
std::vector<at::Tensor> Directions::transform(const std::vector<Parameter>& parameters,
                                              const ParamGroups& groups,
                                              const std::vector<DevicePlan>& plans,
                                              const py::dict& state) const {
  std::vector<at::Tensor> cleared;
  for (const Stack& stack : stacks_) {
    const DevicePlan& plan = plans[parameters[stack.parameters.front()].device];
    const bool takes_all = is_capturing(plan.device);
    const auto trains = [&](int32_t place) {
      const Parameter& param = parameters[place];
      return takes_all || (plan.grad(param) != nullptr && groups.rows()[param.group].frozen == 0);
    };
    size_t first = 0;
    size_t end = stack.parameters.size();
    while (first < end && !trains(stack.parameters[first])) ++first;
    while (first < end && !trains(stack.parameters[end - 1])) --end;
    if (first == end) continue;
    py::list members, objects;
    for (size_t i = first; i < end; ++i) {
      const Parameter& param = parameters[stack.parameters[i]];
      members.append(groups.object(param.group));
      objects.append(param.object);
    }
    const auto count = static_cast<int64_t>(end - first);
    const at::Tensor part = stack.matrices.narrow(0, static_cast<int64_t>(first), count);
    const py::object clears = products_(part, members, objects, state, stack.outputs);
    if (clears.cast<bool>()) cleared.push_back(part);
  }
  return cleared;
}

py::object Directions::settings(const py::list& param_groups) const {
  return products_.is_none() ? py::none() : products_.attr("settings")(param_groups);
}

}  // namespace lrfast::bindings
