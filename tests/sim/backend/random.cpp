#include "random.h"

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/ops/empty.h>
#include <c10/core/GeneratorImpl.h>

#include <array>

namespace sim {
namespace {

constexpr uint64_t kOffsetPerLaunch = 4;

struct Position {
  uint64_t seed = c10::default_rng_seed_val;
  uint64_t offset = 0;
};

uint64_t mixed(const Position& at) {
  uint64_t z = at.seed * 0x9e3779b97f4a7c15u + at.offset * 0xd1342543de82ef95u;
  z += 0x2545f4914f6cdd1du;
  z = (z ^ (z >> 31)) * 0xbf58476d1ce4e5b9u;
  return z ^ (z >> 29);
}

class CudaGenerator final : public c10::GeneratorImpl {
 public:
  explicit CudaGenerator(int device)
      : GeneratorImpl(cuda(device), c10::DispatchKeySet(c10::DispatchKey::CUDA)) {}

  Position& position() { return *position_; }

  void set_current_seed(uint64_t seed) override {
    if (simulator().is_capturing(device_.index())) {
      TORCH_CHECK(seed == position_->seed, "a generator's seed cannot change during a capture");
      return;
    }
    *position_ = {seed, 0};
  }
  void set_offset(uint64_t offset) override {
    refuse_in_capture();
    position_->offset = offset;
  }
  uint64_t get_offset() const override {
    refuse_in_capture();
    return position_->offset;
  }
  uint64_t current_seed() const override {
    refuse_in_capture();
    return position_->seed;
  }
  uint64_t seed() override {
    refuse_in_capture();
    *position_ = {c10::detail::getNonDeterministicRandom(), 0};
    return position_->seed;
  }

  void set_state(const c10::TensorImpl& state) override {
    refuse_in_capture();
    TORCH_CHECK(state.numel() == sizeof(Position) && state.is_cpu(), "RNG state is wrong size");
    std::memcpy(position_.get(), state.data(), sizeof(Position));
  }
  c10::intrusive_ptr<c10::TensorImpl> get_state() const override {
    refuse_in_capture();
    at::Tensor state = at::empty({sizeof(Position)}, at::kByte);
    std::memcpy(state.mutable_data_ptr(), position_.get(), sizeof(Position));
    return state.getIntrusivePtr();
  }
  void graphsafe_set_state(const c10::intrusive_ptr<c10::GeneratorImpl>& other) override {
    position_ = static_cast<CudaGenerator&>(*other).position_;
  }
  c10::intrusive_ptr<c10::GeneratorImpl> graphsafe_get_state() const override {
    auto other = c10::make_intrusive<CudaGenerator>(device_.index());
    other->position_ = position_;
    return other;
  }
  static c10::DeviceType device_type() { return c10::kCUDA; }

 private:
  CudaGenerator* clone_impl() const override {
    auto* other = new CudaGenerator(device_.index());
    *other->position_ = *position_;
    return other;
  }
  void refuse_in_capture() const {
    const Lock lock(simulator().mutex);
    TORCH_CHECK(!simulator().is_capturing(device_.index()),
                "a generator's state is out of reach while its device captures");
  }

  std::shared_ptr<Position> position_ = std::make_shared<Position>();
};

CudaGenerator& impl(const at::Generator& generator) {
  return *static_cast<CudaGenerator*>(generator.unsafeGetGeneratorImpl());
}

}  // namespace

struct Registered {
  at::Generator generator;
  std::shared_ptr<Position> base = std::make_shared<Position>();  // on the device
  uint64_t increment = 0;                                         // of a whole replay
};

const at::Generator& default_generator(int device) {
  static auto* made = new std::array<at::Generator, kDevices>;
  at::Generator& generator = made->at(device);
  if (!generator.defined()) generator = new_generator(device);
  return generator;
}

at::Generator new_generator(int device) { return at::make_generator<CudaGenerator>(device); }

void register_generator(Graph& graph, const at::Generator& generator) {
  for (const auto& known : graph.generators) {
    if (known->generator == generator) return;
  }
  graph.generators.push_back(std::make_shared<Registered>(Registered{generator}));
}

void begin_replay(Registered& registered, Stream& stream) {
  Position& position = impl(registered.generator).position();
  simulator().push_eagerly(stream, [base = registered.base, now = position] { *base = now; });
  position.offset += registered.increment;
}

std::function<uint64_t()> draw(const at::Generator& given, int device) {
  const Lock lock(simulator().mutex);
  const at::Generator generator = given.defined() ? given : default_generator(device);
  const GraphPtr& graph = simulator().current(device).capture;
  if (graph == nullptr) {
    Position& position = impl(generator).position();
    const Position now = position;
    position.offset += kOffsetPerLaunch;
    return [now] { return mixed(now); };
  }
  for (const auto& registered : graph->generators) {
    if (registered->generator != generator) continue;
    const uint64_t at = registered->increment;
    registered->increment += kOffsetPerLaunch;
    return [base = registered->base, at] { return mixed({base->seed, base->offset + at}); };
  }
  TORCH_CHECK(false, "a graph draws from a generator that is not registered with it");
}

void run_seeded(const std::function<uint64_t()>& draw, const Work& run) {
  if (!draw) {
    run();
    return;
  }
  at::Generator generator = at::detail::getDefaultCPUGenerator();
  struct Restore {
    at::Generator& generator;
    at::Tensor state = generator.get_state();
    ~Restore() { generator.set_state(state); }
  } restore{generator};
  generator.set_current_seed(draw());
  run();
}

}  // namespace sim
