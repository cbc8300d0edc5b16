// A stand-in for CUDA's random numbers. Not Philox's numbers but its contract: a generator is a
// seed and an offset, which a launch takes along; a graph's launches read both from the device,
// where each replay has put them, and so a graph has to know the generators that it draws from.
#pragma once

#include <ATen/core/Generator.h>

#include "queues.h"

namespace sim {

const at::Generator& default_generator(int device);
at::Generator new_generator(int device);

// Lets a graph draw from a generator.
void register_generator(Graph& graph, const at::Generator& generator);
// Puts seed and offset where the replay's launches read them, and moves the offset on.
void begin_replay(Registered& generator, Stream& stream);

// What a random operator that is launched now is seeded with when it runs.
std::function<uint64_t()> draw(const at::Generator& given, int device);
// Runs a CPU operator with a seed of its own; without one where draw is empty.
void run_seeded(const std::function<uint64_t()>& draw, const Work& run);

}  // namespace sim
