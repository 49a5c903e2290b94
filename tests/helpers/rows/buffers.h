// Number formats, buffers with guards, and comparisons.
#pragma once

#include <cmath>
#include <cstdarg>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <limits>
#include <vector>

constexpr double kInfinity = std::numeric_limits<double>::infinity();
constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();

// A binary floating-point format of IEEE 754, or bfloat16.
struct Format {
  const char* name;
  int bytes, exponent_bits, mantissa_bits;

  int bias() const { return (1 << (exponent_bits - 1)) - 1; }
  double largest() const { return std::ldexp(2 - epsilon(), bias()); }
  double epsilon() const { return std::ldexp(1, -mantissa_bits); }
  double smallest() const { return std::ldexp(1, 1 - bias() - mantissa_bits); }  // subnormal

  double decode(uint64_t bits) const {
    const uint64_t mantissa = bits & ((uint64_t{1} << mantissa_bits) - 1);
    const int exponent = static_cast<int>(bits >> mantissa_bits & ((1 << exponent_bits) - 1));
    double value = std::ldexp(static_cast<double>(mantissa), 1 - bias() - mantissa_bits);
    if (exponent > 0) {
      value = std::ldexp(1 + static_cast<double>(mantissa) * epsilon(), exponent - bias());
    }
    if (exponent == (1 << exponent_bits) - 1) value = mantissa ? kNaN : kInfinity;
    return bits >> (8 * bytes - 1) & 1 ? -value : value;
  }

  // The nearest number of the format, of two the even one.
  double rounded(double x) const {
    if (!std::isfinite(x) || x == 0) return x;
    const int exponent = std::ilogb(x) < 1 - bias() ? 1 - bias() : std::ilogb(x);
    const int step = exponent - mantissa_bits;
    const double nearest = std::ldexp(std::nearbyint(std::ldexp(x, -step)), step);
    return std::fabs(nearest) > largest() ? std::copysign(kInfinity, x) : nearest;
  }

  uint64_t encode(double x) const {
    const double value = std::fabs(rounded(x));
    const uint64_t sign = std::signbit(x) ? uint64_t{1} << (8 * bytes - 1) : 0;
    const uint64_t special = ((uint64_t{1} << exponent_bits) - 1) << mantissa_bits;
    if (std::isnan(x)) return special | special >> 1;
    if (std::isinf(value)) return sign | special;
    if (value < std::ldexp(1, 1 - bias())) return sign | static_cast<uint64_t>(value / smallest());
    const int exponent = std::ilogb(value);
    const double mantissa = std::ldexp(std::ldexp(value, -exponent) - 1, mantissa_bits);
    const uint64_t biased = static_cast<uint64_t>(exponent + bias());
    return sign | biased << mantissa_bits | static_cast<uint64_t>(mantissa);
  }
};

// `n` numbers that begin `offset` elements after a multiple of 64 bytes. They and what surrounds
// them are NaN in every format at first.
class Buffer {
 public:
  Buffer(const Format& format, int64_t n, int offset)
      : format_(&format), n_(n), memory_(n * format.bytes + 512, kGuard) {
    const auto address = reinterpret_cast<uintptr_t>(memory_.data()) + 128;
    start_ = 128 + (64 - address % 64) + offset * format.bytes;
  }

  void* data() { return memory_.data() + start_; }
  const Format& format() const { return *format_; }
  int64_t size() const { return n_; }
  uint64_t bits(int64_t y) const {
    uint64_t bits = 0;
    std::memcpy(&bits, memory_.data() + start_ + y * format_->bytes, format_->bytes);
    return bits;
  }
  void set_bits(int64_t y, uint64_t bits) {
    std::memcpy(memory_.data() + start_ + y * format_->bytes, &bits, format_->bytes);
  }
  double operator[](int64_t y) const { return format_->decode(bits(y)); }
  void set(int64_t y, double value) { set_bits(y, format_->encode(value)); }
  bool guards_are_intact() const {
    for (size_t i = 0; i < memory_.size(); ++i) {
      const bool inside = i >= start_ && i < start_ + n_ * format_->bytes;
      if (!inside && memory_[i] != kGuard) return false;
    }
    return true;
  }

 private:
  static constexpr unsigned char kGuard = 0xff;
  const Format* format_;
  int64_t n_;
  std::vector<unsigned char> memory_;
  size_t start_;
};

// Counts comparisons, and prints the first that fail.
class Checks {
 public:
  // What the next comparisons are of, as for printf.
  __attribute__((format(printf, 2, 3))) void describe(const char* format, ...) {
    va_list arguments;
    va_start(arguments, format);
    std::vsnprintf(subject_, sizeof subject_, format, arguments);
    va_end(arguments);
  }

  // Equal, both NaN, or not farther apart than `allowed`.
  void near(const char* what, double got, double expected, double allowed, int64_t y = -1) {
    ++count_;
    if (got == expected || (std::isnan(got) && std::isnan(expected))) return;
    if (std::fabs(got - expected) <= allowed) return;
    if (++failed_ > kMostPrinted) return;
    std::printf("%s: %s", subject_, what);
    if (y >= 0) std::printf("[%lld]", static_cast<long long>(y));
    std::printf(" is %.17g instead of %.17g (allowed difference %.3g)\n", got, expected, allowed);
  }

  void that(const char* what, bool holds) { near(what, holds, 1, 0); }

  // Prints the counts; the exit status.
  int finish(const char* title) const {
    if (failed_ > kMostPrinted) std::printf("... and %lld more\n", failed_ - kMostPrinted);
    std::printf("%s: %lld comparisons, %lld failed\n", title, count_, failed_);
    return failed_ ? 1 : 0;
  }

 private:
  static constexpr long long kMostPrinted = 20;
  char subject_[200] = "";
  long long count_ = 0, failed_ = 0;
};

// Uniform pseudorandom numbers, the same on every platform.
class Random {
 public:
  double operator()(double low, double high) {
    state_ = state_ * 6364136223846793005u + 1442695040888963407u;
    return low + (high - low) * static_cast<double>(state_ >> 11) * 0x1p-53;
  }

 private:
  uint64_t state_ = 1;
};
