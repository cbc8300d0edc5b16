// Muon for matrices, as torch.optim.Muon defines it, and AdamW for all else, each in its groups.
//
//   b <- b + (g - b) * (1 - momentum)
//   d <- nesterov ? b + (g - b) * (1 - momentum) : b
//   o <- d, orthogonalised and scaled for its shape: products of matrices, which are a library's
//   p <- p * (1 - lr * weight_decay) - lr * o
//
// A step is two passes with the products in between: the first one leaves d in memory of its own,
// the second one finds o there. AdamW's tensors have their whole update in the second one.
//
// Jordan et al., "Muon: An optimizer for hidden layers in neural networks", 2024.
// Liu et al., "Muon is Scalable for LLM Training", arXiv:2502.16982.
#pragma once

#include "core/rules/adam.h"

namespace lrfast {

struct Muon : Adam {
  static constexpr const char* kName = "muon";

  // A group's kind stands where Adam's groups say that their decay is decoupled, as AdamW's is, and
  // what a kind alone has stands in one place.
  static constexpr int kMatrices = 0, kAdamW = 1, kNumKinds = 2;
  static constexpr int kKind = kDecoupled, kNesterov = kAmsgrad;
  static constexpr const char* kKinds[kNumKinds] = {"muon", "adamw"};
  // A name that is null stands for 0.
  static constexpr HyperName kKindHypers[kNumKinds][kNumHypers] = {{{"lr"},
                                                                    {"momentum"},
                                                                    {nullptr},
                                                                    {nullptr},
                                                                    {"weight_decay"},
                                                                    {nullptr},
                                                                    {nullptr},
                                                                    {"nesterov"}},
                                                                   {{"lr"},
                                                                    {"betas", 0},
                                                                    {"betas", 1},
                                                                    {"eps"},
                                                                    {"weight_decay"},
                                                                    {nullptr},
                                                                    {"maximize"},
                                                                    {"amsgrad"}}};

  // kMoved: a tensor of kWithDirection in the second pass.
  enum Form : uint8_t { kAdamWPlain, kAdamWWithAmsgrad, kWithDirection, kMoved, kNumForms };
  // None in 8 bits, for which the products' momentum has no kind.
  static constexpr StateNames kStates[kNumForms] = {
      {2, {"exp_avg", "exp_avg_sq"}},
      {3, {"exp_avg", "exp_avg_sq", "max_exp_avg_sq"}},
      {1, {"momentum_buffer"}},
      {}};

  static uint8_t form(const double* hypers, bool cycles_momentum) {
    return hypers[kKind] == kAdamW ? Adam::form(hypers, cycles_momentum) : uint8_t{kWithDirection};
  }

  template <class T>
  struct Scalars : Adam::Scalars<T> {
    T look_ahead;  // weight of the gradient in the direction: 1 - momentum, or 0
  };

  template <class T, class Powers>
  LRFAST_HD static Scalars<T> prepare(const double* hypers, const TensorClock& clock,
                                      Powers&& powers) {
    Scalars<T> s{};
    static_cast<Adam::Scalars<T>&>(s) = Adam::prepare<T>(hypers, clock, powers);
    if (hypers[kKind] == kMatrices) {  // without bias correction, and decoupled, too
      s.step_size = static_cast<T>(hypers[kRate]);
      s.shrink = static_cast<T>(decay_factor(hypers[kDecayRate], hypers[kWeightDecay]));
    }
    s.look_ahead = hypers[kNesterov] != 0.0 ? s.mean_weight : T(0);
    return s;
  }

  // param is the direction.
  template <uint8_t form, class T>
    requires(form == kWithDirection)
  LRFAST_HD static void apply(T& param, T grad, T* states, const Scalars<T>& s) {
    T& buffer = states[0];
    buffer = buffer + (grad - buffer) * s.mean_weight;
    param = buffer + (grad - buffer) * s.look_ahead;
  }

  // In kMoved grad is what the products made of the direction.
  template <uint8_t form, class T>
    requires(form != kWithDirection)
  LRFAST_HD static Step<T> step(T param, T& grad, T* states, const Scalars<T>& s) {
    if constexpr (form == kMoved) {
      return {s.step_size * grad};
    } else {
      return Adam::step<form>(param, grad, states, s);
    }
  }
};

}  // namespace lrfast
