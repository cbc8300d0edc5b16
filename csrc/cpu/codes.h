// States in 8 bits, from codes to floats and back, block by block.
#pragma once

#include "core/codes.h"
#include "core/noise.h"
#include "core/rule.h"

namespace lrfast::cpu {

using WideBlock = float[kCodeBlock];

// Elements [begin, end), one block or the rest of a tensor behind its last whole one, of each of a
// tensor's states, to wide and back. begin is a multiple of kCodeBlock.
void decode_block(const StateNames& states, const TensorRow& row, int64_t begin, int64_t end,
                  WideBlock* wide);
void encode_block(const StateNames& states, const TensorRow& row, int64_t begin, int64_t end,
                  const WideBlock* wide, const Noise& noise);

// All elements of one state; encoded to nearest.
void decode_state(StateKind kind, const uint8_t* codes, const uint8_t* scales, int64_t numel,
                  float* values);
void encode_state(StateKind kind, const float* values, int64_t numel, uint8_t* codes,
                  uint8_t* scales);

}  // namespace lrfast::cpu
