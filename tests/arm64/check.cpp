// Operations of the CPU library against naive loops in float64, for processors that the test suite itself does not run
// on: products in every form and type, softmax, and causal attention with its gradients. See run.ts.
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <random>
#include <vector>

#include "../../kernels/mantou.h"

static mantou_context* context;
static int checks = 0, failures = 0;
static std::mt19937 generator(1);

static void succeed(int32_t status) {
  if (status == MANTOU_OK) return;
  std::printf("%s\n", mantou_last_error());
  failures++;
}

static void compare(const char* what, const std::vector<float>& actual, const std::vector<double>& expected,
                    double tolerance) {
  double worst = 0;
  for (size_t i = 0; i < expected.size(); i++) {
    const double error = std::fabs(actual[i] - expected[i]);
    if (!(error <= worst)) worst = error;  // NaN too
  }
  checks++;
  if (worst <= tolerance) return;
  failures++;
  std::printf("%s: off by %g\n", what, worst);
}

static float rounded(float value) {  // to bfloat16, by cutting: the inputs need only be exact
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  bits &= 0xffff0000u;
  std::memcpy(&value, &bits, 4);
  return value;
}

static std::vector<float> random(int64_t count) {
  std::normal_distribution<float> normal;
  std::vector<float> values(static_cast<size_t>(count));
  for (float& value : values) value = rounded(normal(generator));
  return values;
}

static std::vector<uint16_t> to_bfloat16(const std::vector<float>& values) {
  std::vector<uint16_t> result(values.size());
  succeed(mantou_cast(context, static_cast<int64_t>(values.size()), MANTOU_FLOAT32, values.data(), MANTOU_BFLOAT16,
                      result.data()));
  return result;
}

static void check_matmul(int64_t m, int64_t n, int64_t k) {
  for (int form = 0; form < 4; form++) {
    const bool ta = form & 1, tb = form & 2;
    const auto a = random(m * k), b = random(k * n);
    std::vector<double> expected(static_cast<size_t>(m * n));
    for (int64_t i = 0; i < m; i++)
      for (int64_t j = 0; j < n; j++)
        for (int64_t p = 0; p < k; p++)
          expected[i * n + j] += static_cast<double>(a[ta ? p * m + i : i * k + p]) * b[tb ? j * k + p : p * n + j];
    std::vector<float> c(expected.size(), NAN);
    succeed(mantou_matmul(context, ta, tb, m, n, k, MANTOU_FLOAT32, a.data(), ta ? m : k, b.data(), tb ? k : n,
                          MANTOU_FLOAT32, c.data(), n, 0));
    compare("matmul of float32", c, expected, 1e-4);
    const auto a16 = to_bfloat16(a), b16 = to_bfloat16(b);
    c.assign(c.size(), 0.0f);
    succeed(mantou_matmul(context, ta, tb, m, n, k, MANTOU_BFLOAT16, a16.data(), ta ? m : k, b16.data(), tb ? k : n,
                          MANTOU_FLOAT32, c.data(), n, 1));
    compare("matmul of bfloat16, accumulated", c, expected, 1e-4);
  }
}

static void check_softmax(int64_t rows, int64_t dim) {
  const auto x = random(rows * dim);
  std::vector<float> y(x.size(), NAN);
  succeed(mantou_softmax(context, MANTOU_FLOAT32, rows, dim, 1, x.data(), y.data()));
  std::vector<double> expected(x.size());
  for (int64_t row = 0; row < rows; row++) {
    double sum = 0;
    for (int64_t i = 0; i < dim; i++) sum += expected[row * dim + i] = std::exp(static_cast<double>(x[row * dim + i]));
    for (int64_t i = 0; i < dim; i++) expected[row * dim + i] /= sum;
  }
  compare("softmax", y, expected, 1e-6);
}

// One head, no rotation.
static void check_attention(int64_t length, int64_t dim) {
  const auto q = random(length * dim), k = random(length * dim), v = random(length * dim), dy = random(length * dim);
  const double scale = 1 / std::sqrt(static_cast<double>(dim));
  std::vector<double> y(q.size()), dq(q.size()), dk(q.size()), dv(q.size());
  for (int64_t i = 0; i < length; i++) {
    std::vector<double> p(static_cast<size_t>(i + 1)), dp(p.size());
    double sum = 0, mean = 0;
    for (int64_t j = 0; j <= i; j++) {
      double score = 0;
      for (int64_t c = 0; c < dim; c++) score += static_cast<double>(q[i * dim + c]) * k[j * dim + c];
      sum += p[j] = std::exp(scale * score);
    }
    for (int64_t j = 0; j <= i; j++) {
      p[j] /= sum;
      for (int64_t c = 0; c < dim; c++) {
        y[i * dim + c] += p[j] * v[j * dim + c];
        dv[j * dim + c] += p[j] * dy[i * dim + c];
        dp[j] += static_cast<double>(dy[i * dim + c]) * v[j * dim + c];
      }
      mean += p[j] * dp[j];
    }
    for (int64_t j = 0; j <= i; j++)
      for (int64_t c = 0; c < dim; c++) {
        dq[i * dim + c] += scale * p[j] * (dp[j] - mean) * k[j * dim + c];
        dk[j * dim + c] += scale * p[j] * (dp[j] - mean) * q[i * dim + c];
      }
  }
  std::vector<float> out(q.size(), NAN), lse(static_cast<size_t>(length), NAN), gq(out), gk(out), gv(out);
  std::vector<char> workspace(
      static_cast<size_t>(mantou_attention_backward_workspace(1, length, 1, 1, dim)));
  const auto factor = static_cast<float>(scale);
  succeed(mantou_attention_forward(context, MANTOU_FLOAT32, 1, length, 1, 1, dim, factor, q.data(), dim, k.data(),
                                   v.data(), dim, nullptr, nullptr, out.data(), lse.data()));
  succeed(mantou_attention_backward(context, MANTOU_FLOAT32, 1, length, 1, 1, dim, factor, dy.data(), q.data(), dim,
                                    k.data(), v.data(), dim, nullptr, nullptr, 0, out.data(), lse.data(),
                                    gq.data(), gk.data(), gv.data(), workspace.data()));
  compare("attention", out, y, 1e-5);
  compare("attention, dq", gq, dq, 1e-4);
  compare("attention, dk", gk, dk, 1e-4);
  compare("attention, dv", gv, dv, 1e-4);
}

int main() {
  succeed(mantou_context_create(0, 2, &context));
  char text[256] = "";
  succeed(mantou_context_describe(context, text, sizeof text));
  const int64_t sizes[][3] = {{1, 1, 1}, {1, 37, 19}, {5, 9, 3}, {13, 25, 64}, {65, 33, 131}, {40, 130, 515}};
  for (const auto& size : sizes) check_matmul(size[0], size[1], size[2]);
  for (int64_t dim : {1, 4, 7, 130}) check_softmax(3, dim);
  for (int64_t length : {1, 5, 64, 131}) check_attention(length, length % 2 ? 32 : 20);
  succeed(mantou_context_destroy(context));
  std::printf("%s: %d checks, %d failures\n", text, checks, failures);
  return failures > 0;
}
