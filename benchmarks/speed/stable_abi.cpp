// What a step reads of every parameter and its gradient, once through torch's C++ interface, as the
// engine does, and once through the stable one. See stable_abi.py.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/extension.h>

#include "bindings/parameter.h"

namespace {

using lrfast::bindings::Parameter;
using Stable = torch::stable::Tensor;

std::vector<Parameter> parameters;  // as the engine holds them
std::vector<Stable> handles;        // the same parameters

void hold(const std::vector<at::Tensor>& params) {
  parameters.clear();
  for (const at::Tensor& param : params) {
    parameters.emplace_back().tensor = param;
    parameters.back().inspect();
  }
}

int64_t look() {
  int64_t found = 0;
  for (Parameter& param : parameters) {
    void* grad = nullptr;
    found += param.is_unchanged() && param.has_plain_grad(&grad) && grad != nullptr;
    param.tensor.unsafeGetTensorImpl()->bump_version();
  }
  return found;
}

int64_t hold_stable(std::vector<Stable> params) {
  handles = std::move(params);
  return static_cast<int64_t>(handles.size());
}

bool is_same(torch::headeronly::IntHeaderOnlyArrayRef dims, const int64_t* others) {
  return std::equal(dims.begin(), dims.end(), others);
}

bool is_as_noted(const Stable& tensor, const Parameter& param) {
  const size_t dim = param.layout.size() / 2;
  const auto sizes = tensor.sizes();
  return tensor.scalar_type() == param.type.toScalarType() && sizes.size() == dim &&
         is_same(sizes, param.layout.data()) &&
         is_same(tensor.strides(), param.layout.data() + dim);
}

// The versions are left to Python: no function of the stable interface counts them.
int64_t look_stable(std::vector<Stable> grads) {
  int64_t found = 0;
  for (size_t i = 0; i < grads.size(); ++i) {
    found += handles[i].const_data_ptr() == parameters[i].key.data &&
             is_as_noted(handles[i], parameters[i]) && is_as_noted(grads[i], parameters[i]) &&
             grads[i].const_data_ptr() != nullptr;
  }
  return found;
}

int64_t nothing() { return 0; }

}  // namespace

PYBIND11_MODULE(TORCH_EXTENSION_NAME, m) {
  m.def("hold", &hold);
  m.def("look", &look);
  m.def("nothing", &nothing);
}

STABLE_TORCH_LIBRARY(lrfast_stable, m) {
  m.def("hold(Tensor[] params) -> int");
  m.def("look(Tensor[] grads) -> int");
  m.def("nothing() -> int");
}

STABLE_TORCH_LIBRARY_IMPL(lrfast_stable, CompositeExplicitAutograd, m) {
  m.impl("hold", TORCH_BOX(&hold_stable));
  m.impl("look", TORCH_BOX(&look_stable));
  m.impl("nothing", TORCH_BOX(&nothing));
}
