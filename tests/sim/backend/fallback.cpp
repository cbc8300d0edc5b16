// Every other operator: shapes come from torch's meta kernels at once, the CPU operator runs when
// its turn comes, on the same memory. What cannot say its shapes has to look at the data, and waits
// as it does on a GPU.
#include <ATen/Functions.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <torch/library.h>

#include <algorithm>
#include <array>
#include <memory>
#include <mutex>
#include <string>
#include <type_traits>
#include <unordered_map>
#include <vector>

#include "queues.h"
#include "random.h"
#include "tensors.h"

namespace sim {
namespace {

using Stack = torch::jit::Stack;

// Operators that read some argument on the host by torch's own rules.
constexpr std::array kHostArguments = {"aten::_pack_padded_sequence", "aten::_pad_packed_sequence"};

bool writes(const c10::Argument& argument) {
  return argument.alias_info() && argument.alias_info()->isWrite();
}

bool is_tensor_or_list(const c10::Argument& argument) {
  const auto kind = argument.type()->kind();
  return kind == c10::TypeKind::TensorType || kind == c10::TypeKind::ListType;
}

template <class Visit>
void visit_tensors(const c10::IValue& value, Visit&& visit) {
  if (value.isTensor()) {
    if (value.toTensor().defined()) visit(value.toTensor());
  } else if (value.isTensorList()) {
    for (const at::Tensor& tensor : value.toTensorVector()) visit(tensor);
  } else if (value.isOptionalTensorList()) {
    for (const std::optional<at::Tensor> tensor : value.toOptionalTensorList()) {
      if (tensor && tensor->defined()) visit(*tensor);
    }
  }
}

// With each tensor replaced by what `change` makes of it.
template <class Change>
c10::IValue changed(const c10::IValue& value, Change&& change) {
  if (value.isTensor()) {
    return value.toTensor().defined() ? c10::IValue(change(value.toTensor())) : value;
  }
  if (value.isTensorList()) {
    c10::List<at::Tensor> list;
    for (const at::Tensor& tensor : value.toTensorVector()) list.push_back(change(tensor));
    return list;
  }
  if (value.isOptionalTensorList()) {
    c10::List<std::optional<at::Tensor>> list;
    for (const std::optional<at::Tensor> tensor : value.toOptionalTensorList()) {
      list.push_back(tensor && tensor->defined() ? std::optional(change(*tensor)) : std::nullopt);
    }
    return list;
  }
  return value;
}

at::Tensor as_meta(const at::Tensor& tensor) {
  if (tensor.is_cpu() && tensor.dim() == 0) return tensor;  // a number, which the meta kernel reads
  return at::empty_strided(tensor.sizes(), tensor.strides(), tensor.options().device(at::kMeta));
}

c10::IValue for_meta(const c10::IValue& value) {
  if (value.isDevice()) return c10::Device(at::kMeta);
  if (value.isGenerator()) return {};
  return changed(value, as_meta);
}

// Small CPU tensors are numbers that a launch takes along.
c10::IValue for_cpu(const c10::IValue& value) {
  if (value.isDevice()) return c10::Device(at::kCPU);
  if (value.isGenerator()) return {};
  return changed(value, [](const at::Tensor& tensor) {
    return tensor.is_cpu() ? tensor.detach().clone() : host_view(tensor);
  });
}

void call(const c10::OperatorHandle& op, Stack& stack) {
  const at::AutoDispatchBelowADInplaceOrView below;
  const at::NoGradGuard no_grad;
  op.callBoxed(&stack);
}

// All that the shapes of a call's results follow from, as bytes; factors of tensors are left out.
class Signature {
 public:
  Signature(const c10::OperatorHandle& op, const std::vector<c10::IValue>& arguments) {
    add(&op.schema());
    add(c10::get_default_dtype_as_scalartype());
    for (const auto& value : arguments) add_value(value);
  }
  // False where some argument is of a kind that is not known here.
  bool is_complete() const { return is_complete_; }
  const std::string& bytes() const { return bytes_; }

 private:
  template <class Value>
  void add(const Value& value) {
    static_assert(std::is_trivially_copyable_v<Value>);
    bytes_.append(reinterpret_cast<const char*>(&value), sizeof(value));
  }
  template <class List>
  void add_list(const List& list) {
    add(list.size());
    for (const auto item : list) add(item);
  }
  void add_tensor(const at::Tensor& tensor) {
    add(tensor.defined());
    if (!tensor.defined()) return;
    has_tensor_ = true;
    add(tensor.scalar_type());
    add_list(tensor.sizes());
    add_list(tensor.strides());
    const bool is_wrapped = tensor.unsafeGetTensorImpl()->is_wrapped_number();
    const bool is_read = tensor.is_cpu() && tensor.dim() == 0 && !is_wrapped;  // see as_meta
    add(is_wrapped);
    add(is_read);
    if (is_read) {
      bytes_.append(static_cast<const char*>(tensor.const_data_ptr()), tensor.element_size());
    }
  }
  void add_value(const c10::IValue& value) {
    if (value.isTensor()) {
      add('t');
      add_tensor(value.toTensor());
    } else if (value.isTensorList()) {
      add(value.toTensorVector().size());
      for (const at::Tensor& tensor : value.toTensorVector()) add_tensor(tensor);
    } else if (value.isOptionalTensorList()) {
      const auto list = value.toOptionalTensorList();
      add(list.size());
      for (const std::optional<at::Tensor> tensor : list) add_tensor(tensor.value_or(at::Tensor()));
    } else if (value.isDouble()) {
      add('d');
      if (!has_tensor_) add(value.toDouble());
    } else if (value.isInt()) {
      add('i');
      add(value.toInt());
    } else if (value.isBool()) {
      add(value.toBool());
    } else if (value.isIntList()) {
      add_list(value.toIntVector());
    } else if (value.isBoolList()) {
      for (const bool item : value.toBoolList()) add(item);
    } else if (value.isNone()) {
      add('-');
    } else if (!value.isDevice() && !value.isGenerator()) {
      is_complete_ = false;
    }
  }

  std::string bytes_;
  bool has_tensor_ = false;
  bool is_complete_ = true;
};

// What an operator's meta kernel returns, or raises. Many of these kernels are written in Python,
// so that each signature is asked for once.
std::shared_ptr<const Stack> on_meta(const c10::OperatorHandle& op,
                                     const std::vector<c10::IValue>& arguments) {
  static auto* known = new std::unordered_map<std::string, std::shared_ptr<const Stack>>;
  static std::mutex mutex;  // not held while Python runs
  const Signature signature(op, arguments);
  if (signature.is_complete()) {
    const std::lock_guard lock(mutex);
    const auto found = known->find(signature.bytes());
    if (found != known->end()) return found->second;
  }
  auto made = std::make_shared<Stack>();
  for (const auto& value : arguments) made->push_back(for_meta(value));
  call(op, *made);
  if (signature.is_complete()) {
    const std::lock_guard lock(mutex);
    (*known)[signature.bytes()] = made;
  }
  return made;
}

class Call {
 public:
  Call(const c10::OperatorHandle& op, Stack& stack)
      : op_(op),
        schema_(op.schema()),
        stack_(stack),
        arguments_(torch::jit::last(stack, schema_.arguments().size()).vec()),
        device_(find_device()) {}

  void run() {
    resize_outputs();
    for (const auto& value : arguments_) cpu_->push_back(for_cpu(value));
    if (op_.hasTag(at::Tag::nondeterministic_seeded)) {
      at::Generator given;
      for (const auto& value : arguments_) {
        if (value.isGenerator()) given = value.toGenerator();
      }
      draw_ = draw(given, device_);
    }
    if (returns_numbers() || reads_masks()) return run_at_once();
    auto meta = std::make_shared<const Stack>();
    if (makes_tensors()) {
      try {
        meta = on_meta(op_, arguments_);
      } catch (const std::exception&) {
        return run_at_once();
      }
    }
    if (is_view()) return answer(views(*meta));
    run_later(*meta);
  }

 private:
  // All tensors have to be on one device; numbers on the CPU, and indices, may come along.
  int find_device() const {
    int found = -1;
    for (const auto& value : arguments_) {
      visit_tensors(value, [&](const at::Tensor& tensor) {
        if (!tensor.is_cuda()) return;
        const int index = tensor.device().index();
        TORCH_CHECK(found < 0 || found == index, "Expected all tensors to be on the same device, ",
                    "but found at least two devices, cuda:", found, " and cuda:", index, ", in ",
                    schema_.name());
        found = index;
      });
    }
    if (found < 0) {
      for (const auto& value : arguments_) {
        if (value.isDevice() && value.toDevice().is_cuda()) found = value.toDevice().index();
      }
      return device_or_current(found);
    }
    const bool may_mix = std::find(kHostArguments.begin(), kHostArguments.end(), schema_.name()) !=
                         kHostArguments.end();
    for (const auto& value : arguments_) {
      if (value.isOptionalTensorList() || may_mix) continue;
      visit_tensors(value, [&](const at::Tensor& tensor) {
        TORCH_CHECK(!tensor.is_cpu() || tensor.dim() == 0,
                    "Expected all tensors to be on the same device, but found at least two ",
                    "devices, cuda:", found, " and cpu, in ", schema_.name());
      });
    }
    return found;
  }

  bool returns_numbers() const {
    return std::any_of(schema_.returns().begin(), schema_.returns().end(),
                       [](const auto& made) { return !is_tensor_or_list(made); });
  }
  bool makes_tensors() const {
    return std::any_of(schema_.returns().begin(), schema_.returns().end(),
                       [](const auto& made) { return !writes(made); });
  }
  bool is_view() const {
    if (!makes_tensors()) return false;
    const auto* alias = schema_.returns()[0].alias_info();
    return alias != nullptr && !alias->isWrite();
  }

  // Indexing with a mask asks how many elements it has; with one number it is a masked fill.
  bool reads_masks() const {
    int masks = 0;
    int indices = 0;
    for (const auto& value : arguments_) {
      if (!value.isOptionalTensorList()) continue;
      visit_tensors(value, [&](const at::Tensor& tensor) {
        ++indices;
        masks += tensor.scalar_type() == at::kBool || tensor.scalar_type() == at::kByte;
      });
    }
    if (masks == 0) return false;
    if (makes_tensors()) return true;
    const at::Tensor& value = arguments_[2].toTensor();
    const bool adds = arguments_.size() > 3 && arguments_[3].toBool();
    return masks != 1 || indices != 1 || value.numel() != 1 || !value.is_cpu() || adds;
  }

  // An empty out= is given the memory that the result needs. Operators return what they have
  // filled.
  void resize_outputs() {
    std::vector<at::Tensor> outputs;
    for (size_t i = 0; i < arguments_.size(); ++i) {
      const bool is_out = schema_.arguments()[i].is_out() && arguments_[i].isTensor();
      if (is_out) outputs.push_back(arguments_[i].toTensor());
    }
    const auto is_empty = [](const at::Tensor& output) { return output.numel() == 0; };
    if (std::none_of(outputs.begin(), outputs.end(), is_empty)) return;
    const auto wanted = on_meta(op_, arguments_);
    for (size_t i = 0; i < outputs.size(); ++i) {
      const at::Tensor& shape = wanted->at(i).toTensor();
      if (!is_empty(outputs[i]) || shape.numel() == 0) continue;
      const at::Tensor made =
          empty_on(device_, shape.sizes(), shape.strides(), shape.scalar_type());
      rebind(outputs[i], made.storage(), made.sizes(), made.strides(), 0);
    }
  }

  void run_at_once() {
    const Lock lock(simulator().mutex);
    simulator().synchronize(simulator().current(device_));
    Stack made = *cpu_;
    run_seeded(draw_, [&] { call(op_, made); });
    std::vector<c10::IValue> answers;
    for (size_t i = 0; i < made.size(); ++i) {
      if (writes(schema_.returns()[i])) {
        answers.push_back(written(schema_.returns()[i]));
      } else if (!is_tensor_or_list(schema_.returns()[i])) {
        answers.push_back(made[i]);
      } else {
        answers.push_back(changed(made[i], [&](const at::Tensor& tensor) {
          at::Tensor on = empty_on(device_, tensor.sizes(), tensor.strides(), tensor.scalar_type());
          if (tensor.numel() != 0) host_view(on).copy_(tensor);
          return on;
        }));
      }
    }
    answer(std::move(answers));
  }

  std::vector<c10::IValue> views(const Stack& meta) const {
    const at::Tensor& self = arguments_[0].toTensor();
    std::vector<c10::IValue> answers;
    for (const auto& value : meta) {
      answers.push_back(changed(value, [&](const at::Tensor& seen) {
        return alias_of(self, seen.sizes(), seen.strides(),
                        self.storage_offset() + seen.storage_offset());
      }));
    }
    return answers;
  }

  // The argument that an operator writes and returns.
  const c10::IValue& written(const c10::Argument& made) const {
    for (size_t i = 0; i < arguments_.size(); ++i) {
      const auto* alias = schema_.arguments()[i].alias_info();
      if (alias != nullptr && *alias == *made.alias_info()) return arguments_[i];
    }
    TORCH_CHECK(false, schema_.name(), " returns an argument that it has not got");
  }

  void run_later(const Stack& meta) {
    struct Result {
      size_t place;
      int64_t part;  // of a list; -1: the tensor itself
      at::Tensor memory;
    };
    std::vector<Result> results;
    std::vector<c10::IValue> answers;
    for (size_t i = 0; i < schema_.returns().size(); ++i) {
      if (writes(schema_.returns()[i])) {
        answers.push_back(written(schema_.returns()[i]));
        continue;
      }
      int64_t part = meta[i].isTensorList() ? 0 : -1;
      answers.push_back(changed(meta[i], [&](const at::Tensor& shape) {
        at::Tensor made = empty_on(device_, shape.sizes(), shape.strides(), shape.scalar_type());
        results.push_back({i, part, host_view(made)});
        part += part >= 0;
        return made;
      }));
    }
    const std::string name = schema_.name();
    const bool is_mul = name == "aten::mul" || name == "aten::mul_";
    simulator().launch(device_, is_mul ? "vectorized_elementwise mul" : name,
                       [op = op_, cpu = cpu_, draw = draw_, results, name]() mutable {
                         try {
                           Stack made = *cpu;
                           run_seeded(draw, [&] { call(op, made); });
                           for (Result& result : results) {
                             const at::Tensor found =
                                 result.part < 0 ? made[result.place].toTensor()
                                                 : made[result.place].toTensorVector()[result.part];
                             // What the CPU leaves out stays filled with NaN.
                             if (!found.defined() || found.numel() == 0) continue;
                             if (found.sizes() == result.memory.sizes()) result.memory.copy_(found);
                           }
                         } catch (const std::exception& error) {
                           TORCH_CHECK(false, "launched before, ", name, ": ", error.what());
                         }
                       });
    answer(std::move(answers));
  }

  void answer(std::vector<c10::IValue> answers) {
    torch::jit::drop(stack_, arguments_.size());
    for (auto& value : answers) stack_.push_back(std::move(value));
  }

  const c10::OperatorHandle& op_;
  const c10::FunctionSchema& schema_;
  Stack& stack_;
  std::vector<c10::IValue> arguments_;
  int device_;
  std::shared_ptr<Stack> cpu_ = std::make_shared<Stack>();
  std::function<uint64_t()> draw_;
};

void fall_back(const c10::OperatorHandle& op, Stack* stack) { Call(op, *stack).run(); }

}  // namespace
}  // namespace sim

TORCH_LIBRARY_IMPL(_, CUDA, m) {
  m.fallback(torch::CppFunction::makeFromBoxedFunction<&sim::fall_back>());
}
