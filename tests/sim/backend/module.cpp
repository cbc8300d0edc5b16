// What torch.cuda's Python code calls in torch._C of a CUDA build, and the simulator's controls.
#include <pybind11/functional.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>
#include <torch/csrc/Generator.h>

#include "memory.h"
#include "queues.h"
#include "random.h"

namespace py = pybind11;

namespace sim {
namespace {

// torch.cuda.CUDAGraph's base class.
class PyGraph {
 public:
  explicit PyGraph(bool) {}
  PyGraph(const PyGraph&) = delete;
  ~PyGraph() { reset(); }

  void capture_begin(const std::optional<std::pair<int64_t, int64_t>>& pool, const std::string&) {
    const Lock lock(simulator().mutex);
    TORCH_CHECK(!graph_, "This CUDAGraph instance already owns a captured graph");
    const int64_t used = pool ? pool->second : device_memory().new_pool();
    graph_ = simulator().begin_capture(current_device(), used);
    device_memory().retain_pool(used);
    register_generator(*graph_, default_generator(current_device()));
    for (const at::Generator& generator : generators_) register_generator(*graph_, generator);
  }
  void capture_end() {
    const Lock lock(simulator().mutex);
    TORCH_CHECK(graph_, "capture_end() without capture_begin()");
    simulator().end_capture(graph_);
    is_complete_ = true;
    if (!graph_->launches.empty()) return;
    const char* message =
        "The CUDA Graph is empty. This usually means that the graph was attempted to be captured "
        "on wrong device or stream.";
    if (PyErr_WarnEx(PyExc_UserWarning, message, 1) != 0) throw py::error_already_set();
  }
  void register_generator_state(const py::object& generator) {
    generators_.push_back(reinterpret_cast<THPGenerator*>(generator.ptr())->cdata);
  }
  void replay() {
    const Lock lock(simulator().mutex);
    TORCH_CHECK(is_complete_, "Called CUDAGraph::replay without a preceding successful capture.");
    simulator().replay(graph_);
  }
  void reset() {
    const Lock lock(simulator().mutex);
    if (graph_) device_memory().release_pool(graph_->pool);
    graph_.reset();
    is_complete_ = false;
  }
  std::pair<int64_t, int64_t> pool() const {
    TORCH_CHECK(graph_, "Called CUDAGraph::pool() without a preceding successful capture.");
    return {0, graph_->pool};
  }
  size_t num_launches() const { return graph_ ? graph_->launches.size() : 0; }

 private:
  GraphPtr graph_;
  bool is_complete_ = false;
  std::vector<at::Generator> generators_;
};

using StreamData = std::tuple<int64_t, int, int>;  // id, device, device type

StreamData stream_data(int device, int64_t id) {
  return {id, device, static_cast<int>(c10::kCUDA)};
}

int exchange_device(int device) {
  const int before = current_device();
  if (device >= 0) set_current_device(device);
  return before;
}

void define_torch(py::module_ m) {
  m.def("_cuda_getDeviceCount", [] { return kDevices; });
  m.def("_cuda_getDevice", &current_device);
  m.def("_cuda_setDevice", &set_current_device);
  m.def("_cuda_exchangeDevice", &exchange_device);
  m.def("_cuda_maybeExchangeDevice", &exchange_device);
  m.def("_cuda_getCurrentStream",
        [](int device) { return stream_data(device, current_stream_id(device)); });
  m.def("_cuda_getDefaultStream", [](int device) { return stream_data(device, 0); });
  m.def(
      "_cuda_setStream",
      [](int64_t id, int device, int) {
        set_current_device(device);
        set_current_stream_id(device, id);
      },
      py::arg("stream_id"), py::arg("device_index"), py::arg("device_type"));
  m.def("_cuda_synchronize", [] {
    const Lock lock(simulator().mutex);
    simulator().synchronize_device(current_device());
  });
  m.def("_cuda_isCurrentStreamCapturing", [] {
    const Lock lock(simulator().mutex);
    return simulator().is_capturing(current_device());
  });
  m.def("_cuda_set_sync_debug_mode", [](int mode) { simulator().sync_debug_mode = mode; });
  m.def("_cuda_get_sync_debug_mode", [] { return simulator().sync_debug_mode; });
  m.def("_cuda_sleep", [](int64_t) {
    for (int i = 0; i < 20; ++i) simulator().launch(current_device(), "sleep", [] {});
  });
  m.def("_graph_pool_handle", [] {
    const Lock lock(simulator().mutex);
    return std::pair<int64_t, int64_t>(0, device_memory().new_pool());
  });
  py::class_<PyGraph>(m, "_CUDAGraph")
      .def(py::init<bool>(), py::arg("keep_graph") = false)
      .def("capture_begin", &PyGraph::capture_begin, py::arg("pool") = std::nullopt,
           py::arg("capture_error_mode") = "global")
      .def("capture_end", &PyGraph::capture_end)
      .def("register_generator_state", &PyGraph::register_generator_state)
      .def("replay", &PyGraph::replay)
      .def("reset", &PyGraph::reset)
      .def("pool", &PyGraph::pool)
      .def_property_readonly("num_launches", &PyGraph::num_launches);
}

}  // namespace
}  // namespace sim

PYBIND11_MODULE(_backend, m) {
  using namespace sim;
  define_torch(m.def_submodule("torch_c"));
  m.def("default_generators", [] {
    py::tuple made(kDevices);
    for (int device = 0; device < kDevices; ++device) {
      made[device] = py::reinterpret_steal<py::object>(
          THPGenerator_initDefaultGenerator(default_generator(device)));
    }
    return made;
  });
  m.def("allocated", [](int device) { return device_memory().allocated(device); });
  m.def("reserved", [](int device) { return device_memory().reserved(device); });
  m.def("seed", [](uint64_t seed) {
    const Lock lock(simulator().mutex);
    simulator().seed(seed);
  });
  m.def("drain", [] {
    const Lock lock(simulator().mutex);
    simulator().drain();
  });
  m.def("waits", [] { return simulator().waits; });
  m.def("launches", [] { return simulator().launches; });
  m.def("start_profile", [] {
    const Lock lock(simulator().mutex);
    simulator().profile.clear();
    simulator().is_profiling = true;
  });
  m.def("end_profile", [] {
    const Lock lock(simulator().mutex);
    simulator().is_profiling = false;
    return simulator().profile;
  });
  m.def("fingerprint", [] { return simulator().fingerprint; });
}
