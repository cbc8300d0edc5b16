// The vocabulary that update rules are written in. A rule is a struct that names its
// hyperparameters, its states and its forms, prepares scalars in double once per tensor and step,
// and applies them to one element. It owns every formula; the drivers own loops, types and memory.
#pragma once

#include <cstdint>

#include "core/platform.h"
#include "core/tables.h"

namespace lrfast {

struct HyperName {
  const char* key;  // in torch.optim's param group
  int index = -1;   // which item, where the value is a tuple (betas)
};

struct StateNames {
  int count;
  const char* names[kMaxStates];
};

struct TensorClock {
  double count;             // updates applied to this tensor before this one
  double momentum_product;  // of the beta1 used so far, or negative when beta1 is not cycled
};

}  // namespace lrfast
