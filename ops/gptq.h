// GPTQ: codes of a weight chosen one column after the other, each with the error of those before it made up for as far
// as the layer's inputs allow. Source: Frantar et al. 2022, arXiv:2210.17323.
#pragma once

#include <cstdint>
#include <vector>

#include "ops/quantize_4bit.h"
#include "ops/view.h"

namespace thimble {

struct GptqOptions {
  double damping = 0.01;  // of the mean of the diagonal, added to it
  bool act_order = true;  // columns with the largest inputs first
};

// h [cols, cols], the lower triangle: += x^T x for inputs x [tokens, cols] of the layer. In double, on all threads;
// sums are cut by shape alone.
void AccumulateHessian(ConstMatrix x, std::vector<double>* h);

// What the columns owe each other, from their Hessian: made once for all weights that see the same inputs.
class GptqOrder {
 public:
  // h [cols, cols] by AccumulateHessian. Columns that never had an input count as independent ones.
  GptqOrder(const std::vector<double>& h, int64_t cols, const GptqOptions& options);
  // False where the damped Hessian is not positive definite; Quantize must not be called then.
  bool ok() const { return ok_; }

  // `w` holds the scales, which stay, and gets the codes: values [rows, cols] is the weight. Any of nf4, fp4, int4,
  // int8, e2m1, e4m3 and e5m2 without offsets. Runs on all threads.
  void Quantize(ConstMatrix values, QuantizedWeight* w) const;

 private:
  int64_t cols_;
  bool ok_ = false;
  std::vector<int64_t> order_;  // [cols]
  std::vector<char> unused_;    // [cols]: columns without inputs
  std::vector<float> factor_;   // [cols, cols]: the upper Cholesky factor of the inverse, in this order
};

}  // namespace thimble
