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

// All bits set if a < b, else none; a and b are below 2^63.
uint64_t below(uint64_t a, uint64_t b) { return 0 - ((a - b) >> 63); }

// Tokens of one sequence, each replaced with that probability. Returns whether all arguments are in
// range.
//
// There are no branches: on random numbers many would be mispredicted, which would take most of the
// time. Numbers that are not negative are in the order of their bits, so they are compared as
// integers, which vector instructions of every processor can do. A token below 0 or above `last`
// sets the highest bit of `bad`, and so do the bits of a number outside [0, 1), and a mask that is
// `among` the tokens; one that is the last state is above `last`.
template <Graph graph, bool among>
bool noise_tokens(const int64_t* x_0, const double* u, int64_t* x_t, int64_t count, Process process,
                  double probability) {
  const int64_t vocab = process.vocab;
  const uint64_t mask = process.mask, last = among ? vocab : vocab - 1;
  const uint64_t one = bits(1.0), replaced = bits(probability);
  uint64_t bad = 0;
  for (int64_t i = 0; i < count; ++i) {
    const uint64_t x = x_0[i];
    const uint64_t u0 = bits(u[2 * i] + 0.0), u1 = bits(u[2 * i + 1] + 0.0);  // -0 + 0 is 0
    bad |= x | (last - x) | u0 | (one - 1 - u0) | u1 | (one - 1 - u1);
    if (among) bad |= (x ^ mask) - 1;
    uint64_t token = mask;
    if (graph == Graph::uniform) {
      token = static_cast<int64_t>(u[2 * i + 1] * static_cast<double>(vocab));
      token += below(last, token);  // at most `last`
    }
    x_t[i] = x ^ ((x ^ token) & below(u0, replaced));
  }
  return bad >> 63 == 0;
}

}  // namespace

bool sample_transition(const int64_t* x_0, Reals sigma, const double* u, int64_t* x_t,
                       int64_t batch, int64_t length, Process process, int threads) {
  const auto noise = process.graph == Graph::uniform ? noise_tokens<Graph::uniform, false>
                     : process.mask == process.vocab ? noise_tokens<Graph::absorbing, false>
                                                     : noise_tokens<Graph::absorbing, true>;
  std::atomic<bool> bad{false};
  // A piece may begin and end inside a sequence: one long sequence is shared among threads, too.
  parallel_for(batch * length, kTokenCost, threads, [&](int64_t begin, int64_t end) {
    bool ok = true;
    for (int64_t b = begin / length; begin < end; ++b) {
      const int64_t count = std::min(end, (b + 1) * length) - begin;
      ok = is_noise(sigma[b]) && ok;
      ok = noise(x_0 + begin, u + 2 * begin, x_t + begin, count, process, -std::expm1(-sigma[b])) &&
           ok;
      begin += count;
    }
    if (!ok) bad = true;
  });
  return !bad;
}

}  // namespace sedd
