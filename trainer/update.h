// Records the optimiser's steps: the global gradient norm, then the steps of each parameter.
#pragma once

#include <cstdint>
#include <vector>

#include "trainer/optimizer_state.h"
#include "trainer/tape.h"

namespace thimble {

// Reads the gradients of all trainable entries, writes grad_norm and clip_factor of the run scalars, then updates
// parameters and optimiser state, which DeclareOptimizerState has declared with the same options. A gradient norm that
// is not finite leaves everything as it is (clip_factor 0).
void RecordUpdate(Tape* tape, const OptimizerOptions& options);

// Elements of the largest part of a parameter that is updated at once where its state lies in a tier.
inline constexpr int64_t kUpdatePart = int64_t{1} << 20;

// The steps that update trainable `id` by `gradient`, of its shape: one, or one for each part where the state lies in a
// tier and the optimiser treats elements one by one. Inputs are gradient, parameter, state; the state is read where it
// lies, so what lies in a tier needs UpdatePlacer. `stream` tells the parameter's random numbers from those of others.
// A step does nothing where the scalar `unless_finite` points to is not finite.
std::vector<Step> UpdateSteps(Tape* tape, StoreId id, ValueId gradient, uint64_t stream,
                              const OptimizerOptions& options, double RunScalars::*unless_finite);

// Puts update steps in their places: state in a tier is fetched one step ahead and written back during the step behind,
// so that the parts of three steps are in the arena at once.
class UpdatePlacer {
 public:
  UpdatePlacer(Tape* tape, std::vector<Step> updates);
  // Appends the next update with its transfers.
  void PlaceNext(std::vector<Step>* steps);
  // After the last one: waits for what is written back.
  void Finish(std::vector<Step>* steps);

 private:
  struct Placed {
    Step step;
    std::vector<ValueId> fetched;
  };
  void Fetch(size_t index, std::vector<Step>* steps);
  void WaitForWrites(size_t index, std::vector<Step>* steps);

  Tape& tape_;
  std::vector<Placed> updates_;
  size_t next_ = 0;
};

}  // namespace thimble
