// Tools of the op tests: padded matrices with known values, exact gradients by complex step, comparison with a stated
// tolerance, and the same-bits check over thread counts.
#pragma once

#include <algorithm>
#include <cmath>
#include <complex>
#include <cstdint>
#include <cstring>
#include <limits>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "gtest/gtest.h"
#include "ops/parallel.h"
#include "ops/view.h"

namespace thimble {

using Complex = std::complex<double>;
constexpr double kFloatEpsilon = std::numeric_limits<float>::epsilon();

// Owns a float matrix whose rows are `padding` elements longer than its columns, and one more padded row. The padding
// holds a sentinel, so that a kernel which ignores the stride or writes past the end is seen by PaddingIntact().
class TestMatrix {
 public:
  TestMatrix(int64_t rows, int64_t cols, float value = 0, int64_t padding = 3)
      : rows_(rows), cols_(cols), stride_(cols + padding), data_((rows + 1) * stride_ + 1, kSentinel) {
    for (int64_t r = 0; r < rows; ++r) std::fill_n(&data_[r * stride_], cols, value);
  }
  // Normal values times `scale`, a function of the seed alone.
  static TestMatrix Random(int64_t rows, int64_t cols, uint32_t seed, float scale = 1, int64_t padding = 3) {
    TestMatrix matrix(rows, cols, 0, padding);
    std::mt19937 bits(seed);
    std::normal_distribution<float> normal;
    for (int64_t r = 0; r < rows; ++r) {
      for (int64_t c = 0; c < cols; ++c) matrix(r, c) = scale * normal(bits);
    }
    return matrix;
  }

  int64_t rows() const { return rows_; }
  int64_t cols() const { return cols_; }
  float& operator()(int64_t r, int64_t c) { return data_[r * stride_ + c]; }
  float operator()(int64_t r, int64_t c) const { return data_[r * stride_ + c]; }
  Matrix view() { return {data_.data(), rows_, cols_, stride_}; }
  ConstMatrix view() const { return {data_.data(), rows_, cols_, stride_}; }
  // Row 0 as a vector.
  Vector vector() { return {data_.data(), cols_}; }
  ConstVector vector() const { return {data_.data(), cols_}; }

  // The values without padding, row after row.
  std::vector<float> Values() const { return To<float>(); }
  template <typename Scalar>
  std::vector<Scalar> To() const {
    std::vector<Scalar> values;
    values.reserve(rows_ * cols_);
    for (int64_t r = 0; r < rows_; ++r) {
      for (int64_t c = 0; c < cols_; ++c) values.push_back(Scalar((*this)(r, c)));
    }
    return values;
  }
  bool PaddingIntact() const {
    for (int64_t i = 0; i < (rows_ + 1) * stride_; ++i) {
      const bool inside = i / stride_ < rows_ && i % stride_ < cols_;
      if (!inside && data_[i] != kSentinel) return false;
    }
    return data_.back() == kSentinel;
  }

 private:
  static constexpr float kSentinel = -12345.678f;
  int64_t rows_, cols_, stride_;
  std::vector<float> data_;
};

// Scratch of a given size, 64-byte aligned; the bytes behind it are a guard.
class TestScratch {
 public:
  explicit TestScratch(int64_t bytes) : bytes_(bytes), data_(bytes + 64 + kGuardBytes, kGuard) {
    const uintptr_t address = reinterpret_cast<uintptr_t>(data_.data());
    begin_ = data_.data() + ((address + 63) / 64 * 64 - address);
  }
  Scratch view() { return {begin_, bytes_}; }
  bool GuardIntact() const {
    return std::all_of(begin_ + bytes_, begin_ + bytes_ + kGuardBytes, [](uint8_t byte) { return byte == kGuard; });
  }

 private:
  static constexpr int64_t kGuardBytes = 256;
  static constexpr uint8_t kGuard = 0xFF;  // 0xFFFFFFFF is a NaN: a kernel that reads what it did not write is seen
  int64_t bytes_;
  std::vector<uint8_t> data_;
  uint8_t* begin_;
};

// d loss / d x_i for every i, exact to rounding: loss(x + ih e_i).imag / h. `loss` maps std::vector<Complex> to
// Complex with operations that are analytic in x: no abs, no conjugate (Eigen's dot and norm conjugate); compare by
// real parts. Source: Squire & Trapp 1998, SIAM Review 40(1).
template <typename Loss>
std::vector<double> ComplexStepGradient(const Loss& loss, const std::vector<double>& x) {
  constexpr double kStep = 1e-40;
  std::vector<Complex> z(x.begin(), x.end());
  std::vector<double> gradient(x.size());
  for (size_t i = 0; i < x.size(); ++i) {
    z[i] = Complex(x[i], kStep);
    gradient[i] = Complex(loss(z)).imag() / kStep;
    z[i] = x[i];
  }
  return gradient;
}

// sum_i weights_i * y_i: turns an output into a scalar whose gradient with respect to y is `weights`.
template <typename Scalar>
Scalar WeightedSum(const std::vector<double>& weights, const std::vector<Scalar>& y) {
  EXPECT_EQ(weights.size(), y.size());
  Scalar sum(0);
  for (size_t i = 0; i < y.size(); ++i) sum += weights[i] * y[i];
  return sum;
}

// Every element within tolerance of the reference; the tolerance should be computed from sizes and kFloatEpsilon.
inline void ExpectAllNear(const std::vector<float>& actual, const std::vector<double>& expected, double tolerance,
                          const std::string& what) {
  ASSERT_EQ(actual.size(), expected.size()) << what;
  double worst = 0;
  size_t where = 0;
  for (size_t i = 0; i < actual.size(); ++i) {
    const double error = std::abs(actual[i] - expected[i]);
    if (!(error <= worst)) {
      worst = error;
      where = i;
    }
    if (std::isnan(error)) break;
  }
  EXPECT_LE(worst, tolerance) << what << ": element " << where << " is " << (actual.empty() ? 0 : actual[where])
                              << ", expected " << (actual.empty() ? 0 : expected[where]);
}

inline double MaxAbs(const std::vector<double>& values) {
  double largest = 0;
  for (const double value : values) largest = std::max(largest, std::abs(value));
  return largest;
}

// Sets the number of threads for its lifetime.
class ScopedThreads {
 public:
  explicit ScopedThreads(int threads) : before_(NumThreads()) { SetNumThreads(threads); }
  ~ScopedThreads() { SetNumThreads(before_); }

 private:
  int before_;
};

// run() returns every output of an op as floats; they must have the same bits with 1, 2, 3 and 5 threads. Use sizes
// large enough that the op really splits its work.
template <typename Run>
void ExpectSameBitsForAnyThreadCount(const Run& run) {
  std::vector<float> one;
  {
    ScopedThreads threads(1);
    one = run();
  }
  ASSERT_FALSE(one.empty());
  for (const int count : {2, 3, 5}) {
    ScopedThreads threads(count);
    const std::vector<float> many = run();
    ASSERT_EQ(one.size(), many.size());
    EXPECT_EQ(std::memcmp(one.data(), many.data(), one.size() * sizeof(float)), 0) << count << " threads";
  }
}

inline std::vector<float> Concatenate(std::vector<float> a, const std::vector<float>& b) {
  a.insert(a.end(), b.begin(), b.end());
  return a;
}

}  // namespace thimble
