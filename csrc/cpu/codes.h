// States in 8 bits, from codes to floats and back.
#pragma once

#include "core/codes.h"

namespace lrfast::cpu {

// A block, or the rest of a tensor behind its last whole one. encode_block() returns the scale;
// noise: [kCodeBlock / 2], 16 bits of two elements each, those of the first in the low half.
void decode_block(StateKind kind, const uint8_t* codes, uint8_t scale, int64_t count, float* to);
uint8_t encode_block(StateKind kind, const float* from, const uint32_t* noise, int64_t count,
                     uint8_t* codes);

// All elements of one state; encoded to nearest.
void decode_state(StateKind kind, const uint8_t* codes, const uint8_t* scales, int64_t numel,
                  float* values);
void encode_state(StateKind kind, const float* values, int64_t numel, uint8_t* codes,
                  uint8_t* scales);

}  // namespace lrfast::cpu
