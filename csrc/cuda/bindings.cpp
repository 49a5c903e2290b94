// The Python module sedd_fast._cuda. It receives raw addresses and a stream and does not use torch.
// Its only caller, sedd_fast.backends.cuda, is responsible for dtypes, layouts and lifetimes.
#include <pybind11/pybind11.h>

#include <stdexcept>
#include <string>

#include "operations.h"

namespace py = pybind11;
using namespace sedd;

namespace {

template <class T>
T* pointer(uintptr_t address) {
  return reinterpret_cast<T*>(address);
}

// A (B, L, dim) tensor of scores, or its gradient, which has unit stride over states.
struct Tensor {
  uintptr_t data;
  DType dtype;
  int64_t batch;
  Layout layout;

  int64_t rows() const { return batch * layout.length; }
};

Tensor make_tensor(uintptr_t data, int dtype, const py::tuple& shape, const py::tuple& strides) {
  const auto at = [](const py::tuple& t, int i) { return t[i].cast<int64_t>(); };
  return {data,
          static_cast<DType>(dtype),
          at(shape, 0),
          {at(shape, 1), at(shape, 2), at(strides, 0), at(strides, 1), at(strides, 2)}};
}

EntropyCall make_entropy(const Tensor& scores, uintptr_t sigma, uintptr_t x_t, uintptr_t x_0,
                         uintptr_t row_weight, int graph, int64_t vocab, int64_t mask) {
  EntropyCall call{};
  call.arguments.log_score = pointer<const void>(scores.data);
  call.arguments.scores = scores.layout;
  call.arguments.sigma = pointer<const double>(sigma);
  call.arguments.x_t = pointer<const int64_t>(x_t);
  call.arguments.x_0 = pointer<const int64_t>(x_0);
  call.arguments.row_weight = pointer<const double>(row_weight);
  call.arguments.scale = 1;
  call.arguments.process = {static_cast<Graph>(graph), vocab, mask};
  call.rows = scores.rows();
  call.dtype = scores.dtype;
  return call;
}

void set_gradient(EntropyCall& call, const Tensor& gradient, uintptr_t upstream, double scale) {
  call.arguments.grad = pointer<void>(gradient.data);
  call.arguments.gradient = gradient.layout;
  call.arguments.upstream = pointer<const double>(upstream);
  call.arguments.scale = scale;
  call.grad_fp32 = gradient.dtype != call.dtype;
}

ReverseCall make_reverse(const Tensor& scores, uintptr_t x_t, uintptr_t sigma, uintptr_t dsigma,
                         uintptr_t u, uintptr_t x_s, int graph, int64_t vocab, int64_t mask,
                         int method, double inverse_temperature, double top_p) {
  return {{pointer<const void>(scores.data),
           scores.layout,
           pointer<const int64_t>(x_t),
           pointer<const double>(sigma),
           pointer<const double>(dsigma),
           pointer<const double>(u),
           pointer<int64_t>(x_s),
           {static_cast<Graph>(graph), vocab, mask},
           static_cast<Method>(method),
           inverse_temperature,
           top_p},
          scores.rows(),
          scores.dtype};
}

TransitionArguments make_transition(uintptr_t x_0, uintptr_t sigma, uintptr_t u, uintptr_t x_t,
                                    int64_t batch, int64_t length, int graph, int64_t vocab,
                                    int64_t mask) {
  return {pointer<const int64_t>(x_0),
          pointer<const double>(sigma),
          pointer<const double>(u),
          pointer<int64_t>(x_t),
          batch,
          length,
          {static_cast<Graph>(graph), vocab, mask}};
}

// Raises a RuntimeError that names the operation if a launch failed.
void check(const char* op, int device, Message message) {
  if (!message) return;
  throw std::runtime_error(std::string(op) + " on cuda:" + std::to_string(device) +
                           " could not be launched: " + message);
}

}  // namespace

PYBIND11_MODULE(_cuda, m) {
  m.doc() = "Fused SEDD operations on NVIDIA GPUs (see sedd_fast.backends.cuda).";
  using nogil = py::call_guard<py::gil_scoped_release>;  // a first launch loads the kernels

  py::class_<Tensor>(m, "Tensor", py::module_local()).def(py::init(&make_tensor));
  py::class_<EntropyCall>(m, "Entropy", py::module_local())
      .def(py::init(&make_entropy))
      .def("set_loss",
           [](EntropyCall& call, uintptr_t loss) { call.arguments.loss = pointer<void>(loss); })
      .def("set_gradient", &set_gradient);
  py::class_<ReverseCall>(m, "Reverse", py::module_local()).def(py::init(&make_reverse));
  py::class_<TransitionArguments>(m, "Transition", py::module_local())
      .def(py::init(&make_transition));

  m.def(
      "score_entropy",
      [](const EntropyCall& call, int device, uintptr_t stream) {
        check("score_entropy", device, score_entropy(call, device, pointer<void>(stream)));
      },
      nogil());
  m.def(
      "reverse_step",
      [](const ReverseCall& call, int device, uintptr_t stream) {
        check("reverse_step", device, reverse_step(call, device, pointer<void>(stream)));
      },
      nogil());
  m.def(
      "sample_transition",
      [](const TransitionArguments& arguments, int device, uintptr_t stream) {
        check("sample_transition", device,
              sample_transition(arguments, device, pointer<void>(stream)));
      },
      nogil());
  m.def(
      "most_states",
      [](int dtype, int device) { return most_states(static_cast<DType>(dtype), device); },
      "The most states that reverse_step supports on a device.", nogil());
  m.def("unsupported", &unsupported, "Why the kernels do not run on a device, or None.", nogil());
}
