// The Python module sedd_fast._cpu. It receives raw addresses and does not use torch. Its only
// callers, the modules of sedd_fast/backends/cpp, are responsible for dtypes, lifetimes and
// contiguity.
#include <pybind11/pybind11.h>

#include <array>

#include "common/philox.h"
#include "cpu/clock.h"
#include "cpu/memory.h"
#include "cpu/operations.h"
#include "cpu/parallel.h"

#if defined(__GLIBC__)
#include <malloc.h>
#endif

namespace py = pybind11;
using namespace sedd;

namespace {

template <class T>
T* pointer(uintptr_t address) {
  return reinterpret_cast<T*>(address);
}

// The address of an array, and whether it is float32 rather than float64.
using Array = std::pair<uintptr_t, bool>;

Reals reals(const Array& array) { return {pointer<const void>(array.first), array.second}; }
RealOutput output(const Array& array) { return {pointer<void>(array.first), array.second}; }

Scores make_scores(uintptr_t data, int dtype, std::array<int64_t, 3> shape,
                   std::array<int64_t, 3> strides) {
  return {pointer<const char>(data),
          static_cast<DType>(dtype),
          shape[0],
          shape[1],
          shape[2],
          strides[0],
          strides[1],
          strides[2]};
}

EntropyInputs make_entropy(const Scores& scores, const Array& sigma, uintptr_t x_t, uintptr_t x_0,
                           const Array& row_weight, int graph, int64_t vocab, int64_t mask) {
  return {scores,
          reals(sigma),
          pointer<const int64_t>(x_t),
          pointer<const int64_t>(x_0),
          reals(row_weight),
          {static_cast<Graph>(graph), vocab, mask}};
}

ReverseInputs make_reverse(const Scores& scores, uintptr_t x_t, const Array& sigma,
                           const Array& dsigma, int graph, int64_t vocab, int64_t mask, int method,
                           bool scale_by_sigma, double inverse_temperature, double top_p) {
  return {scores,
          pointer<const int64_t>(x_t),
          reals(sigma),
          reals(dsigma),
          {static_cast<Graph>(graph), vocab, mask},
          static_cast<Method>(method),
          scale_by_sigma,
          inverse_temperature,
          top_p};
}

RowSumsInputs make_row_sums(const Scores& scores, uintptr_t x_t, uintptr_t x_0, uintptr_t a,
                            uintptr_t b, int term, int graph, int64_t vocab, int64_t mask) {
  return {scores,
          pointer<const int64_t>(x_t),
          pointer<const int64_t>(x_0),
          pointer<const double>(a),
          pointer<const double>(b),
          static_cast<Term>(term),
          {static_cast<Graph>(graph), vocab, mask}};
}

HeadBlock make_block(uintptr_t scores, int dtype, int64_t rows, int64_t states, int64_t stride,
                     int64_t first, uintptr_t bias, uintptr_t gradient, bool grad_fp32,
                     uintptr_t columns) {
  return {pointer<char>(scores),
          static_cast<DType>(dtype),
          rows,
          states,
          stride,
          first,
          pointer<const void>(bias),
          pointer<char>(gradient),
          grad_fp32,
          pointer<char>(columns)};
}

HeadRows make_rows(uintptr_t x_t, uintptr_t x_0, uintptr_t a, uintptr_t b, uintptr_t c,
                   uintptr_t sum_exp, uintptr_t sum_log, uintptr_t f_x_0, uintptr_t overflowed) {
  return {pointer<const int64_t>(x_t), pointer<const int64_t>(x_0), pointer<const double>(a),
          pointer<const double>(b),    pointer<const double>(c),    pointer<double>(sum_exp),
          pointer<double>(sum_log),    pointer<double>(f_x_0),      pointer<uint8_t>(overflowed)};
}

CrossEntropyRows make_cross_entropy_rows(uintptr_t target, uintptr_t shift, uintptr_t sum_exp,
                                         uintptr_t f_target, uintptr_t e_target) {
  return {pointer<const int64_t>(target), pointer<double>(shift), pointer<double>(sum_exp),
          pointer<double>(f_target), pointer<double>(e_target)};
}

DenoiseRows make_denoise_rows(uintptr_t largest, uintptr_t sum_exp, uintptr_t weighted,
                              uintptr_t groups, int64_t group, int64_t stride, uintptr_t top,
                              uintptr_t second, uintptr_t argmax) {
  return {pointer<double>(largest),
          pointer<double>(sum_exp),
          pointer<double>(weighted),
          pointer<double>(groups),
          group,
          stride,
          pointer<double>(top),
          pointer<double>(second),
          pointer<int64_t>(argmax)};
}

LinearHead make_head(uintptr_t weight, int weight_dtype, int64_t states, int64_t width,
                     int64_t row_stride, int64_t column_stride, uintptr_t bias, uintptr_t hidden,
                     int64_t rows, int dtype, double softcap, int threads) {
  return {pointer<const char>(weight),
          static_cast<DType>(weight_dtype),
          states,
          width,
          row_stride,
          column_stride,
          pointer<const char>(bias),
          pointer<const char>(hidden),
          rows,
          static_cast<DType>(dtype),
          softcap,
          threads};
}

CrossEntropyPass make_cross_entropy_pass(uintptr_t target, uintptr_t order, uintptr_t shift,
                                         uintptr_t sum_exp, uintptr_t f_target, uintptr_t e_target,
                                         uintptr_t factor, uintptr_t missing, uintptr_t kept,
                                         int64_t first_kept, bool kept_is_formed,
                                         uintptr_t of_hidden, uintptr_t scaled, uintptr_t of_weight,
                                         int of_weight_dtype, bool add, uintptr_t of_bias) {
  return {pointer<const int64_t>(target),
          pointer<const int64_t>(order),
          pointer<const double>(shift),
          pointer<double>(sum_exp),
          pointer<double>(f_target),
          pointer<double>(e_target),
          pointer<const double>(factor),
          pointer<const double>(missing),
          pointer<char>(kept),
          first_kept,
          kept_is_formed,
          pointer<char>(of_hidden),
          pointer<const char>(scaled),
          pointer<char>(of_weight),
          static_cast<DType>(of_weight_dtype),
          add,
          pointer<char>(of_bias)};
}

DenoisePass make_denoise_pass(double inverse_temperature, uintptr_t largest, uintptr_t sum_exp,
                              uintptr_t weighted, uintptr_t groups, uintptr_t group_shift,
                              uintptr_t top, uintptr_t second, uintptr_t argmax,
                              uintptr_t embedding) {
  return {inverse_temperature,       pointer<double>(largest), pointer<double>(sum_exp),
          pointer<double>(weighted), pointer<double>(groups),  pointer<double>(group_shift),
          pointer<double>(top),      pointer<double>(second),  pointer<int64_t>(argmax),
          pointer<char>(embedding)};
}

// The block of a counter, in words of 32 bits; for tests.
py::tuple philox(const py::tuple& counter, uint64_t key) {
  const auto word = [&](int i) { return counter[i].cast<uint64_t>(); };
  Philox<OneLane> block{word(0), word(1), word(2), word(3)};
  block.encrypt(key);
  const auto lower = [](uint64_t x) { return static_cast<uint32_t>(x); };
  return py::make_tuple(lower(block.x0), lower(block.x1), lower(block.x2), lower(block.x3));
}

// Makes the allocator keep large blocks after they are freed instead of returning them to the
// system, which would have to zero their pages again at the next allocation. False where the
// allocator has no such option.
bool reuse_memory() {
#if defined(__GLIBC__)
  constexpr int never = 2147483647;
  return mallopt(M_MMAP_MAX, 0) && mallopt(M_TRIM_THRESHOLD, never) && mallopt(M_TOP_PAD, 64 << 20);
#else
  return false;
#endif
}

}  // namespace

PYBIND11_MODULE(_cpu, m) {
  m.doc() = "Fused SEDD operations on the CPU (see sedd_fast.backends.cpp).";
  using nogil = py::call_guard<py::gil_scoped_release>;

  py::class_<Scores>(m, "Scores")
      .def(
          py::init([](uintptr_t data, int dtype, const py::tuple& shape, const py::tuple& strides) {
            const auto three = [](const py::tuple& t) {
              return std::array<int64_t, 3>{t[0].cast<int64_t>(), t[1].cast<int64_t>(),
                                            t[2].cast<int64_t>()};
            };
            return make_scores(data, dtype, three(shape), three(strides));
          }));
  py::class_<EntropyInputs>(m, "EntropyInputs").def(py::init(&make_entropy));
  py::class_<ReverseInputs>(m, "ReverseInputs").def(py::init(&make_reverse));
  py::class_<RowSumsInputs>(m, "RowSumsInputs").def(py::init(&make_row_sums));
  py::class_<HeadBlock>(m, "HeadBlock").def(py::init(&make_block));
  py::class_<HeadRows>(m, "HeadRows").def(py::init(&make_rows));
  py::class_<CrossEntropyRows>(m, "CrossEntropyRows").def(py::init(&make_cross_entropy_rows));
  py::class_<DenoiseRows>(m, "DenoiseRows").def(py::init(&make_denoise_rows));
  py::class_<LinearHead>(m, "LinearHead")
      .def(py::init(&make_head))
      .def_property_readonly("block", &LinearHead::block)
      .def_property_readonly("padded_rows", &LinearHead::padded_rows);
  py::class_<CrossEntropyPass>(m, "CrossEntropyPass").def(py::init(&make_cross_entropy_pass));
  py::class_<DenoisePass>(m, "DenoisePass").def(py::init(&make_denoise_pass));

  m.def(
      "fill_uniforms",
      [](uint64_t key, uint64_t first, uintptr_t u, int64_t count, int threads) {
        fill_uniforms(key, first, pointer<double>(u), count, threads);
      },
      nogil());
  m.def("philox", &philox);
  m.def(
      "sample_transition",
      [](uintptr_t x_0, const Array& sigma, uintptr_t u, uintptr_t x_t, int64_t batch,
         int64_t length, int graph, int64_t vocab, int64_t mask, int threads) {
        return sample_transition(pointer<const int64_t>(x_0), reals(sigma),
                                 pointer<const double>(u), pointer<int64_t>(x_t), batch, length,
                                 {static_cast<Graph>(graph), vocab, mask}, threads);
      },
      nogil());
  m.def(
      "score_entropy",
      [](const EntropyInputs& inputs, const Array& loss, int threads) {
        return score_entropy(inputs, output(loss), threads);
      },
      nogil());
  m.def(
      "score_entropy_backward",
      [](const EntropyInputs& inputs, const Array& grad_loss, uintptr_t grad, int threads) {
        return score_entropy_backward(inputs, reals(grad_loss), pointer<void>(grad), threads);
      },
      nogil());
  m.def(
      "score_entropy_with_grad",
      [](const EntropyInputs& inputs, double scale, const Array& loss, uintptr_t grad,
         int threads) {
        return score_entropy_with_grad(inputs, scale, output(loss), pointer<void>(grad), threads);
      },
      nogil());
  m.def(
      "row_sums",
      [](const RowSumsInputs& inputs, uintptr_t total, uintptr_t log_x_0, int threads) {
        return row_sums(inputs, pointer<double>(total), pointer<double>(log_x_0), threads);
      },
      nogil());
  m.def(
      "row_sums_backward",
      [](const RowSumsInputs& inputs, uintptr_t grad_total, uintptr_t grad_log_x_0, uintptr_t grad,
         uintptr_t grad_b, int threads) {
        return row_sums_backward(inputs, pointer<const double>(grad_total),
                                 pointer<const double>(grad_log_x_0), pointer<void>(grad),
                                 pointer<double>(grad_b), threads);
      },
      nogil());
  m.def("linear_score_entropy", &linear_score_entropy, nogil());
  m.def("linear_cross_entropy", &linear_cross_entropy, nogil());
  m.def("linear_denoise", &linear_denoise, nogil());
  m.def(
      "head_largest",
      [](const LinearHead& head, int64_t states, uintptr_t largest) {
        head_largest(head, states, pointer<double>(largest));
      },
      nogil());
  m.def("head_cross_entropy", &head_cross_entropy, nogil());
  m.def("head_denoise", &head_denoise, nogil());
  m.def(
      "head_group_scores",
      [](const LinearHead& head, uintptr_t group, uintptr_t scores) {
        head_group_scores(head, pointer<const int64_t>(group), pointer<char>(scores));
      },
      nogil());
  m.def(
      "reverse_step",
      [](const ReverseInputs& inputs, uintptr_t u, uintptr_t x_s, int threads) {
        int64_t undrawable = -1;
        const bool valid = reverse_step(inputs, pointer<const double>(u), pointer<int64_t>(x_s),
                                        &undrawable, threads);
        return std::make_pair(valid, undrawable);
      },
      nogil());
  m.def(
      "reverse_probs",
      [](const ReverseInputs& inputs, uintptr_t probs, int threads) {
        int64_t undrawable = -1;
        const bool valid = reverse_probs(inputs, pointer<void>(probs), &undrawable, threads);
        return std::make_pair(valid, undrawable);
      },
      nogil());

  m.def("use_openmp", &use_openmp,
        "Use the OpenMP runtime with this address of GOMP_parallel; 0: use own threads.");
  m.def("uses_openmp", &uses_openmp);
  m.def("instruction_set", &instruction_set);
  m.def("clock_hz", &clock_hz, nogil(),
        "Cycles per second of the core that runs the caller, measured in about 10 ms; 0: unknown.");
  m.def("reuse_memory", &reuse_memory);
  m.def("ask_for_huge_pages",
        [](uintptr_t data, int64_t bytes) { ask_for_huge_pages(pointer<void>(data), bytes); });
}
