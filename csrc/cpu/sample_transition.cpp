// Noising of clean tokens: x_t ~ p(. | x_0). A token is replaced when u0 < 1 - exp(-sigma): by the
// mask, or by floor(u1 * V).
#include "operations.h"
#include "parallel.h"

namespace sedd {
namespace {

constexpr int64_t kTokenCost = 8;  // a token takes as long as reading so many elements

uint64_t bits(double x) {
  uint64_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  return bits;
}

// Tokens of one sequence, each replaced with that probability. Returns whether all arguments are in
// range. The checks are on integers and without branches, so that the vector instructions of every
// processor can make them: a token below 0 or above `last` sets the highest bit of `bad`, and so do
// the bits of a number below 0 or above the largest double below 1 (and those of -0, which the
// caller's own check accepts).
template <Graph graph>
bool noise_tokens(const int64_t* x_0, const double* u, int64_t* x_t, int64_t count, int64_t vocab,
                  double probability) {
  const uint64_t last = vocab - 1, below_one = bits(1.0) - 1;
  uint64_t bad = 0;
  for (int64_t i = 0; i < count; ++i) {
    const uint64_t x = x_0[i];
    const double u0 = u[2 * i], u1 = u[2 * i + 1];
    bad |= x | (last - x) | bits(u0) | (below_one - bits(u0)) | bits(u1) | (below_one - bits(u1));
    int64_t token = vocab;  // the mask
    if (graph == Graph::uniform) {
      token = std::min(static_cast<int64_t>(u1 * static_cast<double>(vocab)), vocab - 1);
    }
    x_t[i] = u0 < probability ? token : x_0[i];
  }
  return bad >> 63 == 0;
}

}  // namespace

bool sample_transition(const int64_t* x_0, const double* sigma, const double* u, int64_t* x_t,
                       int64_t batch, int64_t length, Process process, int threads) {
  const auto noise = process.graph == Graph::uniform ? noise_tokens<Graph::uniform>
                                                     : noise_tokens<Graph::absorbing>;
  std::atomic<bool> bad{false};
  // A piece may begin and end inside a sequence: one long sequence is shared among threads, too.
  parallel_for(batch * length, kTokenCost, threads, [&](int64_t begin, int64_t end) {
    bool ok = true;
    for (int64_t b = begin / length; begin < end; ++b) {
      const int64_t count = std::min(end, (b + 1) * length) - begin;
      ok = is_noise(sigma[b]) && ok;
      ok = noise(x_0 + begin, u + 2 * begin, x_t + begin, count, process.vocab,
                 -std::expm1(-sigma[b])) &&
           ok;
      begin += count;
    }
    if (!ok) bad = true;
  });
  return !bad;
}

}  // namespace sedd
