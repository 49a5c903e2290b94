// The GPU's row functions (csrc/common) on the host: a block's threads are coroutines of one
// thread.
//
// A coroutine runs until it reaches a barrier (sync, or a shuffle, which its whole warp must
// reach). The order in which they run is the caller's, and one warp runs as far ahead of the others
// as it can: a missing barrier shows as a wrong result, or as one that depends on the order.
// test_cuda_rows.py compiles this into a library and calls it through ctypes.
#include <setjmp.h>
#include <ucontext.h>

#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

namespace {
// Of the last run: accesses of several bytes at once by their width, and those not aligned to it.
struct Accesses {
  int64_t loads[17] = {}, stores[17] = {}, misaligned = 0;
};
Accesses accesses;
void count(int64_t (&of)[17], const void* address, int bytes) {
  ++of[bytes];
  if (reinterpret_cast<uintptr_t>(address) % bytes) ++accesses.misaligned;
}
}  // namespace
#define SEDD_COUNT_LOAD(address, bytes) count(accesses.loads, address, bytes)
#define SEDD_COUNT_STORE(address, bytes) count(accesses.stores, address, bytes)

#include "common/entropy_row.h"
#include "common/limits.h"
#include "common/reverse_row.h"
#include "common/transition.h"

namespace {

using namespace sedd;

constexpr size_t kStack = 64 << 10;
constexpr int kMostThreads = 256;
constexpr double kBehind = -77;  // after the chunks of a row

enum Status { done = 0, stuck = 1, unaligned = 2, overrun = 3 };

class Machine;

struct HostBlock {
  Machine* machine;
  int index;

  int thread() const { return index; }
  int threads() const;
  void sync();
  template <class V>
  V shuffle(V value, int lane);
};

class Machine {
 public:
  Machine(int threads, bool reversed)
      : threads_(threads), reversed_(reversed), warps_(threads / 32) {
    fibers_.resize(threads);
    for (Fiber& fiber : fibers_) fiber.stack.reset(new char[kStack]);
  }

  // Runs `body` in every thread; false if they wait for each other for ever.
  bool run(const std::function<void(HostBlock&)>& body) {
    body_ = &body;
    running_ = threads_;
    arrived_ = 0;
    for (Warp& warp : warps_) warp.arrived = 0;
    for (int i = 0; i < threads_; ++i) start(i);
    while (running_ > 0) {
      if (!advance()) return false;
    }
    return true;
  }

  int threads() const { return threads_; }

  // All threads that have not returned.
  void sync() {
    const int round = round_;
    if (++arrived_ >= running_) return release();
    wait_for_another(round_, round);
  }

  double exchange(int thread, double value, int lane) {
    Warp& warp = warps_[thread / 32];
    double* slots = warp.slots[warp.round % 2];  // the other half may still be read
    slots[thread % 32] = value;
    const int round = warp.round;
    if (++warp.arrived == 32) {
      warp.arrived = 0;
      ++warp.round;
    }
    if (round == warp.round) wait_for_another(warp.round, round);
    progressed_ = true;
    return slots[lane];
  }

 private:
  struct Fiber {
    ucontext_t context;  // to enter it; then _longjmp, which needs no system call
    jmp_buf jump;
    std::unique_ptr<char[]> stack;
    bool entered = false, finished = true;
    const int* round = nullptr;  // what it waits for: that this is no longer `seen`
    int seen = 0;
  };
  struct Warp {
    int arrived = 0, round = 0;
    double slots[2][32];
  };

  // The first warp that can go on does; so each gets as far ahead of the next as barriers let it.
  bool advance() {
    progressed_ = false;
    for (int i = 0; i < threads_; ++i) {
      resume(reversed_ ? threads_ - 1 - i : i);
      if (i % 32 == 31 && progressed_) return true;
    }
    return false;
  }

  void release() {
    arrived_ = 0;
    ++round_;
    progressed_ = true;
  }

  static void enter(unsigned high, unsigned low, int index) {
    const uintptr_t address = static_cast<uintptr_t>(high) << 32 | low;
    Machine* machine = reinterpret_cast<Machine*>(address);
    HostBlock block{machine, index};
    (*machine->body_)(block);
    machine->fibers_[index].finished = true;
    machine->progressed_ = true;
    // Who has returned is no longer waited for.
    if (--machine->running_ > 0 && machine->arrived_ >= machine->running_) machine->release();
    _longjmp(machine->scheduler_, 1);
  }

  void start(int i) {
    Fiber& fiber = fibers_[i];
    fiber.entered = fiber.finished = false;
    fiber.round = nullptr;
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = fiber.stack.get();
    fiber.context.uc_stack.ss_size = kStack;
    fiber.context.uc_link = nullptr;  // it never returns
    const uintptr_t address = reinterpret_cast<uintptr_t>(this);
    makecontext(&fiber.context, reinterpret_cast<void (*)()>(&enter), 3,
                static_cast<unsigned>(address >> 32), static_cast<unsigned>(address), i);
  }

  void resume(int i) {
    Fiber& fiber = fibers_[i];
    if (fiber.finished || (fiber.round && *fiber.round == fiber.seen)) return;
    fiber.round = nullptr;
    current_ = i;
    if (_setjmp(scheduler_)) return;
    if (fiber.entered) _longjmp(fiber.jump, 1);
    fiber.entered = true;
    setcontext(&fiber.context);
  }

  void wait_for_another(const int& round, int seen) {
    Fiber& fiber = fibers_[current_];
    fiber.round = &round;
    fiber.seen = seen;
    if (!_setjmp(fiber.jump)) _longjmp(scheduler_, 1);
    progressed_ = true;
  }

  int threads_;
  bool reversed_;
  std::vector<Warp> warps_;
  std::vector<Fiber> fibers_;
  jmp_buf scheduler_;
  const std::function<void(HostBlock&)>* body_ = nullptr;
  int running_ = 0, arrived_ = 0, round_ = 0, current_ = 0;
  bool progressed_ = false;
};

int HostBlock::threads() const { return machine->threads(); }
void HostBlock::sync() { machine->sync(); }
template <class V>
V HostBlock::shuffle(V value, int lane) {
  return static_cast<V>(machine->exchange(index, static_cast<double>(value), lane));
}

template <class Body>
int for_rows(int64_t rows, int threads, bool reversed, const Body& body) {
  if (threads > kMostThreads) return stuck;
  Machine machine(threads, reversed);
  accesses = Accesses();
  for (int64_t row = 0; row < rows; ++row) {
    if (!machine.run([&](HostBlock& block) { body(block, row); })) return stuck;
  }
  return accesses.misaligned ? unaligned : done;
}

template <class T, class G>
int entropy(const EntropyArguments& in, int64_t rows, int threads, bool reversed) {
  EntropyShared shared;
  return for_rows(rows, threads, reversed, [&](HostBlock& block, int64_t row) {
    if (in.process.graph == Graph::uniform && in.loss) {
      entropy_row<T, G, true>(block, shared, in, row);
    } else {
      entropy_row<T, G, false>(block, shared, in, row);
    }
  });
}

template <class T>
int entropy(const EntropyArguments& in, bool grad_fp32, int64_t rows, int threads, bool reversed) {
  if (!in.grad) return entropy<T, NoGradient>(in, rows, threads, reversed);
  if constexpr (std::is_same<T, Half>::value) {
    if (grad_fp32) return entropy<T, float>(in, rows, threads, reversed);
  }
  return entropy<T, T>(in, rows, threads, reversed);
}

template <class T>
int reverse(const ReverseArguments& in, int64_t rows, int threads, bool reversed) {
  ReverseShared shared;
  std::vector<double> chunks(chunk_bytes<T>(in.scores.dim) / sizeof(double));
  chunks.push_back(kBehind);
  const bool clamped = in.process.graph == Graph::uniform && in.method != Method::euler;
  const bool filtered = in.filtered();
  const int status = for_rows(rows, threads, reversed, [&](HostBlock& block, int64_t row) {
    const auto run = clamped ? (filtered ? reverse_row<T, true, true, HostBlock>
                                         : reverse_row<T, true, false, HostBlock>)
                             : (filtered ? reverse_row<T, false, true, HostBlock>
                                         : reverse_row<T, false, false, HostBlock>);
    run(block, shared, chunks.data(), in, row);
  });
  return chunks.back() == kBehind ? status : overrun;
}

}  // namespace

// The structures are those of csrc/common; test_cuda_rows.py mirrors them.
extern "C" {

int run_entropy(const EntropyArguments* in, int dtype, int grad_fp32, int64_t rows, int threads,
                int reversed) {
  switch (static_cast<DType>(dtype)) {
    case DType::float32:
      return entropy<float>(*in, grad_fp32, rows, threads, reversed);
    case DType::bfloat16:
      return entropy<BFloat16>(*in, grad_fp32, rows, threads, reversed);
    case DType::float16:
      return entropy<Half>(*in, grad_fp32, rows, threads, reversed);
    default:
      return entropy<double>(*in, grad_fp32, rows, threads, reversed);
  }
}

int run_reverse(const ReverseArguments* in, int dtype, int64_t rows, int threads, int reversed) {
  switch (static_cast<DType>(dtype)) {
    case DType::float32:
      return reverse<float>(*in, rows, threads, reversed);
    case DType::bfloat16:
      return reverse<BFloat16>(*in, rows, threads, reversed);
    case DType::float16:
      return reverse<Half>(*in, rows, threads, reversed);
    default:
      return reverse<double>(*in, rows, threads, reversed);
  }
}

void run_transition(const TransitionArguments* in) {
  for (int64_t i = 0; i < in->batch * in->length; ++i) noise_token(*in, i);
}

int64_t most_states_of_a_step(int dtype, int64_t shared) {
  return most_states(static_cast<DType>(dtype), shared);
}
int64_t shared_bytes_of_a_step(int dtype, int64_t dim) {
  const int64_t chunks[] = {chunk_bytes<float>(dim), chunk_bytes<BFloat16>(dim),
                            chunk_bytes<Half>(dim), chunk_bytes<double>(dim)};
  return static_cast<int64_t>(sizeof(ReverseShared)) + chunks[dtype];
}

int64_t wide_loads(int bytes) { return accesses.loads[bytes]; }
int64_t wide_stores(int bytes) { return accesses.stores[bytes]; }

int64_t entropy_arguments_size() { return sizeof(EntropyArguments); }
int64_t reverse_arguments_size() { return sizeof(ReverseArguments); }

void exponentials_of_bfloat16(const float* x, float* e, int64_t count) {
  for (int64_t i = 0; i < count; ++i) e[i] = exponential_of<BFloat16>(x[i]);
}

// Every one of the 2^16 bit patterns there and back: the difference of bits, NaN aside.
int64_t round_trip_errors(int dtype) {
  int64_t errors = 0;
  for (int bits = 0; bits < 65536; ++bits) {
    uint16_t back;
    float value;
    if (static_cast<DType>(dtype) == DType::bfloat16) {
      BFloat16 x;
      value = widen(BFloat16{static_cast<uint16_t>(bits)});
      narrow(value, &x);
      back = x.bits;
    } else {
      Half x;
      value = widen(Half{static_cast<uint16_t>(bits)});
      narrow(value, &x);
      back = x.bits;
    }
    if (value == value && back != bits) ++errors;
  }
  return errors;
}
}
