// The row functions of one dtype in one table, with the errors that they may have.
#pragma once

#include "buffers.h"
#include "cpu/simd/rows.h"

// By the codes of sedd::DType.
constexpr Format kFormats[] = {
    {"float32", 4, 8, 23}, {"bfloat16", 2, 8, 7}, {"float16", 2, 5, 10}, {"float64", 8, 11, 52}};

inline Checks checks;

struct Tested {
  const char* table;
  const sedd::RowFunctions& row;
  const Format &format, &fp32;  // of scores, and of what rows.h names fp32
  bool single;                  // computes in float32
  double little;                // relative error of a rounded result
  double tiny;                  // absolute error: results below the normal numbers may be 0

  Tested(const sedd::RowTable& all, int dtype, bool exact)
      : table(exact ? "exact" : "fast"),
        row(exact ? all.exact[dtype] : all.fast[dtype]),
        format(kFormats[dtype]),
        fp32(dtype == 3 ? kFormats[3] : kFormats[0]),
        single(!exact && dtype != 3),
        little(single ? 5e-7 : 1e-14),
        tiny(single ? 1.2e-38 : 1e-323) {}

  // What the next comparisons are of.
  __attribute__((format(printf, 2, 3))) void describe(const char* what, ...) const {
    char text[160];
    va_list arguments;
    va_start(arguments, what);
    std::vsnprintf(text, sizeof text, what, arguments);
    va_end(arguments);
    checks.describe("%s, %s, %s, %s", sedd::instruction_set(), table, format.name, text);
  }

  // The relative error of exp(l), where l is rounded.
  double exp_error(double l) const { return little * (1 + std::fabs(l)); }

  // The error of a sum of two numbers, as large as `terms` together, that is stored as `to`.
  double stored_error(const Format& to, double value, double terms) const {
    return little * terms + to.epsilon() / 2 * std::fabs(value) * (1 + little) + to.smallest() +
           tiny;
  }
};

void check_ordinary(const Tested& tested);
void check_special(const Tested& tested);
void check_softmax(const Tested& tested);
void check_head();
