// A (B, L, dim) tensor of log scores in memory, and the invalid arguments that a loop found.
#pragma once

#include <atomic>
#include <cmath>
#include <cstring>
#include <vector>

#include "common/process.h"
#include "simd/rows.h"

namespace sedd {

inline int64_t item_size(DType dtype) {
  return dtype == DType::float64 ? 8 : dtype == DType::float32 ? 4 : 2;
}

// Strides are in elements. Row r is position (r / length, r % length).
struct Scores {
  const char* data;
  DType dtype;
  int64_t batch, length, dim;
  int64_t stride_batch, stride_length, stride_state;

  int64_t rows() const { return batch * length; }
  int64_t item_size() const { return ::sedd::item_size(dtype); }

  // A contiguous row: in place if possible, else copied into `buffer`.
  const void* row(int64_t r, std::vector<char>& buffer) const {
    const char* start =
        data + (r / length * stride_batch + r % length * stride_length) * item_size();
    if (stride_state == 1 || dim == 1) return start;
    buffer.resize(dim * item_size());
    switch (item_size()) {
      case 2:
        gather<uint16_t>(start, buffer.data());
        break;
      case 4:
        gather<uint32_t>(start, buffer.data());
        break;
      default:
        gather<uint64_t>(start, buffer.data());
    }
    return buffer.data();
  }

 private:
  template <class T>
  void gather(const char* start, char* out) const {
    const T* source = reinterpret_cast<const T*>(start);
    T* target = reinterpret_cast<T*>(out);
    for (int64_t y = 0; y < dim; ++y) target[y] = source[y * stride_state];
  }
};

// Errors found in a parallel loop: whether any argument is out of range, and the first row of
// scores from which no token can be drawn (-1 if none).
struct Faults {
  std::atomic<bool> bad_value{false};
  std::atomic<int64_t> undrawable{-1};

  void mark_undrawable(int64_t row) {
    int64_t seen = undrawable.load();
    while ((seen < 0 || row < seen) && !undrawable.compare_exchange_weak(seen, row)) {
    }
  }
};

}  // namespace sedd
