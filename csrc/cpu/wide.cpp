#include "cpu/wide.h"

#include <type_traits>

#include "cpu/codes.h"
#include "cpu/masters.h"
#include "cpu/tasks.h"

namespace lrfast::cpu {
namespace {

// Returns where the floats are.
template <class Element>
LRFAST_HD auto floats_of(Element* from, int64_t count, float* copy) {
  if constexpr (std::is_same_v<std::remove_const_t<Element>, float>) {
    return from;
  } else {
    widen(from, count, copy);
    return copy;
  }
}

template <class Element>
LRFAST_HD void store_floats(const float* from, int64_t count, Element* to, BlockNoise<kWide>& noise,
                            int which) {
  if constexpr (!std::is_same_v<Element, float>) narrow(from, count, to, noise, which);
}

LRFAST_HD bool has(Arrays arrays, int k) { return (arrays >> k & 1u) != 0; }

// with_types() for a tensor whose rule runs in floats.
template <class Visitor>
LRFAST_HD void with_float_types(DtypePair dtypes, Visitor&& visit) {
  with_types(dtypes, [&]<class Param, class State>() {
    if constexpr (std::is_same_v<compute_t<Param>, float>) {
      visit.template operator()<Param, State>();
    }
  });
}

}  // namespace

LRFAST_CLONES WideBlock widen_block(const TensorRow& row, const void* grads,
                                    const StateNames& names, Arrays arrays, int64_t begin,
                                    int64_t end, WideCopies& copies) {
  const int64_t count = end - begin;
  const int64_t left = row.numel - begin;
  WideBlock block{};
  with_float_types(row.dtypes, [&]<class Param, class State>() {
    const auto* own = static_cast<const Param*>(grads) + begin;
    Param* params = static_cast<Param*>(row.param) + begin;
    prefetch_block<kWide>(params, left);
    if (row.master != 0) {
      if (row.master == sizeof(int8_t)) {
        prefetch_block<kWide>(static_cast<const int8_t*>(row.master_bits) + begin, left);
      } else {
        prefetch_block<kWide>(static_cast<const int16_t*>(row.master_bits) + begin, left);
      }
      block.param = copies.arrays[kMaxStates];
      join_masters(row, begin, end, block.param);
    } else {
      block.param = floats_of(params, count, copies.arrays[kMaxStates]);
    }
    block.grad = floats_of(own, count, copies.arrays[kMaxStates + 1]);
    for (int k = 0; k < names.count; ++k) {
      if (!has(arrays, k)) continue;
      if (row.coded) {
        const uint8_t* codes = static_cast<const uint8_t*>(row.states[k]) + begin;
        prefetch_block<kWide>(codes, left);
        decode_block(names.kinds[k], codes, row.scales[k][begin / kCodeBlock], count,
                     copies.arrays[k]);
        block.states[k] = copies.arrays[k];
      } else {
        State* states = static_cast<State*>(row.states[k]) + begin;
        prefetch_block<kWide>(states, left);
        block.states[k] = floats_of(states, count, copies.arrays[k]);
      }
    }
  });
  return block;
}

void prefetch_grads(const TensorRow& row, const void* grads, int64_t begin) {
  with_float_types(row.dtypes, [&]<class Param, class State>() {
    prefetch_block<kWide>(static_cast<const Param*>(grads) + begin, row.numel - begin);
  });
}

LRFAST_CLONES void narrow_block(const TensorRow& row, const StateNames& names, Arrays arrays,
                                const WideBlock& block, const Noise& noise, int64_t begin,
                                int64_t end) {
  const int64_t count = end - begin;
  BlockNoise<kWide> bits;
  with_float_types(row.dtypes, [&]<class Param, class State>() {
    if (row.coded || std::is_same_v<Param, StochasticBFloat16>) bits.fill(noise, begin);
    if ((arrays & kParam) && row.master != 0) {
      split_masters(row, begin, end, block.param);
    } else if (arrays & kParam) {
      store_floats(block.param, count, static_cast<Param*>(row.param) + begin, bits, 0);
    }
    for (int k = 0; k < names.count; ++k) {
      if (!has(arrays, k)) continue;
      if (row.coded) {
        uint8_t* codes = static_cast<uint8_t*>(row.states[k]) + begin;
        row.scales[k][begin / kCodeBlock] =
            encode_block(names.kinds[k], block.states[k], bits.of_pairs(k + 1), count, codes);
      } else {
        State* states = static_cast<State*>(row.states[k]) + begin;
        store_floats(block.states[k], count, states, bits, k + 1);
      }
    }
  });
}

}  // namespace lrfast::cpu
