// Views: pointer, rows, cols, stride (leading dimension, in elements). They own nothing; copying is free.
#pragma once

#include <cstdint>
#include <type_traits>

namespace thimble {

template <typename T>
struct MatrixView {
  T* data = nullptr;
  int64_t rows = 0;
  int64_t cols = 0;
  int64_t stride = 0;

  MatrixView() = default;
  MatrixView(T* data, int64_t rows, int64_t cols) : MatrixView(data, rows, cols, cols) {}
  MatrixView(T* data, int64_t rows, int64_t cols, int64_t stride)
      : data(data), rows(rows), cols(cols), stride(stride) {}
  // A mutable view reads as a const one.
  template <typename U, typename = std::enable_if_t<std::is_same_v<const U, T>>>
  MatrixView(const MatrixView<U>& other)  // NOLINT(google-explicit-constructor)
      : MatrixView(other.data, other.rows, other.cols, other.stride) {}

  T* row(int64_t r) const { return data + r * stride; }
  T& operator()(int64_t r, int64_t c) const { return data[r * stride + c]; }
  MatrixView Rows(int64_t begin, int64_t count) const { return {row(begin), count, cols, stride}; }
  MatrixView Cols(int64_t begin, int64_t count) const { return {data + begin, rows, count, stride}; }
};

template <typename T>
struct VectorView {
  T* data = nullptr;
  int64_t size = 0;

  VectorView() = default;
  VectorView(T* data, int64_t size) : data(data), size(size) {}
  template <typename U, typename = std::enable_if_t<std::is_same_v<const U, T>>>
  VectorView(const VectorView<U>& other)  // NOLINT(google-explicit-constructor)
      : VectorView(other.data, other.size) {}

  T& operator[](int64_t i) const { return data[i]; }
};

using Matrix = MatrixView<float>;
using ConstMatrix = MatrixView<const float>;
using Vector = VectorView<float>;
using ConstVector = VectorView<const float>;
using ConstInts = VectorView<const int32_t>;

// Scratch memory handed to a kernel by its caller: 64-byte aligned, contents undefined before and after.
struct Scratch {
  void* data = nullptr;
  int64_t bytes = 0;
};

}  // namespace thimble
